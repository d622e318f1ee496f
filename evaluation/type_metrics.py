"""How much of each defect type is found, and how many images are called by their type.

    recall_by_type(dataset, image_ids, called)          # images of the type that are called defective
    detection_rate_by_type(dataset, image_ids, results, thresholds)     # defects of the type that are found
    type_recall(dataset, image_ids, types)              # images of the type, good ones too, that are called by it
    TypeMetrics(dataset, image_ids, types)              # the mean of those over the types, and over the images

The first two need no defect type from the approach.

A defect is found by a detection at or above the detection threshold of its image's fold whose box overlaps it by an
IoU of at least .5, whatever type that names; surer detections choose first, and each finds one defect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.ranking import ratio
from evaluation.ratios import Ratios
from maskbridge.dataset import GOOD, Dataset
from maskbridge.matching import box_pairs, match, ranks
from maskbridge.predictions import Result
from maskbridge.thresholds import DETECTION_IOU

TYPE_NAMES = ("macro_recall", "accuracy")
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


def type_recall(dataset: Dataset, image_ids: Sequence[int], types: Mapping[int, str]) -> Ratios:
    """Share of the images of each type, `good` among them, that are called by it.

    Args:
        dataset: The dataset.
        image_ids: N images.
        types: What each is called, by image id.
    """
    names = [GOOD, *(category["name"] for category in dataset.categories)]
    truth = [dataset.image_by_id[image_id].defect_type for image_id in image_ids]
    wanted = np.array([[kind == name for name in names] for kind in truth], bool).reshape(len(truth), len(names))
    right = np.array([types[i] == kind for i, kind in zip(image_ids, truth, strict=True)], bool)
    return Ratios(names, wanted & right[:, None], wanted, why=_NONE_WANTED)


class TypeMetrics:
    """Whether images are called by their type; see `evaluation.intervals.Family`.

    `macro_recall` is the mean of the types' recalls, `good` being a type (balanced accuracy); a type without an image
    in a sample is left out of it. `accuracy` is the share of the images.

    Args:
        dataset: The dataset.
        image_ids: N images.
        types: What each is called, by image id.
    """

    names = TYPE_NAMES

    def __init__(self, dataset: Dataset, image_ids: Sequence[int], types: Mapping[int, str]) -> None:
        """Compare with the truth."""
        self._recall = type_recall(dataset, image_ids, types)
        self._right = np.array([dataset.image_by_id[i].defect_type == types[i] for i in image_ids], np.float64)
        self.whys: Mapping[str, str] = {}
        self.units: Mapping[str, npt.NDArray[np.bool_]] = {}

    def point(self) -> dict[str, float]:
        """Value of each metric."""
        return {name: float(value[0]) for name, value in self.values(np.ones((1, len(self._right)))).items()}

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric for images counted `weights` times, S x N: S values each."""
        each = np.stack(list(self._recall.values(weights).values()))
        there = np.isfinite(each)
        macro = np.where(there, each, 0.0).sum(axis=0) / there.sum(axis=0)
        return {"macro_recall": macro, "accuracy": ratio(weights @ self._right, weights.sum(axis=1))}
