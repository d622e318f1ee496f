"""Areas under curves from counts per score bin, many reweighted samples at once.

    auroc(good=np.array([2, 1]), defective=np.array([0, 3]))     # 0.833: three of nine pairs are ties

Every function takes counts (or weights) per bin, `... x B`, ascending score; scores in one bin are tied. It
returns `...` values, NaN where undefined. Nothing is sampled: with one bin per distinct score the values are
exact.

AUROC is the Mann-Whitney statistic with ties halved; average precision the sum over cuts of recall gained
times precision (https://scikit-learn.org/stable/modules/model_evaluation.html); AUPRO as in Bergmann et al.,
"The MVTec Anomaly Detection Dataset", IJCV 129 (2021), https://doi.org/10.1007/s11263-020-01400-4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Values = npt.NDArray[np.float64]


def auroc(good: Array, defective: Array) -> Values:
    """Chance that a defective one scores above a good one; NaN where either is missing."""
    return ratio(*wins_and_pairs(good, defective))


def wins_and_pairs(good: Array, defective: Array) -> tuple[Values, Values]:
    """Pairs of a good and a defective one in which the defective one scores above, ties by half, and all pairs.

    Both can be added up over parts that are not to be compared with each other.
    """
    good, defective = _as_float(good), _as_float(defective)
    below = np.cumsum(good, axis=-1) - good / 2
    return (defective * below).sum(axis=-1), good.sum(axis=-1) * defective.sum(axis=-1)


def average_precision(good: Array, defective: Array) -> Values:
    """Average precision; NaN where nothing is defective."""
    good, defective = _as_float(good)[..., ::-1], _as_float(defective)[..., ::-1]
    found = np.cumsum(defective, axis=-1)
    precision = ratio(found, found + np.cumsum(good, axis=-1))
    return ratio((defective * np.nan_to_num(precision)).sum(axis=-1), found[..., -1])


def f1_max(good: Array, defective: Array) -> Values:
    """Largest F1 of any cut, which only the truth can choose; NaN where nothing is defective."""
    good, defective = _as_float(good)[..., ::-1], _as_float(defective)[..., ::-1]
    found = np.cumsum(defective, axis=-1)
    wanted = found[..., -1]
    best = (2 * found / np.maximum(found + np.cumsum(good, axis=-1) + wanted[..., None], 1e-300)).max(axis=-1)
    return np.where(wanted > 0, best, np.nan)


def aupro(good: Array, regions: Array, limit: float) -> Values:
    """Area under per-region overlap against false-positive rate up to `limit`, divided by `limit`.

    Args:
        good: Good pixels per bin, ... x B.
        regions: Sum over regions of the region's share in the bin, ... x B.
        limit: Largest false-positive rate, in (0, 1]; the curve is cut there by linear interpolation.

    Returns:
        ..., in [0, 1]; NaN where there is no good pixel or no region.
    """
    good, regions = _as_float(good)[..., ::-1], _as_float(regions)[..., ::-1]
    rate = np.cumsum(good, axis=-1)
    overlap = np.cumsum(regions, axis=-1)
    rate = ratio(rate, rate[..., -1:])
    overlap = ratio(overlap, overlap[..., -1:])
    rate_before = np.concatenate([np.zeros_like(rate[..., :1]), rate[..., :-1]], axis=-1)
    overlap_before = np.concatenate([np.zeros_like(overlap[..., :1]), overlap[..., :-1]], axis=-1)
    width = np.minimum(rate, limit) - np.minimum(rate_before, limit)
    kept = np.nan_to_num(ratio(width, rate - rate_before))
    area: Values = (width * (overlap_before + kept * (overlap - overlap_before) / 2)).sum(axis=-1) / limit
    return area


def ratio(part: Array, whole: Array) -> Values:
    """`part / whole`, NaN where `whole` is zero."""
    part, whole = np.broadcast_arrays(_as_float(part), _as_float(whole))
    out = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole != 0)
    return out


def _as_float(values: Array) -> Values:
    return np.asarray(values, dtype=np.float64)
