"""How well anomaly maps part defective pixels from good ones.

    family = PixelMetrics(view, maps)
    family.point()["aupro_30"]

`auroc`, `ap` and `f1_max` are over all pixels of the part, good images included; `aupro_30` and `aupro_05`
are the area under per-region overlap up to a false-positive rate of .30 and .05, over the 8-connected
components of the union of each image's masks; `iou` is that of all pixels at or above the pixel threshold of
the image's fold. Maps are resized bilinearly to the image.

Maps are read one by one, twice, and none is kept: first to lay out fine bins, then to count pixels in them.
The values come from the fine bins. Of each image `COARSE_BINS` bins are kept that hold about as many pixels
each, good and defective ones having equal say; from these come bootstrap samples and folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation import ranking
from maskbridge.derive import Maps, PredictionView
from maskbridge.pixel_counts import Counts, PixelCounts, resized

NAMES = ("auroc", "ap", "aupro_30", "aupro_05", "f1_max", "iou")

#: Bins of one image.
COARSE_BINS = 2048

#: Fine bins that are kept as one of each image until the coarse bins are known.
_MERGE = 32

#: Bootstrap samples computed at once.
_CHUNK = 100


class PixelMetrics:
    """Pixel-level metrics; see `evaluation.intervals.Family`.

    Args:
        view: Predictions of a part.
        maps: Its anomaly map by image id.

    Raises:
        MaskbridgeError: When a map has values that are not finite.
    """

    names = NAMES

    def __init__(self, view: PredictionView, maps: Maps) -> None:
        """Read every map twice and count."""
        thresholds = view.threshold("pixel")
        self._counts = PixelCounts(maps(image_id) for image_id in view.image_ids)
        self._called = None if thresholds.value is None else np.zeros((len(view.image_ids), 3))
        per_image: list[tuple[Counts, ...]] = []
        for row, image_id in enumerate(view.image_ids):
            mask, where = view.dataset.mask(image_id), f"{view.run.path}, map of image {image_id}"
            full = resized(maps(image_id), (mask.shape[0], mask.shape[1]), where=where)
            per_image.append(self._counts.add(full, mask, where=where, merge=_MERGE))
            if self._called is not None and thresholds.value is not None:
                above = full >= np.float32(thresholds.value[image_id])
                hits, wanted = np.count_nonzero(above & (mask > 0)), np.count_nonzero(mask)
                self._called[row] = hits, np.count_nonzero(above), wanted
        self._good, self._defective, self._regions = _coarse(per_image)
        with_defect: npt.NDArray[np.bool_] = self._defective.sum(axis=1) > 0
        self.units: Mapping[str, npt.NDArray[np.bool_]] = dict.fromkeys(NAMES[1:], with_defect)
        self.whys = self._find_whys(thresholds.why)

    def point(self) -> dict[str, float]:
        """Value of each metric, from the fine bins."""
        counts = self._counts
        fine = self._curves(counts.good, counts.defective, counts.regions)
        found = {name: float(value) for name, value in fine.items()}
        if self._called is not None:
            found["iou"] = float(_iou(self._called.sum(axis=0)))
        return found

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """S values of each metric for images counted `weights` times, S x N, from the coarse bins."""
        pieces: list[dict[str, npt.NDArray[np.float64]]] = []
        for start in range(0, len(weights), _CHUNK):
            some = weights[start : start + _CHUNK]
            piece = self._curves(some @ self._good, some @ self._defective, some @ self._regions)
            if self._called is not None:
                piece["iou"] = _iou(some @ self._called)
            pieces.append(piece)
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _curves(
        self, good: npt.NDArray[Any], defective: npt.NDArray[Any], regions: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[np.float64]]:
        return {
            "auroc": ranking.auroc(good, defective),
            "ap": ranking.average_precision(good, defective),
            "aupro_30": ranking.aupro(good, regions, 0.30),
            "aupro_05": ranking.aupro(good, regions, 0.05),
            "f1_max": ranking.f1_max(good, defective),
        }

    def _find_whys(self, no_threshold: str) -> dict[str, str]:
        whys: dict[str, str] = {}
        if self._called is None:
            whys["iou"] = no_threshold
        if not self._good.any():
            whys |= dict.fromkeys(("auroc", "aupro_30", "aupro_05"), "there is no good pixel")
        if not self._defective.any():
            whys |= dict.fromkeys(NAMES, "there is no defective pixel")
        return whys


def _coarse(per_image: Sequence[tuple[Counts, ...]]) -> list[npt.NDArray[np.float64]]:
    """Good, defective and regions of each image in `COARSE_BINS` bins, N x `COARSE_BINS` each."""
    shares = np.zeros(len(per_image[0][0]) if per_image else 0)
    for kind in (0, 1):
        total = np.sum([counts[kind] for counts in per_image], axis=0, dtype=np.float64)
        shares += total / max(1.0, total.sum())
    below = np.cumsum(shares) - shares
    places = np.clip(below / 2 * COARSE_BINS, 0, COARSE_BINS - 1).astype(np.int64)
    return [
        np.stack([np.bincount(places, weights=counts[kind], minlength=COARSE_BINS) for counts in per_image])
        for kind in range(3)
    ]


def _iou(called: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IoU from hits, pixels called and pixels defective, ... x 3."""
    hits, above, wanted = np.moveaxis(called, -1, 0)
    return ranking.ratio(hits, above + wanted - hits)
