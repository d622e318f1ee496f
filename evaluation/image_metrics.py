"""How well image scores part defective images from good ones.

    family = ImageMetrics(scores, defective, thresholds)
    family.point()["auroc"]

`auroc`, `ap` and `f1_max` look at the order of the scores alone. Where several models judged, each its own images,
`auroc` compares only images that one model judged: pairs of a good and a defective image in which the defective one
scores higher, over all pairs within a model. `ap`, `f1_max` and `auroc_pooled` then go by scores that were brought on
one scale (`maskbridge.fold_ranks`). The rest judge each image by the threshold of its fold: `escape_rate` is the share
of defective images that pass as good (missed defects), `overkill_rate` the share of good images that are called
defective (false alarms).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation import ranking
from evaluation.curves import Curve, image_curves

NAMES = ("auroc", "ap", "f1_max", "accuracy", "precision", "recall", "escape_rate", "overkill_rate")

#: AUROC of all images on one scale, where several models judged them.
POOLED = "auroc_pooled"

#: Numbers held at once while computing samples.
_CHUNK = 1_000_000


class ImageMetrics:
    """Image-level metrics; see `evaluation.intervals.Family`.

    Args:
        scores: N, finite.
        defective: N.
        thresholds: N, the threshold of each image's fold; None where there is none.
        why: Why there is no threshold.
        folds: Which model judged each image, N; by default one judged all.
        one_scale: The scores of all models on one scale, N; by default as they are.

    Attributes:
        names: The metrics; `auroc_pooled` is one only where several models judged.
        called: Whether each image is called defective, N; None where there is no threshold.
    """

    def __init__(
        self,
        scores: npt.NDArray[Any],
        defective: npt.NDArray[np.bool_],
        thresholds: npt.NDArray[Any] | None,
        why: str = "",
        *,
        folds: npt.NDArray[Any] | None = None,
        one_scale: npt.NDArray[Any] | None = None,
    ) -> None:
        """Sort the scores once."""
        self._scores = scores if one_scale is None else one_scale
        self._defective = defective
        every = np.arange(len(scores))
        of_fold = [every] if folds is None else [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
        self._within = [_Sorted.of(scores, rows, defective) for rows in of_fold]
        self._pooled = _Sorted.of(self._scores, every, defective)
        self.names: tuple[str, ...] = NAMES if len(of_fold) < 2 else (NAMES[0], POOLED, *NAMES[1:])
        self.called = None if thresholds is None else scores >= thresholds
        self.whys = self._find_whys(why)
        self.units: Mapping[str, npt.NDArray[np.bool_]] = {
            "recall": defective,
            "escape_rate": defective,
            "overkill_rate": ~defective,
            "precision": defective if self.called is None else self.called,
        }

    def point(self) -> dict[str, float]:
        """Value of each metric."""
        return {name: float(value[0]) for name, value in self.values(np.ones((1, len(self._defective)))).items()}

    def curves(self) -> dict[str, Curve]:
        """`roc` and `pr`, see `evaluation.curves`."""
        return image_curves(self._scores, self._defective)

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric for images counted `weights` times, S x N: S values each."""
        step = max(1, _CHUNK // max(1, len(self._defective)))
        pieces = [self._some(weights[start : start + step]) for start in range(0, len(weights), step)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _some(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        good, bad = self._pooled.counts(weights)
        within = [ranking.wins_and_pairs(*fold.counts(weights)) for fold in self._within]
        wins, pairs = (sum(each) for each in zip(*within, strict=True))
        found = {
            "auroc": ranking.ratio(wins, pairs),
            "ap": ranking.average_precision(good, bad),
            "f1_max": ranking.f1_max(good, bad),
        }
        if POOLED in self.names:
            found[POOLED] = ranking.auroc(good, bad)
        if self.called is not None:
            hits, alarms = (
                weights @ (self.called & self._defective),
                weights @ (self.called & ~self._defective),
            )
            wanted, harmless = bad.sum(axis=1), good.sum(axis=1)
            found["accuracy"] = ranking.ratio(hits + harmless - alarms, wanted + harmless)
            found["precision"] = ranking.ratio(hits, hits + alarms)
            found["recall"] = ranking.ratio(hits, wanted)
            found["escape_rate"] = ranking.ratio(wanted - hits, wanted)
            found["overkill_rate"] = ranking.ratio(alarms, harmless)
        return found

    def _find_whys(self, no_threshold: str) -> dict[str, str]:
        whys: dict[str, str] = {}
        if self.called is None:
            whys |= dict.fromkeys(NAMES[3:], no_threshold)
        elif not self.called.any():
            whys["precision"] = "no image is called defective"
        if not self._defective.any():
            needs = ("auroc", POOLED, "ap", "f1_max", "precision", "recall", "escape_rate")
            whys |= dict.fromkeys(needs, "there is no defective image")
        if self._defective.all():
            whys |= dict.fromkeys(("auroc", POOLED, "overkill_rate"), "there is no good image")
        if "auroc" not in whys and not any(fold.mixed for fold in self._within):
            whys["auroc"] = "no fold has both good and defective images"
        return {name: why for name, why in whys.items() if name in self.names}


@dataclass(frozen=True)
class _Sorted:
    """Some of N images by ascending score.

    Attributes:
        rows: Places of the images, M.
        starts: Where in `rows` a higher score begins, B, the first being 0.
        defective: Whether each is defective, M.
    """

    rows: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    defective: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, scores: npt.NDArray[Any], rows: npt.NDArray[np.intp], defective: npt.NDArray[np.bool_]) -> _Sorted:
        """Sort the images `rows` of N."""
        ordered = rows[np.argsort(scores[rows], kind="stable")]
        ascending = scores[ordered]
        starts = np.flatnonzero(np.append(True, ascending[1:] > ascending[:-1]))  # differences could overflow
        return cls(ordered, starts, defective[ordered])

    @property
    def mixed(self) -> bool:
        """Whether there are good and defective ones."""
        return bool(self.defective.any() and not self.defective.all())

    def counts(self, weights: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Good and defective images of each distinct score, S x B each, for N images counted `weights` times, S x N."""
        mine = weights[:, self.rows]
        good, defective = (
            np.add.reduceat(mine * kind, self.starts, axis=1) for kind in (~self.defective, self.defective)
        )
        return good, defective
