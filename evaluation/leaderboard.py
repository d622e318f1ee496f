"""Runs side by side: `leaderboard.md`, `leaderboard.json` and `leaderboard.csv`, and who beats whom.

    board = evaluate_runs([Path("runs/bottle-knn-all"), Path("runs/bottle-sam-all")])
    print(board.markdown())
    board.write(Path("runs/bottle-all-leaderboard"))

Only runs on the same images of the same dataset stand side by side; anything else is refused. Sorted by image AUROC,
highest first, runs without one last. Runs that were given truth stand in a table of their own, sorted by mask IoU, and
are compared with each other alone (`evaluation.tables`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation._leaderboard_markdown import Row as Row
from evaluation._leaderboard_markdown import markdown
from evaluation.comparison import Comparison, compare_all, samples_needed
from evaluation.instance_metrics import MOST_DETECTIONS
from evaluation.metrics import SAMPLES, Evaluation, evaluate, image_ids_sha256, truth_sha256
from evaluation.tables import Table, tables
from maskbridge.dataset import Dataset
from maskbridge.derive import part_image_ids
from maskbridge.errors import RunError
from maskbridge.files import refuse_foreign, write_json, write_text
from maskbridge.predictions import Run
from maskbridge.progress import track

#: Our files, and what stands at the beginning of each.
_MARKS = (
    ("leaderboard.json", b'{\n "dataset": ', b'"part": '),
    ("leaderboard.csv", b"run,approach,"),
    ("leaderboard.md", b"# ", b"bootstrap samples of"),
)


@dataclass(frozen=True)
class Leaderboard:
    """Runs on the same images, table by table, best first.

    Attributes:
        dataset: Name of the dataset.
        part: Parts the runs are of, usually one.
        evaluations: The runs.
        comparisons: By `family.metric` of each column every pair of runs of a table, corrected for the number of pairs
            of that table.
    """

    dataset: str
    part: str
    evaluations: tuple[Evaluation, ...]
    comparisons: dict[str, tuple[Comparison, ...]]

    @property
    def tables(self) -> tuple[Table, ...]:
        """The runs by what they were given."""
        return tables(self.evaluations)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The runs as rows."""
        return tuple(Row.of(each) for each in self.evaluations)

    def markdown(self) -> str:
        """The tables as Markdown, with notes."""
        return markdown(self.dataset, self.part, self.tables, self.comparisons)

    def csv(self) -> str:
        """One line for each run and metric, with a head that names the columns."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        of_metric = ("value", "low", "high", "method", "derived", "why")
        writer.writerow(["run", "approach", "truth_given", "family", "metric", *of_metric])
        for row in self.rows:
            for family, metrics in row.metrics.items():
                for name, metric in metrics.items() if isinstance(metrics, dict) else ():
                    if isinstance(metric, dict) and "value" in metric:
                        told = (metric.get(key, "") for key in of_metric)
                        cells = [row.run, row.approach, row.truth_given, family, name, *told]
                        writer.writerow(map(_no_formula, cells))
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, with everything of each metrics.json."""
        return {
            "dataset": self.dataset,
            "part": self.part,
            "rows": [
                {
                    "run": row.run,
                    "approach": row.approach,
                    "weights_from": row.weights_from,
                    "truth_given": row.truth_given,
                    "marks": [note for _, note in row.marks],
                    "metrics": row.metrics,
                }
                for row in self.rows
            ],
            "comparisons": {key: [pair.to_json() for pair in pairs] for key, pairs in self.comparisons.items()},
        }

    def write_metrics(self) -> None:
        """Write each run's `metrics.json`."""
        for each in self.evaluations:
            write_json(each.run.path / "metrics.json", each.metrics)

    def write(self, folder: Path) -> None:
        """Write `leaderboard.md`, `leaderboard.json` and `leaderboard.csv` into a folder, each whole or not at all.

        Raises:
            MaskbridgeError: When a file of one of these names is there, and no leaderboard.
        """
        for name, *marks in _MARKS:
            refuse_foreign(folder / name, *marks, kind="a leaderboard")
        text, table = self.markdown(), self.csv()
        write_json(folder / "leaderboard.json", self.to_json())
        write_text(folder / "leaderboard.csv", table)
        write_text(folder / "leaderboard.md", text)


def _no_formula(cell: Any) -> Any:
    """A cell that spreadsheets take for what it is: text that begins like a formula gets an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def evaluate_runs(
    run_paths: Sequence[Path],
    part: str | None = None,
    dataset: Path | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    max_detections: int = MOST_DETECTIONS,
) -> Leaderboard:
    """Evaluate runs and put them side by side; nothing is written.

    Args:
        run_paths: Run folders.
        part: `val`, `test` or `crossval`; by default `crossval` where present, else `test`, of each run.
        dataset: Where the dataset lies; by default where each run.json says.
        samples: Bootstrap samples of an interval; comparisons draw more where there are many pairs.
        seed: Their seed.
        max_detections: Detections of an image that COCO figures look at, the surest first.

    Raises:
        RunError: When there is no run, a run is named twice, a run or its predictions do not fit the dataset, or two
            runs are not on the same images.
    """
    if not run_paths:
        raise RunError("there is no run to evaluate", expected="at least one run folder")
    runs = [Run.open(path) for path in run_paths]
    _refuse_names(runs)
    datasets = [run.dataset(dataset) for run in runs]
    parts = [part or run.default_part() for run in runs]
    _refuse_different_images(runs, datasets, parts)
    drawn = max(samples, samples_needed(len(runs)))
    evaluations = [
        evaluate(run, its_dataset, its_part, samples=samples, drawn=drawn, seed=seed, max_detections=max_detections)
        for run, its_dataset, its_part in track(list(zip(runs, datasets, parts, strict=True)), "evaluate")
    ]
    comparisons: dict[str, tuple[Comparison, ...]] = {}
    for table in tables(evaluations):
        for column in table.columns:
            pairs = compare_all(table.evaluations, column.family, column.name)
            comparisons[column.key] = comparisons.get(column.key, ()) + pairs
    ranked = tuple(each for table in tables(evaluations) for each in table.evaluations)
    return Leaderboard(datasets[0].name, " and ".join(dict.fromkeys(parts)), ranked, comparisons)


def _refuse_names(runs: Sequence[Run]) -> None:
    for place, run in enumerate(runs):
        if not run.name.isprintable():
            raise RunError("has a name that cannot be printed", where=repr(str(run.path)), remedy="rename the folder")
        for other in runs[:place]:
            if run.name == other.name:
                raise RunError(
                    "two runs have the same name",
                    where=run.path,
                    found=f"also {other.path}" if run.path != other.path else "the same run twice",
                    remedy="name each run once, and rename one folder of two",
                )


def _refuse_different_images(runs: Sequence[Run], datasets: Sequence[Dataset], parts: Sequence[str]) -> None:
    images = [part_image_ids(*each) for each in zip(runs, datasets, parts, strict=True)]
    for place in range(1, len(runs)):
        alike = datasets[0].annotations_sha256 == datasets[place].annotations_sha256
        for what, first, other in (
            ("images", *(image_ids_sha256(images[i]) for i in (0, place))),
            ("datasets", *("" if alike else truth_sha256(datasets[i], images[i]) for i in (0, place))),
        ):
            if first != other:
                raise RunError(
                    f"runs on different {what} cannot be compared",
                    found=f"{runs[place].path} (part {parts[place]}) sha256 {other}",
                    expected=f"that of {runs[0].path} (part {parts[0]}), sha256 {first}",
                    remedy="evaluate them apart, or name one --part",
                )
