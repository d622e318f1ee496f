"""Which detection finds which defect: the greedy matching of the COCO evaluation.

    overlaps = box_iou(detected_boxes, true_boxes)                 # D x G
    matched = match(overlaps, np.array([0.5]))                     # 1 x D, bool

Source: `COCOeval.evaluateImg` of https://github.com/cocodataset/cocoapi, for ground truth without crowds and
without area ranges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskbridge.geometry import RLE


def box_iou(detected: Sequence[Sequence[float]], true: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes [left, top, width, height]: D x G, float64, in [0, 1]."""
    if not len(detected) or not len(true):
        return np.zeros((len(detected), len(true)))
    boxes = [np.asarray(each, np.float64).reshape(-1, 4) for each in (detected, true)]
    return np.asarray(coco_mask.iou(*boxes, [0] * len(true)), np.float64)


def mask_iou(detected: Sequence[RLE], true: Sequence[RLE]) -> npt.NDArray[np.float64]:
    """Intersection over union of masks of one image: D x G, float64, in [0, 1]."""
    if not len(detected) or not len(true):
        return np.zeros((len(detected), len(true)))
    packed = [
        [{"size": list(r["size"]), "counts": r["counts"].encode("ascii")} for r in rles] for rles in (detected, true)
    ]
    return np.asarray(coco_mask.iou(*packed, [0] * len(true)), np.float64)


def match(overlaps: npt.NDArray[np.float64], iou_thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Give each detection, surest first, the free defect it overlaps most.

    Args:
        overlaps: D x G, intersection over union; detections by descending confidence.
        iou_thresholds: T, the smallest overlap that counts.

    Returns:
        T x D, whether the detection found a defect. Of defects overlapped equally the last is taken, as in
        COCO.
    """
    matched = np.zeros((len(iou_thresholds), len(overlaps)), dtype=bool)
    for row, threshold in enumerate(np.minimum(iou_thresholds, 1 - 1e-10)):
        if not overlaps.size:
            break
        free = overlaps.copy()
        for index in np.flatnonzero(overlaps.max(axis=1) >= threshold):
            best = free.shape[1] - 1 - int(np.argmax(free[index, ::-1]))
            if free[index, best] >= threshold:
                matched[row, index] = True
                free[:, best] = -1.0
    return matched
