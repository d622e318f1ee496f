"""How well predicted masks cover the defects: IoU and Dice of each defect with its mask, mean over all defects.

    mask_overlap(dataset, image_ids, results, thresholds).point()["iou"]

A defect without a mask counts 0. Which mask is whose: those at or above the detection threshold of their image's fold
are assigned one to one within each image so that the summed IoU is largest, whatever type they name. Where the run was
given truth, each defect has its own. A false alarm costs nothing here: AP and the IoU of pixels count it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from evaluation.ratios import Ratios
from maskbridge.dataset import Dataset
from maskbridge.matching import Pairs, mask_pairs
from maskbridge.predictions import Result

NAMES = ("iou", "dice")

_ABOVE_ZERO = float(np.finfo(np.float64).tiny)


def mask_overlap(
    dataset: Dataset, image_ids: Sequence[int], results: Sequence[Result], thresholds: Mapping[int, float] | None
) -> Ratios:
    """Mean IoU and Dice over the defects.

    Args:
        dataset: The dataset.
        image_ids: N images.
        results: COCO results of these images, all with masks.
        thresholds: Detection threshold by image id; None where the results are one for each defect, in the order of
            the images' annotations.
    """
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    truth = [a for image_id in image_ids for a in dataset.annotations_by_image[image_id]]
    images = np.array([places[annotation["image_id"]] for annotation in truth], np.int64)
    if thresholds is None:
        units = true_units = np.arange(len(truth))
    else:
        results = [r for r in results if r["score"] >= thresholds[r["image_id"]]]
        units, true_units = np.array([places[r["image_id"]] for r in results], np.int64), images
    masks, true_masks = ([entry["segmentation"] for entry in some] for some in (results, truth))
    iou = _assigned_iou(mask_pairs(masks, units, true_masks, true_units, _ABOVE_ZERO), true_units)
    sums = np.zeros((len(image_ids), len(NAMES)))
    np.add.at(sums, images, np.stack([iou, 2 * iou / (1 + iou)], axis=1))
    counts = np.bincount(images, minlength=len(image_ids))
    return Ratios(NAMES, sums, np.stack([counts] * len(NAMES), axis=1), why="there is no defect")


def _assigned_iou(pairs: Pairs, true_units: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """IoU of each defect with the mask assigned to it, G; 0 for one without.

    Args:
        pairs: Masks and defects that overlap, those of a unit together.
        true_units: Unit of each defect, G.
    """
    assigned = np.zeros(len(true_units))
    edges = np.flatnonzero(np.diff(true_units[pairs.true])) + 1
    for some in np.split(np.arange(len(pairs.true)), edges):
        masks, row = np.unique(pairs.detected[some], return_inverse=True)
        defects, column = np.unique(pairs.true[some], return_inverse=True)
        iou = np.zeros((len(masks), len(defects)))
        iou[row, column] = pairs.iou[some]
        rows, columns = linear_sum_assignment(iou, maximize=True)
        assigned[defects[columns]] = iou[rows, columns]
    return assigned
