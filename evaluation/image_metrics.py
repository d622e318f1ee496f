"""How well image scores part defective images from good ones.

    family = ImageMetrics(scores, defective, thresholds)
    family.point()["auroc"]

`auroc`, `ap` and `f1_max` look at the order of the scores alone; the rest judge each image by the threshold
of its fold: `escape_rate` is the share of defective images that pass as good (missed defects), `overkill_rate` the
share of good images that are called defective (false alarms).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation import ranking
from evaluation.curves import Curve, image_curves

NAMES = ("auroc", "ap", "f1_max", "accuracy", "precision", "recall", "escape_rate", "overkill_rate")

#: Numbers held at once while computing samples.
_CHUNK = 1_000_000


class ImageMetrics:
    """Image-level metrics; see `evaluation.intervals.Family`.

    Args:
        scores: N, finite.
        defective: N.
        thresholds: N, the threshold of each image's fold; None where there is none.
        why: Why there is no threshold.

    Attributes:
        called: Whether each image is called defective, N; None where there is no threshold.
    """

    names = NAMES

    def __init__(
        self,
        scores: npt.NDArray[Any],
        defective: npt.NDArray[np.bool_],
        thresholds: npt.NDArray[Any] | None,
        why: str = "",
    ) -> None:
        """Sort the scores once."""
        self._values, self._place = np.unique(scores, return_inverse=True)
        self._scores = scores
        self._defective = defective
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
        return {name: float(value[0]) for name, value in self.values(np.ones((1, len(self._place)))).items()}

    def curves(self) -> dict[str, Curve]:
        """`roc` and `pr`, see `evaluation.curves`."""
        return image_curves(self._scores, self._defective)

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric for images counted `weights` times, S x N: S values each."""
        step = max(1, _CHUNK // max(1, len(self._place)))
        pieces = [self._some(weights[start : start + step]) for start in range(0, len(weights), step)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _some(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        order = np.argsort(self._place, kind="stable")
        starts = np.searchsorted(self._place[order], np.arange(len(self._values)))
        bad = np.add.reduceat((weights * self._defective)[:, order], starts, axis=1)
        good = np.add.reduceat((weights * ~self._defective)[:, order], starts, axis=1)
        found = {
            "auroc": ranking.auroc(good, bad),
            "ap": ranking.average_precision(good, bad),
            "f1_max": ranking.f1_max(good, bad),
        }
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
            needs = ("auroc", "ap", "f1_max", "precision", "recall", "escape_rate")
            whys |= dict.fromkeys(needs, "there is no defective image")
        if self._defective.all():
            whys |= dict.fromkeys(("auroc", "overkill_rate"), "there is no good image")
        return whys
