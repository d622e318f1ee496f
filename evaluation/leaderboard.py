"""Runs side by side: `leaderboard.md` and `leaderboard.json`.

    board = evaluate_runs([Path("runs/bottle-knn-all"), Path("runs/bottle-sam-all")], out=Path("runs"))
    print(board.markdown())

Only runs on the same images of the same dataset stand in one table; anything else is refused. Sorted by image
AUROC, highest first, runs without one last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import evaluate, run_image_ids_sha256
from maskbridge.dataset import Dataset
from maskbridge.errors import RunError
from maskbridge.files import write_json, write_text
from maskbridge.predictions import Run
from maskbridge.progress import track

#: Heading, family and metric of each column with an interval.
COLUMNS = (
    ("image AUROC", "image", "auroc"),
    ("image AP", "image", "ap"),
    ("image F1max (oracle)", "image", "f1_max"),
    ("accuracy", "image", "accuracy"),
    ("pixel AUROC", "pixel", "auroc"),
    ("AUPRO@0.3", "pixel", "aupro_30"),
    ("box AP", "instance", "bbox_ap"),
    ("box AP50", "instance", "bbox_ap50"),
    ("mask AP", "instance", "segm_ap"),
    ("mask AP50", "instance", "segm_ap50"),
    ("box AP50 by type", "instance_by_type", "bbox_ap50"),
)

#: Heading, key and format of each column of cost.
COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("labelled defects", "labelled_defects", lambda count: f"{count:.0f}"),
    ("training, s", "train_seconds", lambda seconds: f"{seconds:.0f}"),
    ("prediction, ms per image", "predict_ms_per_image", lambda milliseconds: f"{milliseconds:.0f}"),
    ("parameters, millions", "parameters", lambda count: f"{count / 1e6:.2f}"),
    ("peak memory, MB", "peak_memory_mb", lambda megabytes: f"{megabytes:.0f}"),
)

#: What stands in a cell without a value.
ABSENT = "-"

NOTES = (
    "\\* derived: follows from other predictions of the run, such as an image score from detections or "
    "detections from the map at the pixel threshold.",
    "Oracle: at the threshold only the truth could choose. Accuracy uses the threshold fitted without the test part.",
    "Box and mask AP ignore the defect type, except where it says by type.",
    "A dash: undefined or not produced; leaderboard.json says why.",
)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        run: Name of its folder.
        approach: Name of the approach.
        weights_from: Where its start weights came from.
        metrics: Content of its metrics.json.
    """

    run: str
    approach: str
    weights_from: str
    metrics: dict[str, Any]

    @property
    def auroc(self) -> float:
        """Image AUROC; -1 where there is none."""
        value = self.metrics["image"]["auroc"]["value"]
        return -1.0 if value is None else float(value)


