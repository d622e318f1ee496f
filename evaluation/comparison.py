"""Which run is better, beyond chance: a paired bootstrap test, corrected for the number of pairs.

    comparison = compare(one, other, "image", "auroc")
    comparison.sentence          # "sam and knn are not distinguishable on 83 images: image AUROC .999 and .974, …"

Both runs are computed again on the same bootstrap samples of images (`evaluation.intervals`), so that what is hard
for both cancels out. `difference` is one minus other, `low` and `high` are the 2.5th and 97.5th percentile of the
sampled differences d; p = 2 · min(#{d ≤ 0} + 1, #{d ≥ 0} + 1) / (S + 1), at most 1, is the smallest level at which the
percentile interval leaves zero out (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and
16; Davison and Hinkley, "Bootstrap Methods and their Application", 1997, chapter 4, for the + 1). Where all d are equal
the bootstrap knows nothing; the interval then comes from those of the two runs, d ± √(…²+…²) (`mover`: Zou and Donner,
Statistics in Medicine 27 (2008) 1693-1702), taken as independent, which is wider than the truth, and p is that of a
normal difference with the half-width towards zero, below .05 when zero is left out.

Among n runs n(n-1)/2 pairs are tested at once; their p-values are raised by S. Holm, "A simple sequentially rejective
multiple test procedure", Scandinavian Journal of Statistics 6 (1979) 65-70. A run beats another when its corrected p is
below .05. All this covers the sampling of images, not of trainings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.columns import HEADINGS, LOWER_IS_BETTER, SCORE_MARK, heading, short
from evaluation.intervals import Metric, Z
from evaluation.metrics import Evaluation

#: Chance of calling a difference where there is none.
LEVEL = 0.05

#: Bootstrap samples for each pair, so that the smallest p can pass Holm's strictest test twice over.
SAMPLES_PER_PAIR = 80


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on one metric.

    Attributes:
        family: Family of the metric.
        metric: Its name.
        one: Name of the first run.
        other: Name of the second.
        difference: Value of the first minus that of the second; None where either has none.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p-value of no difference.
        p_holm: The same, corrected for all pairs that were compared.
        pairs: Number of these pairs.
        method: `bootstrap`, or `mover` where that knows nothing.
        winner: Name of the better run; None where they are not distinguishable.
        sentence: The same in words.
    """

    family: str
    metric: str
    one: str
    other: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    pairs: int = 1
    method: str = "bootstrap"
    winner: str | None = None
    sentence: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def samples_needed(runs: int) -> int:
    """Bootstrap samples with which each pair of so many runs can be told apart after Holm's correction."""
    return SAMPLES_PER_PAIR * (runs * (runs - 1) // 2)


def compare(one: Evaluation, other: Evaluation, family: str, metric: str) -> Comparison:
    """Compare two runs on one metric.

    Args:
        one: The first run.
        other: The second, on the same images with the same bootstrap samples.
        family: Family of the metric.
        metric: Its name.
    """
    return compare_all([one, other], family, metric)[0]


def compare_all(evaluations: Sequence[Evaluation], family: str, metric: str) -> tuple[Comparison, ...]:
    """Compare every pair of runs on one metric, with p-values corrected for the number of pairs (Holm)."""
    pairs = list(itertools.combinations(evaluations, 2))
    raw = [_difference(one, other, family, metric) for one, other in pairs]
    corrected = holm([each.p for each in raw])
    count = sum(each.p is not None for each in raw)
    return tuple(
        _judged(replace(each, p_holm=p, pairs=count), *pair)
        for each, p, pair in zip(raw, corrected, pairs, strict=True)
    )


def compare_every_metric(one: Evaluation, other: Evaluation) -> tuple[Comparison, ...]:
    """Compare two runs on every metric that either has."""
    return tuple(
        compare(one, other, family, metric)
        for family in one.sampled
        for metric in one.metrics[family]
        if any(each.metrics[family].get(metric, {"value": None})["value"] is not None for each in (one, other))
    )


def comparison_text(one: Evaluation, other: Evaluation, comparisons: Sequence[Comparison]) -> str:
    """A table for the terminal, and who beats whom in words.

    Args:
        one: The first run.
        other: The second.
        comparisons: Theirs, as `compare_every_metric` gives them.
    """
    count, spread = len(one.view.image_ids), one.metrics["intervals"]
    rows = [["metric", one.run.name, other.run.name, "difference", "95 % interval", "p", "better"]]
    for c in comparisons:
        values = [each.metrics[c.family].get(c.metric, {"value": None})["value"] for each in (one, other)]
        row = [heading(c.family, c.metric), *("-" if value is None else short(value) for value in values)]
        if c.difference is None or c.low is None or c.high is None or c.p is None:
            rows.append([*row, "-", "-", "-", "-"])
        else:
            interval = f"[{short(c.low)}, {short(c.high)}]{_mark(c)}"
            rows.append(
                [*row, f"{'+' * (c.difference > 0)}{short(c.difference)}", interval, _shown(c.p), c.winner or ""]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    told = [c.sentence for c in comparisons if c.difference is not None and (c.family, c.metric) in HEADINGS]
    whys = {each.run.name: each.view.given_why for each in (one, other) if each.view.given_why}
    return "\n".join(
        [
            f"{one.run.name} and {other.run.name}, {one.part}, on the same {count} images "
            f"({spread['groups']} groups, drawn {spread['samples']} times)",
            "",
            *(line.rstrip() for line in lines),
            "",
            *(
                f"{name}: metrics of images, pixels, boxes and types are undefined; {why}."
                for name, why in whys.items()
            ),
            *told,
            "",
            "Paired bootstrap over groups of images; it covers the sampling of images, not of trainings. p is for each "
            "metric by itself: of so many, one in twenty falls below .05 by chance.",
            *(
                [f"{SCORE_MARK} all bootstrap samples agree: interval made of those of both runs (MOVER)."]
                if any(c.difference is not None and c.method == "mover" for c in comparisons)
                else []
            ),
        ]
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number; None stays None and is not counted."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[place] = highest
    return corrected


def _difference(one: Evaluation, other: Evaluation, family: str, metric: str) -> Comparison:
    first, second = (each.metrics[family].get(metric, {"value": None}) for each in (one, other))
    blank = Comparison(family=family, metric=metric, one=one.run.name, other=other.run.name)
    if first["value"] is None or second["value"] is None:
        return blank
    difference = float(first["value"] - second["value"])
    sampled = one.sampled[family][metric] - other.sampled[family][metric]
    sampled = sampled[np.isfinite(sampled)]
    if not len(sampled) or np.ptp(sampled) < 1e-12:
        low, high = _mover(first, second)
        width = difference - low if difference > 0 else high - difference
        p = 2 * NormalDist().cdf(-Z * abs(difference) / width) if width > 0 else 1.0
        return replace(blank, difference=difference, low=low, high=high, p=p, method="mover")
    low, high = (float(bound) for bound in np.percentile(sampled, [2.5, 97.5]))
    return replace(
        blank, difference=difference, low=min(low, difference), high=max(high, difference), p=p_value(sampled)
    )


def p_value(sampled: npt.NDArray[np.float64]) -> float:
    """How often the sign of the difference is the other one, both sides together."""
    noise = 1e-12
    tail = min(np.count_nonzero(sampled <= noise), np.count_nonzero(sampled >= -noise))
    return min(1.0, 2 * (int(tail) + 1) / (len(sampled) + 1))


def _mover(one: Metric, other: Metric) -> tuple[float, float]:
    difference = one["value"] - other["value"]
    below = math.hypot(one["value"] - one["low"], other["high"] - other["value"])
    above = math.hypot(one["high"] - one["value"], other["value"] - other["low"])
    return difference - below, difference + above


def _judged(comparison: Comparison, one: Evaluation, other: Evaluation) -> Comparison:
    c, what = comparison, heading(comparison.family, comparison.metric)
    values = [each.metrics[c.family].get(c.metric, {"value": None, "why": "unknown"}) for each in (one, other)]
    if c.difference is None or c.low is None or c.high is None or c.p is None or c.p_holm is None:
        gaps = [f"{name}: {v['why']}" for name, v in zip((c.one, c.other), values, strict=True) if v["value"] is None]
        return replace(c, sentence=f"{c.one} and {c.other} cannot be compared on {what} ({'; '.join(gaps)}).")
    figures = (
        f"{what} {short(values[0]['value'])} and {short(values[1]['value'])}, "
        f"difference {short(c.difference)} [{short(c.low)}, {short(c.high)}]{_mark(c)}, p = {_shown(c.p)}"
    )
    if c.pairs > 1:
        figures += f", {_shown(c.p_holm)} corrected for {c.pairs} pairs"
    if c.p_holm >= LEVEL or c.difference == 0:
        count = len(one.view.image_ids)
        return replace(c, sentence=f"{c.one} and {c.other} are not distinguishable on {count} images: {figures}.")
    first_wins = (c.difference > 0) != (c.metric in LOWER_IS_BETTER)
    winner, loser = (c.one, c.other) if first_wins else (c.other, c.one)
    return replace(c, winner=winner, sentence=f"{winner} beats {loser}: {figures}.")


def _mark(comparison: Comparison) -> str:
    return SCORE_MARK if comparison.method == "mover" else ""


def _shown(p: float) -> str:
    return short(p) if p >= 0.001 else "< .001"
