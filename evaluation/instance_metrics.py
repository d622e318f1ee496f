"""COCO average precision and recall of detected defects, fast to compute again for reweighted images.

    family = InstanceMetrics(dataset, image_ids, results, by_type=False)
    family.point()["bbox_ap50"], family.point()["segm_ap_100_1000px"]

The same numbers as `pycocotools.cocoeval.COCOeval` (https://github.com/cocodataset/cocoapi) for every kind (`bbox`,
`segm`): `ap` over IoU .50 to .95, `ap50`, `ap75`, and the average recall with 1, 10 and 100 detections per image (and
type), `ar1`, `ar10`, `ar100`. With another limit than 100 the figures are those of COCO's `maxDets` [1, 10, limit],
and the last recall is named by it. Detections are matched once; the curves are then accumulated here, with every image
counted as often as it is asked for. Images without a defect count with their false positives.

By defect size: `ap`, `ap50` and `ar100` in bands of area, in pixels of the image. COCO's own bands end at 32² and 96²
pixels and call nearly every defect small; these are decades, named by their numbers. As in COCO, defects of other sizes
are not asked for, and neither a detection that finds one of those nor an idle one outside the band counts as false. The
area of a detection is that of its box for boxes and of its mask for masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from evaluation._instances import Instances
from evaluation.ranking import ratio
from maskbridge.dataset import Annotation, Dataset
from maskbridge.errors import RunError
from maskbridge.matching import box_pairs, mask_pairs, match, ranks
from maskbridge.predictions import Result

KINDS = ("bbox", "segm")

#: Why there is no figure of masks.
NO_MASKS = "the detections have no masks"

#: IoU thresholds and recall levels of COCO.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)

#: Detections of one type in one image that COCO looks at, the surest first.
MOST_DETECTIONS = 100

#: Smallest and largest area of a defect in pixels, both inclusive, by name.
Bands = Mapping[str, tuple[float, float]]
BANDS: Bands = {
    "under_100px": (0, np.nextafter(100, 0)),
    "100_1000px": (100, np.nextafter(1000, 0)),
    "1000_10000px": (1000, np.nextafter(10000, 0)),
    "over_10000px": (10000, 1e10),
}
EVERY_SIZE = (0.0, 1e10)

#: Numbers held at once while accumulating.
_CHUNK = 10_000_000

Array = npt.NDArray[Any]


def names(bands: Bands = BANDS, most: int = MOST_DETECTIONS) -> tuple[str, ...]:
    """Names of all metrics, those of all sizes first."""
    recalls = [f"ar{level}" for level in _recall_levels(most)]
    of_all = [f"{kind}_{name}" for kind in KINDS for name in ("ap", "ap50", "ap75", *recalls)]
    by_size = [f"{kind}_{name}_{band}" for kind in KINDS for band in bands for name in ("ap", "ap50", recalls[-1])]
    return (*of_all, *by_size)


class InstanceMetrics:
    """Instance-level metrics; see `evaluation.intervals.Family`.

    Args:
        dataset: The dataset.
        image_ids: Images of the part, ascending.
        results: COCO results of these images; may be empty.
        by_type: Whether a detection must name the right defect type; otherwise the type is ignored.
        no_boxes: Why boxes are not judged; empty where they are.
        bands: Bands of defect area.
        most: Detections of one type in one image that are looked at, the surest first.
        one_scale: Confidences that order detections of different images, one for each result; by default their own.

    Attributes:
        images_cut: Number of images some of whose detections are not looked at.

    Raises:
        RunError: When a detection names an unknown type.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_ids: Sequence[int],
        results: Sequence[Result],
        *,
        by_type: bool,
        no_boxes: str = "",
        bands: Bands = BANDS,
        most: int = MOST_DETECTIONS,
        one_scale: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Match the detections of every image."""
        self.names = names(bands, most)
        self._bands, self._most, self._one_scale = bands, most, one_scale
        self.images_cut = 0
        self._image_count = len(image_ids)
        self._types = [category["id"] for category in dataset.categories]
        self._by_type = by_type and all(result["category_id"] is not None for result in results)
        self._refuse_unknown_types(results)
        places = {image_id: place for place, image_id in enumerate(image_ids)}
        truth = [a for image_id in image_ids for a in dataset.annotations_by_image[image_id]]
        self._true = Instances.of(truth, places, self._types if self._by_type else None)
        no_masks = "" if all("segmentation" in result for result in results) else NO_MASKS
        self.whys, self.units = self._find_whys_and_units(by_type, no_boxes, no_masks)
        self._curves: dict[str, dict[str, list[_Matched]]] = {}
        for kind in (kind for kind, why in zip(KINDS, (no_boxes, no_masks), strict=True) if not why):
            found = Instances.of(results, places, self._types if self._by_type else None, masks=kind == "segm")
            self._curves[kind] = self._match(kind, truth, found)

    def point(self) -> dict[str, float]:
        """Value of each metric."""
        return {name: float(value[0]) for name, value in self.values(np.ones((1, self._image_count))).items()}

    def values(self, weights: Array) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric for images counted `weights` times, S x N: S values each."""
        by_image = np.ascontiguousarray(weights.T, np.float64)
        found: dict[str, npt.NDArray[np.float64]] = {}
        for kind, bands in self._curves.items():
            for band, types in bands.items():
                precision = np.stack([matched.precision(by_image) for matched in types])
                suffix = f"_{band}" if band else ""
                found[f"{kind}_ap{suffix}"] = _mean_over_types(precision.mean(axis=1))
                found[f"{kind}_ap50{suffix}"] = _mean_over_types(precision[:, 0])
                if not band:
                    found[f"{kind}_ap75"] = _mean_over_types(precision[:, 5])
                for most in (self._most,) if band else _recall_levels(self._most):
                    recall = [matched.recall(by_image, most).mean(axis=0) for matched in types]
                    found[f"{kind}_ar{most}{suffix}"] = _mean_over_types(np.stack(recall))
        return found

    def _match(self, kind: str, truth: Sequence[Annotation], found: Instances) -> dict[str, list[_Matched]]:
        """By band (the empty name: every size) the matched detections of each type."""
        true, least = self._true, float(IOU_THRESHOLDS[0])
        rank = ranks(found.scores, found.units)
        # As in COCO: surest first, of equals that of the earlier image, and within an image the earlier one.
        scores = found.scores if self._one_scale is None else self._one_scale
        order = np.lexsort((rank, found.images, -scores, found.types))
        order = order[rank[order] < self._most]
        self.images_cut = len(np.unique(found.images[rank >= self._most]))
        found, rank = found.taken(order), rank[order]
        if kind == "bbox":
            pairs = box_pairs(found.boxes, found.units, true.boxes, true.units, least)
        else:
            pairs = mask_pairs(found.masks, found.units, [a["segmentation"] for a in truth], true.units, least)
        types = np.arange(len(self._types) if self._by_type and self._types else 1)
        edges = np.searchsorted(found.types, np.append(types, len(types)))
        bands: dict[str, list[_Matched]] = {}
        for band, (low, high) in {"": EVERY_SIZE, **self._bands}.items():
            asked = (true.areas >= low) & (true.areas <= high)
            matched = match(pairs, rank, IOU_THRESHOLDS, ~asked)
            hits = np.append(asked, False)[matched]  # -1, nothing found, is the last
            alarms = (matched < 0) & ((found.areas >= low) & (found.areas <= high))
            bands[band] = []
            for place, start, stop in zip(types, edges, edges[1:], strict=False):
                mine = slice(start, stop)
                wanted = np.bincount(true.images[asked & (true.types == place)], minlength=self._image_count)
                bands[band].append(_Matched(found.images[mine], rank[mine], hits[:, mine], alarms[:, mine], wanted))
        return bands

    def _refuse_unknown_types(self, results: Sequence[Result]) -> None:
        unknown = sorted({r["category_id"] for r in results if r["category_id"] is not None} - set(self._types))
        if unknown:
            raise RunError("a detection names an unknown defect type", found=unknown, expected=self._types)

    def _find_whys_and_units(
        self, by_type: bool, no_boxes: str, no_masks: str
    ) -> tuple[dict[str, str], dict[str, npt.NDArray[np.bool_]]]:
        whys: dict[str, str] = {}
        units: dict[str, npt.NDArray[np.bool_]] = {}
        for name in self.names:
            band = next((band for band in self._bands if name.endswith("_" + band)), "")
            low, high = self._bands.get(band, EVERY_SIZE)
            asked = self._true.images[(self._true.areas >= low) & (self._true.areas <= high)]
            units[name] = np.bincount(asked, minlength=self._image_count) > 0
            if name.startswith("bbox") and no_boxes:
                whys[name] = no_boxes
            elif by_type and not self._by_type:
                whys[name] = "the detections are of unknown type"
            elif not len(asked):
                whys[name] = "there is no defect of this size" if band else "there is no defect"
            elif name.startswith("segm") and no_masks:
                whys[name] = no_masks
        return whys, units