@dataclass(frozen=True)
class Leaderboard:
    """Runs on the same images, best first.

    Attributes:
        dataset: Name of the dataset.
        part: Parts the rows are of, usually one.
        rows: The runs.
    """

    dataset: str
    part: str
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        """The table as Markdown, with notes."""
        counts = self.rows[0].metrics["images"]
        spread = self.rows[0].metrics["intervals"]
        headings = ["run", "approach", *(c[0] for c in COLUMNS), *(c[0] for c in COSTS)]
        lines = [
            f"# {self.dataset}, {self.part}",
            "",
            f"{counts['good']} good and {counts['defective']} defective images. In brackets the 95 % "
            f"interval ({spread['samples']} bootstrap samples of {spread['groups']} groups of images).",
            "",
            _line(headings),
            _line(["---"] * len(headings)),
            *(_line(_cells(row)) for row in self.rows),
            "",
            *_fold_table(self.rows),
        ]
        notes = (*NOTES, *dict.fromkeys(note for row in self.rows for _, note in _weight_marks(row)))
        return "\n".join([*lines, *(f"* {note}" for note in notes)]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, with everything of each metrics.json."""
        return {
            "dataset": self.dataset,
            "part": self.part,
            "rows": [
                {"run": r.run, "approach": r.approach, "weights_from": r.weights_from, "metrics": r.metrics}
                for r in self.rows
            ],
        }

    def write(self, folder: Path) -> None:
        """Write `leaderboard.md` and `leaderboard.json` into a folder, each whole or not at all."""
        write_json(folder / "leaderboard.json", self.to_json())
        write_text(folder / "leaderboard.md", self.markdown())


def evaluate_runs(
    run_paths: Sequence[Path],
    part: str | None = None,
    dataset: Path | None = None,
    out: Path | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Leaderboard:
    """Evaluate runs, write each one's metrics.json, and put them side by side.

    Args:
        run_paths: Run folders.
        part: `val`, `test` or `crossval`; by default `crossval` where present, else `test`, of each run.
        dataset: Where the dataset lies; by default where each run.json says.
        out: Folder for `leaderboard.md` and `leaderboard.json`; none are written without it.
        samples: Bootstrap samples.
        seed: Their seed.

    Raises:
        RunError: When there is no run, a run or its predictions do not fit the dataset, or two runs are not
            on the same images; nothing is written then.
    """
    if not run_paths:
        raise RunError("there is no run to evaluate", expected="at least one run folder")
    runs = [Run.open(path) for path in run_paths]
    datasets = [run.dataset(dataset) for run in runs]
    parts = [part or run.default_part() for run in runs]
    _refuse_different_images(runs, datasets, parts)
    rows: list[Row] = []
    for run, its_dataset, its_part in track(list(zip(runs, datasets, parts, strict=True)), "evaluate"):
        metrics = evaluate(run, its_dataset, its_part, samples=samples, seed=seed)
        rows.append(Row(run.name, run.info["approach"], str(run.info.get("weights_from", "unknown")), metrics))
    for run, row in zip(runs, rows, strict=True):
        write_json(run.path / "metrics.json", row.metrics)
    rows.sort(key=lambda row: (-row.auroc, row.run))
    board = Leaderboard(datasets[0].name, " and ".join(dict.fromkeys(parts)), tuple(rows))
    if out is not None:
        board.write(out)
    return board


def _refuse_different_images(runs: Sequence[Run], datasets: Sequence[Dataset], parts: Sequence[str]) -> None:
    for place in range(1, len(runs)):
        for what, first, other in (
            ("datasets", datasets[0].annotations_sha256, datasets[place].annotations_sha256),
            ("images", *(run_image_ids_sha256(runs[i], datasets[i], parts[i]) for i in (0, place))),
        ):
            if first != other:
                raise RunError(
                    f"runs on different {what} cannot be compared",
                    found=f"{runs[place].path} (part {parts[place]}) sha256 {other}",
                    expected=f"that of {runs[0].path} (part {parts[0]}), sha256 {first}",
                    remedy="evaluate them apart, or name one --part",
                )


def _cells(row: Row) -> Iterable[str]:
    yield _name(row)
    yield row.approach + "".join(f" {mark}" for mark, _ in _weight_marks(row))
    for _, family, name in COLUMNS:
        yield _metric(row.metrics[family][name])
    for _, name, form in COSTS:
        value = row.metrics["cost"][name]["value"]
        yield ABSENT if value is None else form(value)


def _fold_table(rows: Sequence[Row]) -> list[str]:
    """Lines of the table of means over folds; none where no run was cross-validated."""
    rows = [row for row in rows if "folds" in row.metrics]
    if not rows:
        return []
    headings = ["run", *(column[0] for column in COLUMNS)]
    lines = [
        "Mean and standard deviation over the folds:",
        "",
        _line(headings),
        _line(["---"] * len(headings)),
    ]
    for row in rows:
        folds = row.metrics["folds"]
        spreads = (folds.get(family, {}).get(name, {}) for _, family, name in COLUMNS)
        lines.append(_line([_name(row), *(_spread(each) for each in spreads)]))
    return [*lines, ""]


def _spread(folds: dict[str, Any]) -> str:
    if folds.get("mean") is None:
        return ABSENT
    return _short(folds["mean"]) + (f" ± {_short(folds['sd'])}" if folds["sd"] is not None else "")


def _name(row: Row) -> str:
    return row.run.replace("|", "\\|")


def _weight_marks(row: Row) -> list[tuple[str, str]]:
    """Mark and note of weights that make a figure say less about the approach."""
    marks = []
    if row.weights_from.startswith("none"):
        marks.append(("†", "† random initialisation: no pretrained weights."))
    if "hash" in row.weights_from:
        marks.append(("‡", "‡ hashed text features instead of a text encoder's."))
    return marks


def _metric(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return ABSENT
    mark = "\\*" if metric["derived"] else ""
    return f"{_short(metric['value'])}{mark} [{_short(metric['low'])}, {_short(metric['high'])}]"


def _short(share: float) -> str:
    return f"{share:.3f}".removeprefix("0") if share < 1 else f"{share:.3f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
