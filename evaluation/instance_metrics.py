"""COCO average precision and recall of detected defects, fast to compute again for reweighted images.

    family = InstanceMetrics(dataset, image_ids, results, by_type=False)
    family.point()["bbox_ap50"]

The same numbers as `pycocotools.cocoeval.COCOeval` with its defaults (all areas, 100 detections per image and
type; https://github.com/cocodataset/cocoapi). Detections are matched once per image; the curves are then
accumulated here, with every image counted as often as it is asked for. Images without a defect count with
their false positives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.ranking import ratio
from maskbridge.dataset import Annotation, Dataset
from maskbridge.errors import RunError
from maskbridge.matching import box_iou, mask_iou, match
from maskbridge.predictions import Result

NAMES = ("bbox_ap", "bbox_ap50", "segm_ap", "segm_ap50", "bbox_ar100")

#: IoU thresholds and recall levels of COCO.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)

#: Detections of one type in one image that are looked at.
MOST_DETECTIONS = 100

#: Numbers held at once while accumulating.
_CHUNK = 20_000_000


@dataclass(frozen=True)
class _Matched:
    """Detections of one type over all images, surest first.

    Attributes:
        image: Place of each detection's image, D.
        matched: Whether it found a defect, T x D.
        wanted: Number of defects of each image, N.
    """

    image: npt.NDArray[np.int64]
    matched: npt.NDArray[np.bool_]
    wanted: npt.NDArray[np.int64]


class InstanceMetrics:
    """Instance-level metrics; see `evaluation.intervals.Family`.

    Args:
        dataset: The dataset.
        image_ids: Images of the part, ascending.
        results: COCO results of these images; may be empty.
        by_type: Whether a detection must name the right defect type; otherwise the type is ignored.

    Raises:
        RunError: When a detection names an unknown type.
    """

    names = NAMES

    def __init__(self, dataset: Dataset, image_ids: Sequence[int], results: Sequence[Result], *, by_type: bool) -> None:
        """Match the detections of every image."""
        types = [category["id"] for category in dataset.categories]
        self.whys: dict[str, str] = {}
        if by_type and any(result["category_id"] is None for result in results):
            self.whys = dict.fromkeys(NAMES, "the detections are of unknown type")
            by_type = False
        unknown = sorted({r["category_id"] for r in results if r["category_id"] is not None} - set(types))
        if unknown:
            raise RunError("a detection names an unknown defect type", found=unknown, expected=types)
        truth = [dataset.annotations_by_image[image_id] for image_id in image_ids]
        found: dict[int, list[Result]] = defaultdict(list)
        for result in results:
            found[result["image_id"]].append(result)
        self.units: Mapping[str, npt.NDArray[np.bool_]] = dict.fromkeys(NAMES, np.array([bool(a) for a in truth]))
        if not any(truth):
            self.whys = dict.fromkeys(NAMES, "there is no defect")
        with_masks = all("segmentation" in result for result in results)
        if not with_masks:
            whys = dict.fromkeys(("segm_ap", "segm_ap50"), "the detections have no masks")
            self.whys = whys | self.whys
        per_image = [(truth[place], found[image_id]) for place, image_id in enumerate(image_ids)]
        kinds = ("bbox", "segm") if with_masks else ("bbox",)
        self._matched = {
            kind: [_match_all(per_image, kind, type_id) for type_id in (types if by_type and types else [None])]
            for kind in kinds
        }

    def point(self) -> dict[str, float]:
        """Value of each metric."""
        image_count = len(next(iter(self.units.values())))
        return {name: float(value[0]) for name, value in self.values(np.ones((1, image_count))).items()}

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric for images counted `weights` times, S x N: S values each."""
        found: dict[str, npt.NDArray[np.float64]] = {}
        for kind, types in self._matched.items():
            curves = [_precision_and_recall(matched, weights) for matched in types]
            precision = np.stack([curve[0] for curve in curves])
            found[f"{kind}_ap"] = _mean_over_types(precision.mean(axis=2))
            found[f"{kind}_ap50"] = _mean_over_types(precision[:, :, 0])
            if kind == "bbox":
                found["bbox_ar100"] = _mean_over_types(np.stack([curve[1] for curve in curves]).mean(axis=2))
        return found


def _match_all(per_image: Sequence[tuple[list[Annotation], list[Result]]], kind: str, type_id: int | None) -> _Matched:
    """Match the detections of one type (None: of all types as one) in every image."""
    image: list[int] = []
    scores: list[float] = []
    matched: list[npt.NDArray[np.bool_]] = [np.zeros((len(IOU_THRESHOLDS), 0), bool)]
    wanted: list[int] = []
    for place, (every_truth, every_result) in enumerate(per_image):
        truth = [a for a in every_truth if type_id is None or a["category_id"] == type_id]
        results = [r for r in every_result if type_id is None or r["category_id"] == type_id]
        results = sorted(results, key=lambda result: -result["score"])[:MOST_DETECTIONS]
        if kind == "bbox":
            overlaps = box_iou([r["bbox"] for r in results], [a["bbox"] for a in truth])
        else:
            overlaps = mask_iou([r["segmentation"] for r in results], [a["segmentation"] for a in truth])
        matched.append(match(overlaps, IOU_THRESHOLDS))
        image += [place] * len(results)
        scores += [result["score"] for result in results]
        wanted.append(len(truth))
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    return _Matched(
        np.asarray(image, np.int64)[order],
        np.concatenate(matched, axis=1)[:, order],
        np.asarray(wanted, np.int64),
    )


def _precision_and_recall(
    matched: _Matched, weights: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean precision over the recall levels, and the recall reached, S x T; NaN where none is wanted."""
    count = len(IOU_THRESHOLDS)
    precision, recall = np.zeros((len(weights), count)), np.zeros((len(weights), count))
    for rows in _chunks(len(weights), max(1, len(matched.image))):
        wanted = weights[rows] @ matched.wanted
        found = np.cumsum(weights[rows][:, matched.image], axis=1)
        for column in range(count):
            hits = np.flatnonzero(matched.matched[column])
            true = np.cumsum(weights[rows][:, matched.image[hits]], axis=1)
            reached = ratio(true, wanted[:, None])
            # What COCO calls the envelope: the best precision at this recall or a higher one. It can only be
            # reached at a detection that finds a defect, so the others need not be looked at.
            best = np.maximum.accumulate((true / (found[:, hits] + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
            best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
            levels = np.stack([np.searchsorted(row, RECALL_LEVELS) for row in reached])
            precision[rows, column] = np.take_along_axis(best, levels, axis=1).mean(axis=1)
            recall[rows, column] = reached[:, -1] if len(hits) else 0.0
        precision[rows][wanted == 0] = np.nan
        recall[rows][wanted == 0] = np.nan
    return precision, recall


def _chunks(samples: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // width)
    return (slice(start, start + step) for start in range(0, samples, step))


def _mean_over_types(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the first axis of what is defined: types without a defect have no say."""
    return ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))
