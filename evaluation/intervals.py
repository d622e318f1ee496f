"""95 % intervals by bootstrap over groups of images.

    resampled = Resampling(groups, defective, samples=1000, seed=0)
    metrics, sampled = measure(family, resampled, derived=False)    # {"auroc": {"value", "low", "high", …}, …}, …

Groups of images that belong together (the same part shot again) are drawn with replacement, good groups and
groups with a defect apart, so that every sample has as many of each as the data. A metric is computed again
for each sample by counting each image as often as its group was drawn; samples in which it is undefined are
left out. `low` and `high` are bias-corrected and accelerated percentiles (BCa), which follow a distribution that leans,
as that of an AUROC near 1 does: with z0 from the share of samples below the value (those equal to it by half) and the
acceleration a from leaving out one group, or block of groups, after another within its stratum,

    level(z) = Φ(z0 + (z0 + z) / (1 - a·(z0 + z))),   low and high at z = ∓1.96,

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 14. They are widened to the value itself where
they miss it. `docs/evaluation.md` tells how often such intervals hold the truth.

Where all samples agree, as at AUROC 1.0, the bootstrap knows nothing of the uncertainty, and another interval
is taken and named in `method`. N groups count as N independent observations there.

* `newcombe`, for an AUROC: all θ with (θ̂ - θ)² ≤ z² θ(1-θ)/(mn) · [1 + h·((1-θ)/(2-θ) + θ/(1+θ))], m good
  and n defective groups, h = (m+n)/2 - 1. Method 5 of R. G. Newcombe, "Confidence intervals for an effect
  size measure based on the Mann-Whitney statistic. Part 2", Statistics in Medicine 25 (2006) 559-573. For an AUROC
  within folds, the mean over folds weighted by their m·n pairs, the variance is that of this mean.
* `wilson`, for everything else, as if it were a share p of N groups:
  (p + z²/2N ± z·√(p(1-p)/N + z²/4N²)) / (1 + z²/N). E. B. Wilson, JASA 22 (1927) 209-212.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: 97.5th percentile of the standard normal distribution.
Z = 1.959963984540054

#: Blocks of groups that are left out in turn, of each stratum.
_MOST_BLOCKS = 100

_NORMAL = NormalDist()

#: Metrics that only someone who knows the truth could reach.
ORACLES = frozenset({"f1_max"})

Metric = dict[str, Any]


class Family(Protocol):
    """A family of metrics over N images that can be computed for images counted several times or not at all.

    Attributes:
        names: Metrics, in the order they are written.
        whys: For each metric without a value the reason.
        units: For a metric that rests on some of the images alone which ones, N, bool.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Metrics, in the order they are written."""
        ...

    @property
    def whys(self) -> Mapping[str, str]:
        """For each metric without a value the reason."""
        ...

    @property
    def units(self) -> Mapping[str, npt.NDArray[np.bool_]]:
        """For a metric that rests on some of the images alone which ones."""
        ...

    def point(self) -> dict[str, float]:
        """Value of each metric, every image counted once."""
        ...

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """S values of each metric for images counted `weights` times, S x N; NaN where undefined."""
        ...


class Resampling:
    """How often each image is counted in each bootstrap sample.

    Args:
        groups: Group of each image, N, int.
        defective: Whether each image is defective, N.
        samples: Number of samples of an interval.
        drawn: Number of samples in all, S, for comparisons; at least `samples`, which are the first of them.
        seed: Seed of the draws; the same seed gives the same samples to every run on the same images, and more of
            them begin with the same.
        folds: Which model judged each image, N, for the intervals of an AUROC within models; the draws do not depend
            on it. By default one judged all.

    Attributes:
        samples: Number of samples of an interval.
        weights: S x N, float64, whole numbers.
    """

    def __init__(
        self,
        groups: npt.NDArray[np.int64],
        defective: npt.NDArray[np.bool_],
        *,
        samples: int,
        drawn: int | None = None,
        seed: int,
        folds: npt.NDArray[Any] | None = None,
    ) -> None:
        """Draw the samples."""
        self._folds = np.zeros(len(groups)) if folds is None else folds
        self.samples = samples
        self._groups = groups
        self._defective = defective
        names, place = np.unique(groups, return_inverse=True)
        with_defect = np.bincount(place, weights=defective, minlength=len(names)) > 0
        times = np.zeros((max(samples, drawn or 0), len(names)))
        for number, stratum in enumerate((np.flatnonzero(~with_defect), np.flatnonzero(with_defect))):
            if len(stratum):
                rng = np.random.default_rng([seed, number])
                alike = np.full(len(stratum), 1 / len(stratum))
                times[:, stratum] = rng.multinomial(len(stratum), alike, len(times))
        self.weights: npt.NDArray[np.float64] = times[:, place]
        self._left_out = _left_out(place, with_defect, np.random.default_rng([seed, 2]))

    def group_count(self, images: npt.NDArray[np.bool_]) -> int:
        """Number of groups among some of the images, N."""
        return len(np.unique(self._groups[images]))

    def jackknife(self, family: Family) -> dict[str, tuple[float, float]]:
        """By metric its value as `family.values` has it, and the acceleration of its bootstrap distribution."""
        weights, strata = self._left_out
        every = np.ones((1, weights.shape[1]))
        values = family.values(np.concatenate([every, weights]))
        found: dict[str, tuple[float, float]] = {}
        for name, value in values.items():
            cubes = squares = 0.0
            for stratum in (False, True):
                some = value[1:][strata == stratum]
                pull = np.nan_to_num(np.nanmean(some) - some) if np.isfinite(some).any() else np.zeros(1)
                share = (len(some) - 1) / max(1, len(some))
                cubes += float(np.sum((share * pull) ** 3))
                squares += float(np.sum((share * pull) ** 2))
            found[name] = float(value[0]), cubes / (6 * squares**1.5) if squares > 1e-18 else 0.0
        return found

    def interval(
        self,
        name: str,
        value: float,
        sampled: npt.NDArray[np.float64],
        images: npt.NDArray[np.bool_],
        *,
        acceleration: float = 0.0,
    ) -> Metric:
        """Bounds of one metric: `low`, `high`, and `method` where it is not the bootstrap.

        Args:
            name: Name of the metric.
            value: Its value.
            sampled: Its value in each sample, S, NaN where undefined.
            images: Images it rests on, N.
            acceleration: As `jackknife` gives it.
        """
        defined = sampled[np.isfinite(sampled)]
        if len(defined) and np.ptp(defined) > 1e-12:
            low, high = np.percentile(defined, bca_levels(defined, value, acceleration))
            return {"low": min(max(0.0, float(low)), value), "high": max(min(1.0, float(high)), value)}
        parts = [self._folds == fold for fold in np.unique(self._folds)] if name == "auroc" else [images]
        counts = [
            [self.group_count(images & part & kind) for kind in (~self._defective, self._defective)] for part in parts
        ]
        if name.startswith("auroc") and any(good and bad for good, bad in counts):
            low, high = newcombe(value, *zip(*counts, strict=True))
            return {"low": low, "high": high, "method": "newcombe"}
        low, high = wilson(value, self.group_count(images))
        return {"low": low, "high": high, "method": "wilson"}


def measure(
    family: Family, resampling: Resampling, *, derived: bool
) -> tuple[dict[str, Metric], dict[str, npt.NDArray[np.float64]]]:
    """Every metric of a family with its interval, or the reason why there is none.

    Args:
        family: The metrics.
        resampling: Bootstrap samples of the same images.
        derived: Whether the predictions were derived from others.

    Returns:
        By name `{"value", "low", "high", "derived"}`, with `"oracle": True` where only the truth could choose
        the threshold and `"method"` where the interval is not the bootstrap's; or `{"value": None, "why"}`. And by
        name the value in each sample, S, of those that have one.
    """
    point, sampled, jackknife = family.point(), family.values(resampling.weights), resampling.jackknife(family)
    every = np.ones(resampling.weights.shape[1], dtype=bool)
    measured: dict[str, Metric] = {}
    for name in family.names:
        if name in family.whys:
            measured[name] = {"value": None, "why": family.whys[name]}
            continue
        value = min(1.0, max(0.0, point[name]))
        units = family.units.get(name, every)
        centre, acceleration = jackknife[name]
        sampled[name] = sampled[name] + (value - centre)  # what coarse bins cost the samples of pixels
        some = sampled[name][: resampling.samples]
        bounds = resampling.interval(name, value, some, units, acceleration=acceleration)
        oracle = {"oracle": True} if name in ORACLES else {}
        measured[name] = {"value": value, **bounds, "derived": derived, **oracle}
    return measured, {name: sampled[name] for name in family.names if name not in family.whys}


def bca_levels(sampled: npt.NDArray[np.float64], centre: float, acceleration: float) -> tuple[float, float]:
    """Per cent of the samples at which a 95 % BCa interval ends, as the module says."""
    below = np.count_nonzero(sampled < centre - 1e-12) + np.count_nonzero(np.abs(sampled - centre) <= 1e-12) / 2
    share = min(max(below / len(sampled), 1 / (len(sampled) + 1)), 1 - 1 / (len(sampled) + 1))
    bias = _NORMAL.inv_cdf(share)
    ends = [bias + (bias + z) / max(1e-6, 1 - acceleration * (bias + z)) for z in (-Z, Z)]
    return 100 * _NORMAL.cdf(ends[0]), 100 * _NORMAL.cdf(ends[1])


def newcombe(value: float, good: npt.ArrayLike, defective: npt.ArrayLike) -> tuple[float, float]:
    """Score-type 95 % interval of an AUROC of `good` and `defective` observations, as the module says.

    Args:
        value: The AUROC, within folds where there are several.
        good: Number of good observations, or that of each fold.
        defective: Number of defective ones, likewise; some fold has both.
    """
    good, defective = np.asarray(good, np.float64), np.asarray(defective, np.float64)
    pairs, half = good * defective, (good + defective) / 2 - 1

    def excess(theta: float) -> float:
        spread = pairs * (1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return float((value - theta) ** 2 - Z**2 * theta * (1 - theta) * spread.sum() / pairs.sum() ** 2)

    return _crossing(excess, 0.0, value), _crossing(excess, 1.0, value)


def wilson(value: float, count: int) -> tuple[float, float]:
    """Score 95 % interval of a share `value` of `count` observations, as the module says."""
    centre = value + Z**2 / (2 * count)
    half = Z * math.sqrt(value * (1 - value) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return min(value, max(0.0, (centre - half) / scale)), max(value, min(1.0, (centre + half) / scale))


def _crossing(excess: Callable[[float], float], outer: float, inner: float) -> float:
    """Where `excess` changes sign between `outer`, where it is at least 0, and `inner`, by bisection."""
    if outer == inner:
        return outer
    for _ in range(100):
        middle = (outer + inner) / 2
        if excess(middle) > 0:
            outer = middle
        else:
            inner = middle
    return inner


def _left_out(
    groups: npt.NDArray[np.intp], with_defect: npt.NDArray[np.bool_], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Weights of the images with one group, or block of groups, left out, J x N, and its stratum, J.

    The others of the stratum are raised so that it keeps its size.
    """
    rows: list[npt.NDArray[np.float64]] = []
    strata: list[bool] = []
    for stratum in (False, True):
        members = rng.permutation(np.flatnonzero(with_defect == stratum))
        for block in np.array_split(members, min(len(members), _MOST_BLOCKS)) if len(members) > 1 else ():
            weight = np.ones(len(with_defect))
            weight[members] = len(members) / (len(members) - len(block))
            weight[block] = 0.0
            rows.append(weight[groups])
            strata.append(stratum)
    return np.array(rows).reshape(len(rows), len(groups)), np.array(strata, bool)
