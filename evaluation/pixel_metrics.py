"""How well anomaly maps part defective pixels from good ones.

    family = PixelMetrics(view, maps)
    family.point()["aupro_30"]

`auroc`, `ap` and `f1_max` are over all pixels of the part, good images included; `aupro_30` and `aupro_05`
are the area under per-region overlap up to a false-positive rate of .30 and .05, over the 8-connected
components of the union of each image's masks; `iou` is that of all pixels at or above the pixel threshold of
the image's fold. Defect images without a mask are left out. Maps are resized bilinearly to the image.

Where several models judged, each its own images, only pixels that one model judged are compared: `auroc` is the mean
over the models weighted by their pairs of a good and a defective pixel, `aupro_30` and `aupro_05` weighted by their
regions. `ap`, `f1_max` and the curve go by pixels that were brought on one scale (`maskbridge.fold_ranks`): bins are
mapped, no map is.

Maps are read one by one and none is kept: once to see which scores there are, once to count pixels in fine bins
(`maskbridge.pixel_counts`), from which the values come. Where bootstrap samples are asked for, they are read once more,
and of each image some `COARSE_BINS` bins are kept that hold about as many pixels each, good and defective ones having
equal say. Images are shared out among the processor's cores; the numbers do not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation import ranking
from evaluation.curves import Curve, pro_curve
from maskbridge.derive import Maps, PredictionView
from maskbridge.fold_ranks import Rank
from maskbridge.geometry import frame, region_shares
from maskbridge.pixel_counts import PixelCounts, resized

NAMES = ("auroc", "ap", "aupro_30", "aupro_05", "f1_max", "iou")

#: Bins of one image; a quarter of them where several models judged, whose bins stand side by side.
COARSE_BINS = 2048

#: Bootstrap samples computed at once.
_CHUNK = 100

#: Parts that the images of a model are counted in, whatever the number of cores.
_PARTS = 4

Array = npt.NDArray[Any]

#: Good pixels, defective pixels and shares of regions in each bin, ... x B, ascending score.
Counted = tuple[Array, Array, Array]


class PixelMetrics:
    """Pixel-level metrics; see `evaluation.intervals.Family`.

    Args:
        view: Predictions of a part.
        maps: Its anomaly map by image id.
        ranks: By fold how scores are brought on one scale; None where they are.

    Raises:
        MaskbridgeError: When a map has values that are not finite.
    """

    names = NAMES

    def __init__(self, view: PredictionView, maps: Maps, ranks: Mapping[str, Rank] | None = None) -> None:
        """Read every map twice and count."""
        self._view, self._maps, self._ranks = view, maps, ranks
        self._thresholds = view.threshold("pixel")
        self._called = np.zeros((len(view.image_ids), 3))
        folds = np.array([view.fold(image_id) for image_id in view.image_ids])
        self._rows = {fold: np.flatnonzero(folds == fold) for fold in sorted(set(folds.tolist()))}
        self._unknown = view.dataset.without_mask  # made once, as the annotations by image, before threads ask for it
        self._counts = {fold: self._count_fold(rows) for fold, rows in self._rows.items()}
        self._fine: list[Counted] = []
        scales: list[npt.NDArray[np.float64]] = []
        for fold, counts in self._counts.items():
            good, defective, regions = counts.good, counts.defective, counts.regions
            filled = np.flatnonzero((good > 0) | (defective > 0))
            self._fine.append((good[filled], defective[filled], regions[filled]))
            scales.append(self._on_one_scale(fold, counts.lower[filled]))
        self._pooled = _one_scale(self._fine, scales)
        self._coarse: list[Counted] = []
        self._coarse_order = np.zeros(0, np.intp)
        with_defect = np.array([bool(view.dataset.annotations_by_image[i]) for i in view.image_ids], bool)
        self.units: Mapping[str, npt.NDArray[np.bool_]] = dict.fromkeys(NAMES[1:], with_defect)
        self.whys = self._find_whys(self._thresholds.why)

    def point(self) -> dict[str, float]:
        """Value of each metric, from the fine bins."""
        return {name: float(value) for name, value in self._values(self._fine, self._pooled, self._called).items()}

    def of_folds(self) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric by each model alone, F, from the fine bins."""
        each = [
            self._values([counted], counted, self._called[rows])
            for counted, rows in zip(self._fine, self._rows.values(), strict=True)
        ]
        return {name: np.array([float(values[name]) for values in each]) for name in each[0]}

    def curves(self) -> dict[str, Curve]:
        """`pro`, see `evaluation.curves`."""
        if "aupro_30" in self.whys:
            return {}
        return {"pro": pro_curve(self._pooled[0], self._pooled[2])}

    def values(self, weights: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
        """S values of each metric for images counted `weights` times, S x N, from the coarse bins."""
        if not self._coarse:
            self._count_coarsely()
        pieces: list[dict[str, npt.NDArray[np.float64]]] = []
        for start in range(0, len(weights), _CHUNK):
            some = weights[start : start + _CHUNK]
            folds: list[Counted] = [
                (some[:, rows] @ good, some[:, rows] @ defective, some[:, rows] @ regions)
                for (good, defective, regions), rows in zip(self._coarse, self._rows.values(), strict=True)
            ]
            good, defective, regions = (
                np.concatenate(kind, axis=1)[:, self._coarse_order] for kind in zip(*folds, strict=True)
            )
            pieces.append(self._values(folds, (good, defective, regions), some[:, :, None] * self._called))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _values(self, folds: Sequence[Counted], pooled: Counted, called: Array) -> dict[str, npt.NDArray[np.float64]]:
        """Value of each metric.

        Args:
            folds: By model.
            pooled: On one scale.
            called: Hits, pixels called and pixels defective of each image, ... x N x 3.
        """
        wins, pairs = (sum(each) for each in zip(*(ranking.wins_and_pairs(g, d) for g, d, _ in folds), strict=True))
        found = {
            "auroc": ranking.ratio(wins, pairs),
            "ap": ranking.average_precision(pooled[0], pooled[1]),
            "aupro_30": _mean_aupro(folds, 0.30),
            "aupro_05": _mean_aupro(folds, 0.05),
            "f1_max": ranking.f1_max(pooled[0], pooled[1]),
        }
        if self._thresholds.value is not None:
            hits, above, wanted = np.moveaxis(called.sum(axis=-2), -1, 0)
            found["iou"] = ranking.ratio(hits, above + wanted - hits)
        return found

    def _on_one_scale(self, fold: str, scores: Array) -> npt.NDArray[np.float64]:
        rank = (self._ranks or {}).get(fold)
        return scores.astype(np.float64) if rank is None else rank(scores)

    def _count_fold(self, rows: Array) -> PixelCounts:
        """Count the pixels of the images that one model judged."""
        view = self._view
        ids = [view.image_ids[row] for row in rows]
        counts = PixelCounts.laid_out(self._maps, {i: view.dataset.image_by_id[i].size_hw for i in ids})
        parts = [rows[start::_PARTS] for start in range(_PARTS)]
        with ThreadPoolExecutor(min(_PARTS, os.cpu_count() or 1)) as pool:
            for counted in pool.map(partial(self._count, counts.empty()), parts):
                counts += counted
        return counts

    def _count(self, layout: PixelCounts, rows: Array) -> PixelCounts:
        """Count the pixels of some of the images, and those called defective."""
        view, counts = self._view, layout.empty()
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

    def _count_coarsely(self) -> None:
        """Count good and defective pixels and regions of each image in coarse bins, and put those in one order."""
        count = COARSE_BINS if len(self._rows) == 1 else COARSE_BINS // 4
        scales: list[npt.NDArray[np.float64]] = []
        for fold, rows in self._rows.items():
            counts = self._counts[fold]
            good, defective = counts.good, counts.defective
            shares = sum(kind / max(1, kind.sum()) for kind in (good, defective)) / 2
            places = np.clip((np.cumsum(shares) - shares) * count, 0, count - 1).astype(np.intp)
            scale = shares * self._on_one_scale(fold, counts.lower)
            mass = np.bincount(places, shares, count)
            scales.append(ranking.ratio(np.bincount(places, scale, count), mass))
            self._coarse.append(self._count_images(counts, places, rows, count))
        self._coarse_order = np.argsort(np.concatenate(scales), kind="stable")

    def _count_images(self, counts: PixelCounts, places: Array, rows: Array, count: int) -> Counted:
        """Pixels of each image in coarse bins, M x B each; `places` is the coarse bin of each fine one."""
        view = self._view
        good, defective, regions = (np.zeros((len(rows), count)) for _ in range(3))

        def one(number: int) -> None:
            image_id = view.image_ids[rows[number]]
            if image_id in self._unknown:
                return
            mask = view.dataset.mask(image_id)
            size_hw = (mask.shape[0], mask.shape[1])
            bins = places[counts.bins(resized(self._maps(image_id), size_hw, where=f"image {image_id}"))]
            good[number] = np.bincount(bins, minlength=count)
            if view.dataset.annotations_by_image[image_id]:
                inside = bins[mask.ravel() > 0]
                defective[number] = np.bincount(inside, minlength=count)
                regions[number] = np.bincount(inside, weights=region_shares(mask)[0], minlength=count)
                good[number] -= defective[number]

        with ThreadPoolExecutor(min(_PARTS, os.cpu_count() or 1)) as pool:
            list(pool.map(one, range(len(rows))))
        return good, defective, regions

    def _find_whys(self, no_threshold: str) -> dict[str, str]:
        whys: dict[str, str] = {}
        if self._thresholds.value is None:
            whys["iou"] = no_threshold
        good, defective = ([kind.any() for kind in kinds] for kinds in list(zip(*self._fine, strict=True))[:2])
        if not any(g and d for g, d in zip(good, defective, strict=True)):
            why = "no fold has both good and defective pixels" if any(good) else "there is no good pixel"
            whys |= dict.fromkeys(("auroc", "aupro_30", "aupro_05"), why)
        if not any(defective):
            whys |= dict.fromkeys(NAMES, "there is no defective pixel")
        return whys


def _mean_aupro(folds: Sequence[Counted], limit: float) -> npt.NDArray[np.float64]:
    """Mean of the AUPRO of each model that has one, weighted by its regions."""
    areas = np.stack([ranking.aupro(good, regions, limit) for good, _, regions in folds])
    weights = np.stack([regions.sum(axis=-1) for _, _, regions in folds]) * np.isfinite(areas)
    return ranking.ratio((np.nan_to_num(areas) * weights).sum(axis=0), weights.sum(axis=0))


def _one_scale(folds: Sequence[Counted], scales: Sequence[npt.NDArray[np.float64]]) -> Counted:
    """The bins of all models on one scale, equal ones as one."""
    _, place = np.unique(np.concatenate(scales), return_inverse=True)
    good, defective, regions = (
        np.bincount(place, np.concatenate(kind).astype(np.float64)) for kind in zip(*folds, strict=True)
    )
    return good, defective, regions
