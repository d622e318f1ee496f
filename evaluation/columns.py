"""What a leaderboard shows, in which order, and what each metric is called.

heading("image", "auroc")          # "image AUROC"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

#: Mark of an interval that is not the bootstrap's.
SCORE_MARK = "°"

#: Metrics of which less is better.
LOWER_IS_BETTER = frozenset({"escape_rate", "overkill_rate"})


@dataclass(frozen=True)
class Column:
    """A metric of the leaderboard.

    Attributes:
        heading: What stands above it.
        family: Family of the metric in metrics.json.
        name: Name of the metric.
    """

    heading: str
    family: str
    name: str

    @property
    def key(self) -> str:
        """`family.name`."""
        return f"{self.family}.{self.name}"


@dataclass(frozen=True)
class Cost:
    """A figure of cost: what stands above it, its key in metrics.json and how it is written."""

    heading: str
    name: str
    form: Callable[[float], str]


_MASK_AP = (
    Column("mask AP", "instance", "segm_ap"),
    Column("mask AP50", "instance", "segm_ap50"),
)
_MASK_OVERLAP = (
    Column("mask IoU", "mask", "iou"),
    Column("mask Dice", "mask", "dice"),
)

#: Of runs that predict from images alone; the first ranks them.
COLUMNS = (
    Column("image AUROC", "image", "auroc"),
    Column("image AP", "image", "ap"),
    Column("image F1max (oracle)", "image", "f1_max"),
    Column("accuracy", "image", "accuracy"),
    Column("escape rate", "image", "escape_rate"),
    Column("overkill rate", "image", "overkill_rate"),
    Column("pixel AUROC", "pixel", "auroc"),
    Column("pixel AP", "pixel", "ap"),
    Column("AUPRO@0.3", "pixel", "aupro_30"),
    Column("AUPRO@0.05", "pixel", "aupro_05"),
    Column("pixel IoU", "pixel", "iou"),
    Column("box AP", "instance", "bbox_ap"),
    Column("box AP50", "instance", "bbox_ap50"),
    *_MASK_AP,
    *_MASK_OVERLAP,
    Column("box AP50 by type", "instance_by_type", "bbox_ap50"),
    Column("macro recall of types", "type", "macro_recall"),
)

#: Of runs that were given truth; the first ranks them.
GIVEN_COLUMNS = (*_MASK_OVERLAP, *_MASK_AP, Column("mask AP75", "instance", "segm_ap75"))

COSTS = (
    Cost("labelled defects", "labelled_defects", lambda count: f"{count:.0f}"),
    Cost("training, s", "train_seconds", lambda seconds: f"{seconds:.0f}"),
    Cost("prediction, ms per image", "predict_ms_per_image", lambda milliseconds: f"{milliseconds:.0f}"),
    Cost("parameters, millions", "parameters", lambda count: f"{count / 1e6:.2f}"),
    Cost("start model's finds kept", "start_finds_kept", lambda share: short(share)),
    Cost("peak memory, MB", "peak_memory_mb", lambda megabytes: f"{megabytes:.0f}"),
)

#: What each column is called, by family and name.
HEADINGS = {(column.family, column.name): column.heading for column in (*COLUMNS, *GIVEN_COLUMNS)}
_FAMILIES = {
    "instance": "{}",
    "instance_by_type": "{} by type",
    "image_recall_by_type": "images called, {}",
    "detection_rate_by_type": "defects found, {}",
    "type": "{} of types",
    "type_recall": "images called by their type, {}",
}
_WORDS = {"bbox": "box", "segm": "mask", "ap": "AP", "f1": "F1", "auroc": "AUROC", "iou": "IoU"}


def heading(family: str, name: str) -> str:
    """What a metric is called in a sentence or a table."""
    if (family, name) in HEADINGS:
        return HEADINGS[family, name]
    if family in ("image_recall_by_type", "detection_rate_by_type", "type_recall"):
        return _FAMILIES[family].format(name)
    plain, low, word, high = re.fullmatch(r"(.+?)(?:_(?:(\d+)|(under|over))_(\d+)px)?", name).groups()  # type: ignore[union-attr]
    words = [_WORDS.get(part, part.upper() if re.fullmatch(r"a[pr]\d+", part) else part) for part in plain.split("_")]
    band = f", {low}–{high} px" if low else f", {word} {high} px" if word else ""
    return _FAMILIES.get(family, family + " {}").format(" ".join(words) + band)


def short(share: float) -> str:
    """Three decimals without the leading zero: `.912`, `1.000`, `-.020`."""
    text = str(Decimal(share).quantize(Decimal("0.001"), ROUND_HALF_UP))  # as a browser rounds, also for .8125
    text = text.removeprefix("-") if float(text) == 0 else text
    return text if abs(float(text)) >= 1 else text.replace("0.", ".", 1)