@dataclass(frozen=True)
class _Matched:
    """Detections of one type over all images, surest first, against the defects of one band of sizes.

    Attributes:
        images: Place of each detection's image, D.
        rank: Place of each detection among those of its image and type, D.
        hits: Whether it found a defect of the band, T x D.
        alarms: Whether it is a false positive, T x D.
        wanted: Number of defects of each image, N.
    """

    images: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    hits: npt.NDArray[np.bool_]
    alarms: npt.NDArray[np.bool_]
    wanted: npt.NDArray[np.int64]

    def precision(self, by_image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Mean precision over the recall levels, T x S, for weights N x S; NaN where nothing is wanted."""
        precision = np.zeros((len(IOU_THRESHOLDS), by_image.shape[1]))
        for row in range(len(precision)):
            hits = np.flatnonzero(self.hits[row])
            if not len(hits):
                continue
            alarms = np.flatnonzero(self.alarms[row, : hits[-1]])
            # Precision peaks at a hit: only false positives before the last one matter, by the hit they precede.
            edges = np.append(0, np.searchsorted(alarms, hits))
            counts = (np.ones(len(alarms)), self.images[alarms], edges)
            false = sparse.csr_array(counts, shape=(len(hits), len(by_image)))
            for some in _chunks(by_image.shape[1], len(hits)):
                precision[row, some] = _mean_precision(
                    np.cumsum(by_image[self.images[hits], some], axis=0),
                    np.cumsum(false @ by_image[:, some], axis=0),
                    self.wanted @ by_image[:, some],
                )
        precision[:, self.wanted @ by_image == 0] = np.nan
        return precision

    def recall(self, by_image: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
        """Recall reached with the `most` surest detections of each image, T x S; NaN where nothing is wanted."""
        counted = self.hits & (self.rank < most)
        hits = np.stack([np.bincount(self.images[row], minlength=len(by_image)) for row in counted])
        return ratio(hits @ by_image, self.wanted @ by_image)


def _mean_precision(true: Array, false: Array, wanted: Array) -> npt.NDArray[np.float64]:
    """Mean over the recall levels of the best precision at that recall or a higher one.

    Args:
        true: True positives at each hit, H x S.
        false: False positives before it, H x S.
        wanted: Number of defects, S.
    """
    best = np.maximum.accumulate((true / (true + false + np.spacing(1)))[::-1], axis=0)[::-1]
    reached = np.searchsorted(RECALL_LEVELS, ratio(true, wanted), side="right")
    levels = np.diff(reached, axis=0, prepend=0)
    mean: npt.NDArray[np.float64] = (best * levels).sum(axis=0) / len(RECALL_LEVELS)
    return mean


def _recall_levels(most: int) -> tuple[int, ...]:
    """Numbers of detections that recall is told for, ascending, the last being `most`."""
    return (*(level for level in (1, 10) if level < most), most)


def _chunks(samples: int, height: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, height))
    return (slice(start, start + step) for start in range(0, samples, step))


def _mean_over_types(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the first axis of what is defined: types without a defect have no say."""
    return ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))
