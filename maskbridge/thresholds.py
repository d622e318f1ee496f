"""Where a score becomes a defect: thresholds fitted on `val`, or on good images held back from training.

    thresholds = {"0": fold_thresholds(run, dataset)}              # kept in run.json
    thresholds["0"]["image"]                                        # {"value": 0.61, "rule": "…"}

A score at or above its threshold is called a defect.

**F1-max, midpoint of ties.** Every distinct score is a cut: it and all above it are accepted. The threshold
of a cut is the midpoint between its score, the lowest accepted, and the next lower score, the highest refused
(the score itself where none is lower, or where no number lies between). Of the cuts with the highest F1, it
is the one whose threshold is nearest to the midpoint of the lowest and the highest threshold among them; of
two equally near the lower. The test part is never looked at. A defect image without a mask counts as an image, not by
its pixels and detections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskbridge.dataset import Dataset
from maskbridge.derive import PredictionView
from maskbridge.matching import box_pairs, match, ranks
from maskbridge.pixel_counts import PixelCounts
from maskbridge.predictions import Result, Run

#: Smallest overlap of a detection's box with a defect's box that counts as found.
DETECTION_IOU = 0.5

#: Per cent of the held-back good images' pixels that stay at or below the pixel threshold.
PIXEL_PERCENT = 99.9

Entry = dict[str, Any]


def fold_thresholds(
    run: Run, dataset: Dataset, part: str = "val", image_ids: Sequence[int] | None = None
) -> dict[str, Entry]:
    """Fit the three thresholds of a fold on its `val` predictions, deriving what the approach did not give.

    Args:
        run: A run with predictions of `part`.
        dataset: Its dataset.
        part: The part to fit on.
        image_ids: Its images; by default those of the run's fold.

    Returns:
        `image`, `pixel` and `detection`, each `{"value", "rule"}`, or `{"value": None, "why"}`, as all three of a run
        that was given truth.
    """
    view = PredictionView(run, dataset, part, image_ids=image_ids)
    pixel = _pixel_entry(view)
    fitted = {view.fold(image_id): {"pixel": pixel} for image_id in view.image_ids}
    view = PredictionView(run, dataset, part, image_ids=image_ids, thresholds=fitted)
    return {"image": _image_entry(view), "pixel": pixel, "detection": _detection_entry(view)}


def held_back_thresholds(
    scores: Mapping[int, float], maps: Iterable[npt.NDArray[Any]] | None = None
) -> dict[str, Entry]:
    """Set the thresholds of the official split by good images held back from training.

    Args:
        scores: Image score by image id.
        maps: Anomaly maps h x w, float, of the same images; read once, none is kept.

    Returns:
        As `fold_thresholds`.
    """
    counts = PixelCounts()
    for anomaly_map in maps or ():
        counts.add(anomaly_map, np.zeros(anomaly_map.shape[:2], np.uint8), where="a map held back from training")
    return {
        "image": {
            "value": max(scores.values()),
            "rule": f"largest score of {len(scores)} held-back good images",
        }
        if scores
        else _none("no good image with a score was held back"),
        "pixel": {
            "value": counts.percentile(PIXEL_PERCENT),
            "rule": f"{PIXEL_PERCENT}th percentile of the maps of held-back good images",
        }
        if counts.good.any()
        else _none("no good image with a map was held back"),
        "detection": _none("held-back good images have no defects to find"),
    }


def score_threshold(scores: npt.NDArray[Any], defective: npt.NDArray[np.bool_]) -> float:
    """F1-max threshold of scored images.

    Args:
        scores: N, finite.
        defective: N; at least one is true.
    """
    values, place = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    found = np.bincount(place, weights=defective, minlength=len(values))
    accepted = np.bincount(place, minlength=len(values))
    return _f1_max(found, accepted, int(np.sum(defective)), values, values)


def pixel_threshold(counts: PixelCounts) -> float:
    """F1-max threshold of counted pixels, of which at least one is defective; cuts lie between bins."""
    every = counts.good + counts.defective
    filled = np.flatnonzero(every)
    lower, upper = counts.lower[filled], counts.upper[filled]
    return _f1_max(counts.defective[filled], every[filled], int(counts.defective.sum()), lower, upper)


def detection_threshold(
    results: Sequence[Result], boxes_by_image: Mapping[int, Sequence[Sequence[float]]]
) -> float | None:
    """F1-max confidence of detections, whatever their type, matched greedily by box IoU.

    Args:
        results: COCO results.
        boxes_by_image: True boxes [left, top, width, height] of every image; one or more in all.

    Returns:
        The threshold; None when no detection finds a defect.
    """
    image_ids = [image_id for image_id, boxes in boxes_by_image.items() for _ in boxes]
    true = np.array([box for boxes in boxes_by_image.values() for box in boxes], np.float64).reshape(-1, 4)
    mine = [result for result in results if result["image_id"] in boxes_by_image]
    detected = np.array([result["bbox"] for result in mine], np.float64).reshape(-1, 4)
    units = np.array([result["image_id"] for result in mine], np.int64)
    scores = np.array([result["score"] for result in mine], np.float64)
    pairs = box_pairs(detected, units, true, np.array(image_ids, np.int64), DETECTION_IOU)
    found = match(pairs, ranks(scores, units), np.array([DETECTION_IOU]))[0] >= 0
    if not found.any():
        return None
    values, place = np.unique(scores, return_inverse=True)
    matched = np.bincount(place, weights=found, minlength=len(values))
    accepted = np.bincount(place, minlength=len(values))
    return _f1_max(matched, accepted, len(true), values, values)


def _image_entry(view: PredictionView) -> Entry:
    scores = view.scores()
    defective = np.array([not view.dataset.image_by_id[i].is_good for i in view.image_ids], bool)
    if scores.value is None:
        return _none(scores.why)
    if not defective.any() or defective.all():
        return _none(f"{view.part} has {int(defective.sum())} defective images of {len(defective)}")
    values = np.array([scores.value[i] for i in view.image_ids])
    return {
        "value": score_threshold(values, defective),
        "rule": f"F1-max of image scores on {view.part}, midpoint of ties",
    }


def _pixel_entry(view: PredictionView) -> Entry:
    maps = view.maps()
    if maps.value is None:
        return _none(maps.why)
    sizes = {image_id: view.dataset.image_by_id[image_id].size_hw for image_id in view.image_ids}
    counts = PixelCounts.laid_out(maps.value, sizes)
    for image_id in view.image_ids:
        if image_id in view.dataset.without_mask:
            continue
        counts.add(maps.value(image_id), view.dataset.mask(image_id), where=f"image {image_id}")
    if not counts.defective.sum():
        return _none(f"{view.part} has no defective pixel")
    return {"value": pixel_threshold(counts), "rule": f"F1-max of pixels on {view.part}, midpoint of ties"}


def _detection_entry(view: PredictionView) -> Entry:
    results = view.detections()
    if results.value is None:
        return _none(results.why)
    if view.given_why:
        return _none(view.given_why)
    told = [image_id for image_id in view.image_ids if image_id not in view.dataset.without_mask]
    boxes = {i: [a["bbox"] for a in view.dataset.annotations_by_image[i]] for i in told}
    if not any(boxes.values()):
        return _none(f"{view.part} has no defect")
    threshold = detection_threshold(results.value, boxes)
    if threshold is None:
        return _none(f"no detection finds a defect of {view.part} at IoU {DETECTION_IOU}")
    rule = f"F1-max of detections at box IoU {DETECTION_IOU} on {view.part}, midpoint of ties"
    return {"value": threshold, "rule": rule}


def _none(why: str) -> Entry:
    return {"value": None, "why": why}


def _f1_max(
    found: npt.NDArray[Any],
    accepted: npt.NDArray[Any],
    wanted: int,
    lower: npt.NDArray[Any],
    upper: npt.NDArray[Any],
) -> float:
    """The rule of the module's docstring.

    Args:
        found: Defects among the scores of each cut, C, cuts ascending.
        accepted: Number of scores of each cut, C.
        wanted: Number of defects in all.
        lower: Lowest score of each cut, C.
        upper: Highest score of each cut, C.
    """
    true = np.cumsum(found[::-1])[::-1]
    f1 = 2 * true / (np.cumsum(accepted[::-1])[::-1] + wanted)
    middle = upper[:-1] + (lower[1:] - upper[:-1]) / 2
    between = np.where(middle > upper[:-1], middle, lower[1:])
    thresholds = np.concatenate([lower[:1], between]).astype(np.float64)
    tied = thresholds[f1 == f1.max()]
    return float(tied[np.argmin(np.abs(tied - (tied[0] + tied[-1]) / 2))])
