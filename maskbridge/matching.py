"""Which detection finds which defect: the greedy matching of the COCO evaluation, for all images at once.

    pairs = box_pairs(detected_boxes, detected_units, true_boxes, true_units, least=0.5)
    rank = ranks(scores, detected_units)
    found = match(pairs, rank, np.array([0.5]))         # 1 x D: index of the defect found, -1 for none

A unit is what is matched by itself: an image, or the defects of one type in an image. Source: `COCOeval.evaluateImg`
and `maskApi.c` of https://github.com/cocodataset/cocoapi, for ground truth without crowds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskbridge import geometry
from maskbridge.geometry import RLE

Indices = npt.NDArray[np.int64]

#: Pairs looked at together.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Pairs:
    """Detections and defects of the same unit that overlap.

    Attributes:
        detected: Index of the detection, P.
        true: Index of the defect, P.
        iou: Intersection over union, P, float64, in (0, 1].
    """

    detected: Indices
    true: Indices
    iou: npt.NDArray[np.float64]


def box_pairs(
    detected: npt.NDArray[np.float64],
    detected_units: Indices,
    true: npt.NDArray[np.float64],
    true_units: Indices,
    least: float,
) -> Pairs:
    """Pairs of boxes with an intersection over union of at least `least`.

    Args:
        detected: D x 4, left, top, width, height in pixels.
        detected_units: D.
        true: G x 4.
        true_units: G.
        least: Above 0.
    """
    order = np.argsort(true_units, kind="stable")
    first = np.searchsorted(true_units[order], detected_units, "left")
    counts = np.searchsorted(true_units[order], detected_units, "right") - first
    ends = np.cumsum(counts)
    pieces = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        some = counts[start:stop]
        rows = np.repeat(np.arange(start, stop), some)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(some) - some, some)
        pieces.append(_overlapping(detected, true, rows, order[first[rows] + within], least))
        start = stop
    return Pairs(*(np.concatenate([getattr(p, name) for p in pieces]) for name in ("detected", "true", "iou")))


def mask_pairs(
    detected: Sequence[RLE], detected_units: Indices, true: Sequence[RLE], true_units: Indices, least: float
) -> Pairs:
    """Pairs of masks with an intersection over union of at least `least`; as `box_pairs`."""
    rows: list[Indices] = [np.zeros(0, np.int64)]
    columns: list[Indices] = [np.zeros(0, np.int64)]
    overlaps: list[npt.NDArray[np.float64]] = [np.zeros(0)]
    of_unit = _indices_by_unit(true_units)
    for unit, mine in _indices_by_unit(detected_units).items():
        theirs = of_unit.get(unit)
        if theirs is None:
            continue
        masks = [[geometry.packed(rles[i]) for i in some] for rles, some in ((detected, mine), (true, theirs))]
        iou = np.asarray(coco_mask.iou(*masks, [0] * len(theirs)), np.float64)
        row, column = np.nonzero(iou >= least)
        rows.append(mine[row])
        columns.append(theirs[column])
        overlaps.append(iou[row, column])
    return Pairs(np.concatenate(rows), np.concatenate(columns), np.concatenate(overlaps))


def ranks(scores: npt.NDArray[np.float64], units: Indices) -> Indices:
    """Place of each detection among those of its unit, D: 0 for the surest; of equals the first comes first."""
    order = np.lexsort((-scores, units))
    starts = np.flatnonzero(np.diff(units[order], prepend=units[order[:1]] - 1))
    lengths = np.diff(np.append(starts, len(order)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return rank


def match(
    pairs: Pairs,
    rank: Indices,
    iou_thresholds: npt.NDArray[np.float64],
    ignored: npt.NDArray[np.bool_] | None = None,
) -> Indices:
    """Give each detection, surest first, the free defect it overlaps most.

    Args:
        pairs: Detections and defects that overlap.
        rank: D, as `ranks` gives it.
        iou_thresholds: T, the smallest overlap that counts.
        ignored: G, defects that are taken only where no other is free; none by default.

    Returns:
        T x D, index of the defect that the detection found, -1 for none. Of defects overlapped equally the last is
        taken, as in COCO.
    """
    found = np.full((len(iou_thresholds), len(rank)), -1, np.int64)
    if not len(pairs.iou):
        return found
    wanted = np.zeros(len(pairs.true), bool) if ignored is None else ~ignored[pairs.true]
    # The best pair of a detection is its last; detections of one rank are of different units and do not compete.
    order = np.lexsort((pairs.true, pairs.iou, wanted, pairs.detected, rank[pairs.detected]))
    detected, true, iou = pairs.detected[order], pairs.true[order], pairs.iou[order]
    enough = iou >= np.minimum(iou_thresholds, 1 - 1e-10)[:, None]
    free = np.ones((len(iou_thresholds), int(true.max()) + 1), bool)
    starts = np.flatnonzero(np.diff(rank[detected], prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], len(order)), strict=True):
        some = slice(start, stop)
        places = np.where(enough[:, some] & free[:, true[some]], np.arange(start, stop), -1)
        firsts = np.flatnonzero(np.diff(detected[some], prepend=-1))
        best = np.maximum.reduceat(places, firsts, axis=1)
        row, column = np.nonzero(best >= 0)
        chosen = best[row, column]
        found[row, detected[chosen]] = true[chosen]
        free[row, true[chosen]] = False
    return found


def _overlapping(
    detected: npt.NDArray[np.float64], true: npt.NDArray[np.float64], rows: Indices, columns: Indices, least: float
) -> Pairs:
    """Those of the pairs `rows`, `columns` that overlap enough; most part at the first axis."""
    shared = np.ones(len(rows))
    for near, extent in ((0, 2), (1, 3)):
        ends = [boxes[:, near] + boxes[:, extent] for boxes in (detected, true)]
        width = np.minimum(ends[0][rows], ends[1][columns]) - np.maximum(detected[rows, near], true[columns, near])
        kept = width > 0
        rows, columns, shared = rows[kept], columns[kept], shared[kept] * width[kept]
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (detected, true)]
    iou = shared / (areas[0][rows] + areas[1][columns] - shared)
    enough = iou >= least
    return Pairs(rows[enough], columns[enough], iou[enough])


def _indices_by_unit(units: Indices) -> dict[int, Indices]:
    """Indices of each unit, ascending."""
    order = np.argsort(units, kind="stable")
    names, starts = np.unique(units[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
