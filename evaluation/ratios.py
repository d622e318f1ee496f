"""Metrics that are a sum over images divided by another, such as a share of defects or a mean over them.

family = Ratios(["found"], parts=np.array([[1], [0]]), wholes=np.array([[1], [2]]), why="there is no defect")
family.point()      # {"found": 0.333…}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.ranking import ratio


class Ratios:
    """One ratio of sums over N images for each name; see `evaluation.intervals.Family`.

    Args:
        names: The K metrics.
        parts: What each image adds to the numerators, N x K.
        wholes: What it adds to the denominators, N x K.
        why: Why a metric whose denominator is zero has no value.
    """

    def __init__(self, names: Sequence[str], parts: npt.NDArray[Any], wholes: npt.NDArray[Any], *, why: str) -> None:
        """Keep the summands."""
        self.names = tuple(names)
        self._parts, self._wholes = parts.astype(np.float64), wholes.astype(np.float64)
        self.units: Mapping[str, npt.NDArray[np.bool_]] = {
            name: wholes[:, place] > 0 for place, name in enumerate(names)
        }
        self.whys = {name: why for name in names if not self.units[name].any()}

    def point(self) -> dict[str, float]:
        """Value of each metric."""
        return {name: float(value[0]) for name, value in self.values(np.ones((1, len(self._parts)))).items()}

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric for images counted `weights` times, S x N: S values each."""
        values = ratio(weights @ self._parts, weights @ self._wholes)
        return {name: values[:, place] for place, name in enumerate(self.names)}
