"""One scale for the folds of a merged run: the rank of a value in its fold's `val`.

    ranks = FoldRanks.of(run, dataset)          # of a merged run; None where its values are taken as they are
    ranks["image"]["3"](0.83)                   # 0.71: of the scores of fold 3's val 71 % are lower

Models of different folds have different scales. A merged run keeps what they predicted as it is, and each image is
judged by its own fold's thresholds. Where values of several folds must stand in one order (AP, curves, COCO AP, the
slider of the report), every kind of value, given or derived, is mapped by one rule: scores of images, pixels of maps
at the size of the image, and confidences of detections, each by the fold's `val`.

The rank of a value that `val` has is the share of `val`'s values that are lower, and half of those that are equal.
Between distinct values of `val` it is linear, beyond them it goes on with the slope of their whole range, so that it
grows everywhere and no order within a fold is changed. Where `val` has one distinct value there is no slope, and values
are only shifted; where it has none they are left as they are. Both are told. A million pixels and more are ranked by
the bins of `maskbridge.pixel_counts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from maskbridge.dataset import Dataset
from maskbridge.derive import PredictionView
from maskbridge.errors import RunError
from maskbridge.pixel_counts import PixelCounts
from maskbridge.predictions import Run

Kind = Literal["image", "pixel", "detection"]

#: Kinds of values, as those of thresholds.
KINDS: tuple[Kind, ...] = ("image", "pixel", "detection")

#: What stands in run.json of a run whose values are mapped so. Values of other merged runs are taken as they are.
RULE = (
    "rank in the fold's val, linear between distinct values and beyond them with the slope of their whole range; "
    "image scores, pixels and confidences each by their own kind"
)

#: Why a mapping is not one to ranks, by the number of distinct values of `val`.
_WHYS = {0: "val has no such value: left as they are", 1: "all values of val are equal: only shifted"}

_MOST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, eq=False)
class Rank:
    """x -> its rank among values of `val`, as the module says.

    Attributes:
        values: Distinct values, V, float64, ascending.
        ranks: Their ranks, V, in (0, 1).
        count: Number of values, equal ones counted apart.
    """

    values: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.float64]
    count: int

    @classmethod
    def among(cls, values: npt.ArrayLike, times: npt.ArrayLike | None = None) -> Rank:
        """Rank among values that occur `times` times each, once by default."""
        numbers = np.asarray(values, np.float64)
        distinct, place = np.unique(numbers, return_inverse=True)
        counts = np.bincount(place, None if times is None else np.asarray(times, np.float64), minlength=len(distinct))
        total = counts.sum()
        return cls(distinct, (np.cumsum(counts) - counts / 2) / max(total, 1), int(total))

    def __call__(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Rank of each value; of two values the lower never gets the higher rank."""
        numbers = np.asarray(values, np.float64)
        knots, ranks = self.values, self.ranks
        if not len(knots):
            return numbers
        if len(knots) == 1:
            shifted: npt.NDArray[np.float64] = np.clip(numbers - knots[0], -_MOST, _MOST) + ranks[0]
            return shifted
        # Halves, so that the distance of two finite numbers is finite.
        halves, halved = knots / 2, numbers / 2
        left = np.clip(np.searchsorted(knots, numbers, side="right") - 1, 0, len(knots) - 2)
        with np.errstate(over="ignore", divide="ignore"):
            gap = halves[left + 1] - halves[left]
            share = np.divide(halved - halves[left], gap, out=np.zeros_like(gap), where=gap > 0).clip(0, 1)
            inside = np.minimum(ranks[left] + share * (ranks[left + 1] - ranks[left]), ranks[left + 1])
            slope = min(_MOST, (ranks[-1] - ranks[0]) / (halves[-1] - halves[0]))
            beyond = (halved - np.clip(halved, halves[0], halves[-1])) * slope
            found: npt.NDArray[np.float64] = np.clip(inside + beyond, -_MOST, _MOST)
        return found

    def to_json(self) -> dict[str, Any]:
        """What run.json and metrics.json say of it."""
        told: dict[str, Any] = {"values": self.count, "distinct": len(self.values)}
        if len(self.values):
            told |= {"low": float(self.values[0]), "high": float(self.values[-1])}
        why = _WHYS.get(len(self.values))
        return told if why is None else {**told, "note": why}


