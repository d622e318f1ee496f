"""A leaderboard as Markdown: tables of runs, who beats whom, the spread over folds and over seeds.

markdown("bottle", "crossval", tables(evaluations), comparisons)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.columns import COSTS, SCORE_MARK, Column, short
from evaluation.comparison import Comparison
from evaluation.metrics import Evaluation
from evaluation.tables import Table
from maskbridge.official import leak_note

#: What stands in a cell without a value.
ABSENT = "-"

NOTES = (
    "\\* derived: follows from other predictions of the run, such as an image score from detections or "
    "detections from the map at the pixel threshold.",
    "Oracle: at the threshold only the truth could choose. Accuracy uses the threshold fitted without the test part.",
    "Box and mask AP ignore the defect type, except where it says by type.",
    "Mask IoU and Dice: mean over all defects, each with the one mask that is assigned to it, 0 without one; false "
    "alarms cost nothing here.",
    "A dash: undefined or not produced; leaderboard.json says why.",
    "Escape rate: share of defective images that pass as good (missed defects). Overkill rate: share of good images "
    "called defective (false alarms).",
    f"{SCORE_MARK} all bootstrap samples agree: score interval, Newcombe's for an AUROC, Wilson's for everything else; "
    "of a difference, one made of those of both runs.",
    "Cross-validated runs: image AUROC, pixel AUROC and AUPRO compare only images that one fold's model judged; AP and "
    "F1max go by ranks in the fold's val.",
    "Start model's finds kept: share of what the start weights found on everyday photographs, asked for the COCO "
    "names, that the fine-tuned model still finds.",
    "Intervals and tests cover the sampling of images, not of trainings.",
)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        run: Name of its folder.
        approach: Name of the approach.
        weights_from: Where its start weights came from.
        truth_given: What of the truth it was given; None where nothing.
        metrics: Content of its metrics.json.
        leak: What a reader has to know of near-duplicates across the official parts it was trained and judged on; None
            where there are none.
    """

    run: str
    approach: str
    weights_from: str
    truth_given: str | None
    metrics: dict[str, Any]
    leak: str | None = None

    @classmethod
    def of(cls, evaluation: Evaluation) -> Row:
        """The row of a run."""
        run = evaluation.run
        weights_from = str(run.info.get("weights_from", "unknown"))
        official = evaluation.dataset.splits["official"] if run.info["fold"] == "official" else None
        leak = leak_note(evaluation.dataset.images, official)
        return cls(run.name, str(run.info["approach"]), weights_from, run.truth_given, evaluation.metrics, leak)

    @property
    def marks(self) -> list[tuple[str, str]]:
        """Mark and note of what makes a figure say less about the approach: start weights, leaks."""
        marks = []
        if re.search(r"^none|: none$", self.weights_from):
            marks.append(("†", "random initialisation: no pretrained weights, or none of the image encoder"))
        if "hash" in self.weights_from:
            marks.append(("‡", "hashed text features instead of a text encoder's"))
        if self.leak is not None:
            marks.append(("§", self.leak))
        return marks

    @property
    def cut_note(self) -> str:
        """What is said where images have more detections than were looked at; empty elsewhere."""
        told = self.metrics["detections"]
        if not told["images_cut"]:
            return ""
        return (
            f"{self.run}: {told['images_cut']} images have more than {told['most_per_image']} detections; box and mask "
            "AP look at the surest alone (--max-detections)."
        )


def markdown(dataset: str, part: str, tables: Sequence[Table], comparisons: dict[str, tuple[Comparison, ...]]) -> str:
    """The tables with their notes.

    Args:
        dataset: Name of the dataset.
        part: Parts the runs are of.
        tables: The runs, best first.
        comparisons: By `family.metric` every pair of runs of a table.
    """
    rows = [Row.of(each) for table in tables for each in table.evaluations]
    counts, spread = rows[0].metrics["images"], rows[0].metrics["intervals"]
    unknown = counts.get("without_mask")
    lines = [
        f"# {_escaped(dataset)}, {part}",
        "",
        f"{counts['good']} good and {counts['defective']} defective images"
        f"{f', {unknown} of these without a mask: judged as images alone' if unknown else ''}. In brackets the 95 % "
        f"interval ({spread['samples']} bootstrap samples of {spread['groups']} groups of images).",
        "",
        *(line for table in tables for line in _table(table, comparisons)),
    ]
    notes = (
        *NOTES,
        *dict.fromkeys(f"{mark} {text}." for row in rows for mark, text in row.marks),
        *(_escaped(row.cut_note) for row in rows if row.cut_note),
    )
    return "\n".join([*lines, *(f"* {note}" for note in notes)]) + "\n"


