"""Curves of one run, thinned for drawing.

    curves = image_curves(scores, defective)       # {"roc": [(0.0, 0.0), …], "pr": […]}

`roc` is recall of defective images against the share of good images that are called defective; mirrored, escape rate
(1 - y) against overkill rate (x). `pr` is precision against recall, `pro` per-region overlap against the false-positive
rate of pixels, up to .3. Corners of a curve are dropped only where they move it by less than a line's width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Curve = list[tuple[float, float]]

#: Points of a curve at most.
MOST_POINTS = 400

#: Where the false-positive rate of the per-region overlap ends.
PRO_LIMIT = 0.3


def image_curves(scores: npt.NDArray[Any], defective: npt.NDArray[np.bool_]) -> dict[str, Curve]:
    """ROC and precision-recall curve of image scores.

    Args:
        scores: N, finite.
        defective: N.

    Returns:
        `roc` where there are good and defective images, `pr` where there are defective ones.
    """
    values, place = np.unique(scores, return_inverse=True)
    bad = np.bincount(place, weights=defective, minlength=len(values))[::-1].cumsum()
    called = np.bincount(place, minlength=len(values))[::-1].cumsum()
    wanted, harmless = int(defective.sum()), int((~defective).sum())
    curves: dict[str, Curve] = {}
    if wanted and harmless:
        curves["roc"] = thinned(np.append(0, (called - bad) / harmless), np.append(0, bad / wanted))
    if wanted:
        precision = bad / called
        curves["pr"] = thinned(np.append(0, bad / wanted), np.append(precision[0], precision))
    return curves


def pro_curve(good: npt.NDArray[Any], regions: npt.NDArray[Any]) -> Curve:
    """Per-region overlap against the false-positive rate, up to `PRO_LIMIT`.

    Args:
        good: Good pixels per score bin, B, ascending score; one or more in all.
        regions: Sum over regions of the region's share in the bin, B; positive in all.
    """
    rate = np.append(0, np.cumsum(good[::-1], dtype=np.float64) / good.sum())
    overlap = np.append(0, np.cumsum(regions[::-1]) / regions.sum())
    inside = rate < PRO_LIMIT
    at_limit = np.interp(PRO_LIMIT, rate, overlap)
    return thinned(np.append(rate[inside], PRO_LIMIT), np.append(overlap[inside], at_limit))


def thinned(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Curve:
    """At most `MOST_POINTS` points of a curve, evenly spaced along it, without repeats."""
    length = np.append(0, np.cumsum(np.abs(np.diff(x)) / max(np.ptp(x), 1e-12) + np.abs(np.diff(y))))
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS)))
    points = [(round(float(x[i]), 5), round(float(y[i]), 5)) for i in np.clip(kept, 0, len(x) - 1)]
    return list(dict.fromkeys(points))
