"""How much of each defect type is found: shares that need no defect type from the approach.

    recall_by_type(dataset, image_ids, called)          # images of the type that are called defective
    detection_rate_by_type(dataset, image_ids, results, thresholds)     # defects of the type that are found

A defect is found by a detection at or above the detection threshold of its image's fold whose box overlaps it by an
IoU of at least .5, whatever type that names; surer detections choose first, and each finds one defect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evaluation.ratios import Ratios
from maskbridge.dataset import Dataset
from maskbridge.matching import box_pairs, match, ranks
from maskbridge.predictions import Result
from maskbridge.thresholds import DETECTION_IOU

_NONE_WANTED = "there is none of this type"


def recall_by_type(dataset: Dataset, image_ids: Sequence[int], called: npt.NDArray[np.bool_]) -> Ratios:
    """Share of the images of each defect type that are called defective.

    Args:
        dataset: The dataset.
        image_ids: N images.
        called: Whether each is called defective, N.
    """
    names = [category["name"] for category in dataset.categories]
    types = [dataset.image_by_id[image_id].defect_type for image_id in image_ids]
    wanted = np.array([[kind == name for name in names] for kind in types], bool).reshape(len(types), len(names))
    return Ratios(names, wanted & called[:, None], wanted, why=_NONE_WANTED)


def detection_rate_by_type(
    dataset: Dataset, image_ids: Sequence[int], results: Sequence[Result], thresholds: Mapping[int, float]
) -> Ratios:
    """Share of the defects of each type that are found.

    Args:
        dataset: The dataset.
        image_ids: N images.
        results: COCO results of these images.
        thresholds: Detection threshold by image id.
    """
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    of_id = {category["id"]: place for place, category in enumerate(dataset.categories)}
    truth = [a for image_id in image_ids for a in dataset.annotations_by_image[image_id]]
    sure = [r for r in results if r["score"] >= thresholds[r["image_id"]]]
    units, true_units = (np.array([places[e["image_id"]] for e in some], np.int64) for some in (sure, truth))
    boxes, true_boxes = (np.array([e["bbox"] for e in some], np.float64).reshape(-1, 4) for some in (sure, truth))
    types = np.array([of_id[annotation["category_id"]] for annotation in truth], np.int64)
    pairs = box_pairs(boxes, units, true_boxes, true_units, DETECTION_IOU)
    scores = np.array([result["score"] for result in sure], np.float64)
    matched = match(pairs, ranks(scores, units), np.array([DETECTION_IOU]))[0]
    hits = matched[matched >= 0]
    wanted, found = (np.zeros((len(image_ids), len(of_id)), np.int64) for _ in range(2))
    np.add.at(wanted, (true_units, types), 1)
    np.add.at(found, (true_units[hits], types[hits]), 1)
    return Ratios([category["name"] for category in dataset.categories], found, wanted, why=_NONE_WANTED)
