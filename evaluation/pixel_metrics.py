"""How well anomaly maps part defective pixels from good ones.

    family = PixelMetrics(view, maps)
    family.point()["aupro_30"]

`auroc`, `ap` and `f1_max` are over all pixels of the part, good images included; `aupro_30` and `aupro_05`
are the area under per-region overlap up to a false-positive rate of .30 and .05, over the 8-connected
components of the union of each image's masks; `iou` is that of all pixels at or above the pixel threshold of
the image's fold. Defect images without a mask are left out. Maps are resized bilinearly to the image.

Maps are read one by one and none is kept: once to see where scores crowd, once to count pixels in fine bins, from which
the values come. Where bootstrap samples or folds are asked for, they are read once more, and of each image
`COARSE_BINS` bins are kept that hold about as many pixels each, good and defective ones having equal say. Images are
shared out among the processor's cores; the numbers do not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation import ranking
from evaluation.curves import Curve, pro_curve
from maskbridge.derive import Maps, PredictionView
from maskbridge.geometry import frame, region_shares
from maskbridge.pixel_counts import PixelCounts, resized

NAMES = ("auroc", "ap", "aupro_30", "aupro_05", "f1_max", "iou")

#: Bins of one image.
COARSE_BINS = 2048

#: Bootstrap samples computed at once.
_CHUNK = 100

#: Parts that the images are counted in, whatever the number of cores.
_PARTS = 4


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
        self._view, self._maps = view, maps
        self._thresholds = view.threshold("pixel")
        self._counts = PixelCounts(maps(image_id) for image_id in view.image_ids)
        self._coarse: list[npt.NDArray[np.float64]] = []
        parts = [range(start, len(view.image_ids), _PARTS) for start in range(_PARTS)]
        self._called = np.zeros((len(view.image_ids), 3))
        self._unknown = view.dataset.without_mask  # made once, as the annotations by image, before threads ask for it
        with ThreadPoolExecutor(min(_PARTS, os.cpu_count() or 1)) as pool:
            for counted in pool.map(self._count, parts):
                self._counts += counted
        with_defect = np.array([bool(view.dataset.annotations_by_image[i]) for i in view.image_ids], bool)
        self.units: Mapping[str, npt.NDArray[np.bool_]] = dict.fromkeys(NAMES[1:], with_defect)
        self.whys = self._find_whys(self._thresholds.why)

    def point(self) -> dict[str, float]:
        """Value of each metric, from the fine bins."""
        counts = self._counts
        good, defective, regions = counts.good, counts.defective, counts.regions
        filled = np.flatnonzero((good > 0) | (defective > 0))
        fine = self._curves(good[filled], defective[filled], regions[filled])
        found = {name: float(value) for name, value in fine.items()}
        if self._thresholds.value is not None:
            found["iou"] = float(_iou(self._called.sum(axis=0)))
        return found

    def curves(self) -> dict[str, Curve]:
        """`pro`, see `evaluation.curves`."""
        if "aupro_30" in self.whys:
            return {}
        return {"pro": pro_curve(self._counts.good, self._counts.regions)}

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """S values of each metric for images counted `weights` times, S x N, from the coarse bins."""
        self._coarse = self._coarse or self._count_coarsely()
        good, defective, regions = self._coarse
        pieces: list[dict[str, npt.NDArray[np.float64]]] = []
        for start in range(0, len(weights), _CHUNK):
            some = weights[start : start + _CHUNK]
            piece = self._curves(some @ good, some @ defective, some @ regions)
            if self._thresholds.value is not None:
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

    def _count(self, rows: range) -> PixelCounts:
        """Count the pixels of some of the images, and those called defective."""
        view, counts = self._view, self._counts.empty()
        for row in rows:
            image_id = view.image_ids[row]
            if image_id in self._unknown:
                continue
            mask, where = view.dataset.mask(image_id), f"{view.run.path}, map of image {image_id}"
            full = resized(self._maps(image_id), (mask.shape[0], mask.shape[1]), where=where)
            counts.add(full, mask, where=where)
            if self._thresholds.value is not None:
                above, inside = full >= np.float32(self._thresholds.value[image_id]), frame(mask)
                crop = mask[inside] > 0
                hits = np.count_nonzero(above[inside] & crop)
                self._called[row] = hits, np.count_nonzero(above), np.count_nonzero(crop)
        return counts

    def _count_coarsely(self) -> list[npt.NDArray[np.float64]]:
        """Good, defective and regions of each image in `COARSE_BINS` bins, N x `COARSE_BINS` each."""
        counts = self._counts
        shares = sum(kind / max(1, kind.sum()) for kind in (counts.good, counts.defective)) / 2
        below = np.cumsum(shares) - shares
        places = np.clip(below * COARSE_BINS, 0, COARSE_BINS - 1).astype(np.intp)
        counted = [np.zeros((len(self._view.image_ids), COARSE_BINS)) for _ in range(3)]

        def count(row: int) -> None:
            image_id = self._view.image_ids[row]
            if image_id in self._unknown:
                return
            mask = self._view.dataset.mask(image_id)
            size_hw = (mask.shape[0], mask.shape[1])
            bins = places[counts.bins(resized(self._maps(image_id), size_hw, where=f"image {image_id}"))]
            counted[0][row] = np.bincount(bins, minlength=COARSE_BINS)
            if self._view.dataset.annotations_by_image[image_id]:
                inside = bins[mask.ravel() > 0]
                counted[1][row] = np.bincount(inside, minlength=COARSE_BINS)
                counted[2][row] = np.bincount(inside, weights=region_shares(mask)[0], minlength=COARSE_BINS)
                counted[0][row] -= counted[1][row]

        with ThreadPoolExecutor(min(_PARTS, os.cpu_count() or 1)) as pool:
            list(pool.map(count, range(len(self._view.image_ids))))
        return counted

    def _find_whys(self, no_threshold: str) -> dict[str, str]:
        whys: dict[str, str] = {}
        if self._thresholds.value is None:
            whys["iou"] = no_threshold
        if not self._counts.good.any():
            whys |= dict.fromkeys(("auroc", "aupro_30", "aupro_05"), "there is no good pixel")
        if not self._counts.defective.any():
            whys |= dict.fromkeys(NAMES, "there is no defective pixel")
        return whys


def _iou(called: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IoU from hits, pixels called and pixels defective, ... x 3."""
    hits, above, wanted = np.moveaxis(called, -1, 0)
    return ranking.ratio(hits, above + wanted - hits)