def seed_spreads(table: Table) -> list[tuple[tuple[str, ...], dict[str, dict[str, float]]]]:
    """Runs that differ by their seed alone: their names, and by `family.metric` of each column `mean` and `sd`."""
    alike: dict[str, list[Evaluation]] = {}
    for each in table.evaluations:
        info = each.run.info
        key = repr([info["approach"], info["options"], info["fold"], info.get("weights_from"), each.part])
        alike.setdefault(key, []).append(each)
    spreads = []
    for group in alike.values():
        if len({each.run.info.get("seed") for each in group}) < 2:
            continue
        columns: dict[str, dict[str, float]] = {}
        for column in table.columns:
            values = [each.metrics[column.family][column.name]["value"] for each in group]
            if None not in values:
                columns[column.key] = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
        spreads.append((tuple(each.run.name for each in group), columns))
    return spreads


def _table(table: Table, comparisons: dict[str, tuple[Comparison, ...]]) -> list[str]:
    """Lines of one table and of what is told about its runs."""
    rows, headline = [Row.of(each) for each in table.evaluations], table.columns[0]
    names = {row.run for row in rows}
    return [
        *([f"## {_escaped(table.title)}", "", _escaped(table.note), ""] if table.title else []),
        *_head(["run", "approach", *(c.heading for c in table.columns), *(c.heading for c in COSTS)]),
        *(_line(_cells(row, table.columns)) for row in rows),
        "",
        *_who_beats_whom(headline, [pair for pair in comparisons[headline.key] if pair.one in names]),
        *_fold_table(rows, table.columns),
        *_seed_table(table),
    ]


def _who_beats_whom(headline: Column, pairs: Sequence[Comparison]) -> list[str]:
    if not pairs:
        return []
    return [
        f"Who beats whom on {headline.heading} (paired bootstrap over groups of images, p-values "
        "corrected for the number of pairs by Holm's method; leaderboard.json has the other columns):",
        "",
        *(f"* {_escaped(pair.sentence)}" for pair in pairs),
        "",
    ]


def _cells(row: Row, columns: Sequence[Column]) -> Iterable[str]:
    yield _escaped(row.run)
    yield _escaped(row.approach) + "".join(f" {mark}" for mark, _ in row.marks)
    for column in columns:
        yield _metric(row.metrics[column.family][column.name])
    for cost in COSTS:
        value = row.metrics["cost"][cost.name]["value"]
        yield ABSENT if value is None else cost.form(value)


def _fold_table(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Lines of the table of means over folds; none where no run was cross-validated."""
    rows = [row for row in rows if "folds" in row.metrics]
    if not rows:
        return []
    lines = ["Mean and standard deviation over the folds:", "", *_head(["run", *(c.heading for c in columns)])]
    for row in rows:
        folds = row.metrics["folds"]
        spreads = (folds.get(column.family, {}).get(column.name, {}) for column in columns)
        lines.append(_line([_escaped(row.run), *(_spread(each) for each in spreads)]))
    return [*lines, ""]


def _seed_table(table: Table) -> list[str]:
    """Lines of the table of means over runs that differ by their seed alone; none where there are no such runs."""
    spreads = seed_spreads(table)
    title = "Mean and standard deviation over seeds, which the intervals do not cover:"
    lines = [title, "", *_head(["runs", *(c.heading for c in table.columns)])]
    for names, columns in spreads:
        cells = (_spread(columns.get(column.key, {})) for column in table.columns)
        lines.append(_line([_escaped(", ".join(names)), *cells]))
    return [*lines, ""] if spreads else []


def _head(headings: Sequence[str]) -> list[str]:
    return [_line(headings), _line(["---"] * len(headings))]


def _spread(folds: dict[str, Any]) -> str:
    if folds.get("mean") is None:
        return ABSENT
    return short(folds["mean"]) + (f" ± {short(folds['sd'])}" if folds["sd"] is not None else "")


def _escaped(name: str) -> str:
    """A name as text of a Markdown cell: no column, no markup."""
    return "".join("\\" + letter if letter in "|\\`*<>" else letter for letter in name)


def _metric(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return ABSENT
    mark = "\\*" if metric["derived"] else ""
    score = SCORE_MARK if "method" in metric else ""
    return f"{short(metric['value'])}{mark} [{short(metric['low'])}, {short(metric['high'])}]{score}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