class FoldRanks:
    """By kind and fold the mapping of a merged run's values; read from the folds' `val` when it is asked for.

    Args:
        folds: The runs of the folds, with predictions of `val`.
        dataset: Their dataset.
    """

    def __init__(self, folds: Sequence[Run], dataset: Dataset) -> None:
        """Remember where to look; nothing is read yet."""
        self._folds, self._dataset = folds, dataset
        self._found: dict[Kind, dict[str, Rank]] = {}

    @classmethod
    def of(cls, run: Run, dataset: Dataset) -> FoldRanks | None:
        """Of a merged run; None where its run.json does not say that its values are to be mapped so.

        Raises:
            RunError: As `fold_runs`.
        """
        told = run.info.get("mapping")
        if not isinstance(told, dict) or told.get("rule") != RULE:
            return None
        return cls(fold_runs(run, dataset), dataset)

    def __getitem__(self, kind: Kind) -> Mapping[str, Rank]:
        """By fold, as a key of the thresholds, how values of a kind are mapped."""
        if kind not in self._found:
            self._found[kind] = {str(run.info["fold"]): _fit(view, kind) for run, view in self._views}
        return self._found[kind]

    def to_json(self, kinds: Sequence[Kind] = KINDS) -> dict[str, Any]:
        """The rule and, by kind and fold, what it was fitted on."""
        return {"rule": RULE, **{kind: {fold: rank.to_json() for fold, rank in self[kind].items()} for kind in kinds}}

    @cached_property
    def _views(self) -> list[tuple[Run, PredictionView]]:
        return [(run, PredictionView(run, self._dataset, "val")) for run in self._folds]


def fold_runs(run: Run, dataset: Dataset) -> list[Run]:
    """The runs that a merged run was made of, one of each fold.

    Raises:
        RunError: When the run of a fold is missing or named twice, or is of another approach or dataset.
    """
    where, names = run.path / "run.json", run.info.get("folds")
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError("is of all folds, but names none of them", where=where, remedy="predict with the runs of folds")
    runs = [Run.open(run.path / name) for name in names]
    found, expected = [fold.info["fold"] for fold in runs], list(range(dataset.fold_count))
    if sorted(found, key=str) != sorted(expected, key=str):
        raise RunError("is not of each fold once", where=where, found=f"folds {found}", expected=f"{expected}")
    for fold in runs:
        if fold.info["approach"] != run.info["approach"]:
            raise RunError(
                "is of another approach than the merged run",
                where=fold.path,
                found=fold.info["approach"],
                expected=run.info["approach"],
            )
        for name in ("annotations_sha256", "splits_sha256"):
            if fold.info["dataset"][name] != run.info["dataset"][name]:
                raise RunError("is on another dataset than the merged run", where=fold.path, found=fold.info["dataset"])
    return runs


def mapped(ranks: Mapping[str, Rank] | None, folds: Sequence[str], values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Values on one scale.

    Args:
        ranks: By fold; None where the values are on one scale as they are.
        folds: Fold of each value, N.
        values: N.
    """
    numbers = np.array(values, np.float64)
    of_fold = np.asarray(folds, str)
    for fold, rank in (ranks or {}).items():
        mine = of_fold == fold
        numbers[mine] = rank(numbers[mine])
    return numbers


def _fit(view: PredictionView, kind: Kind) -> Rank:
    if not view.image_ids:
        return Rank.among([])
    if kind == "image":
        return Rank.among(list((view.scores().value or {}).values()))
    if kind == "detection":
        return Rank.among([result["score"] for result in view.detections().value or ()])
    maps = view.maps().value
    if maps is None:
        return Rank.among([])
    sizes = {image_id: view.dataset.image_by_id[image_id].size_hw for image_id in view.image_ids}
    counts = PixelCounts.laid_out(maps, sizes)
    for image_id, size_hw in sizes.items():
        counts.add(maps(image_id), np.zeros(size_hw, np.uint8), where=f"{view.run.path}, map of image {image_id}")
    filled = np.flatnonzero(counts.good)
    return Rank.among(counts.lower[filled], counts.good[filled])
