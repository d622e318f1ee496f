"""How many good and defective pixels have which anomaly score, counted map by map in little memory.

    counts = PixelCounts.laid_out(maps, sizes)          # reads the maps once: which scores are there?
    counts.add(anomaly_map, mask, where="image 17")     # for every image; nothing of the map is kept
    counts.good, counts.defective, counts.regions       # per bin, ascending score

Of fewer than a million pixels each distinct score is a bin of its own, and nothing is lost. More are binned by the
leading bits of their float32 pattern, turned so that integer order is number order
(http://stereopsis.com/radix.html); negative numbers nearer to zero than 1e-40 count as zero. Such bins are narrow in
proportion to the score, so that heavy tails cost nothing. The first 16 bits give 65,536 cells; each cell is cut once
more by as many of the remaining 16 bits as the scores crowded into it are worth, a quarter of a million bins in all.
Scores that fill few cells, such as 1000.001, 1000.002, ..., are thereby counted exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.errors import MaskbridgeError
from maskbridge.geometry import Mask, frame, region_shares

#: Fewer pixels than this are counted by their distinct scores.
EXACT_PIXELS = 1_000_000

#: The most bins there are for more pixels. Half as many without a preview; a quarter after one without a heavy bin.
MOST_BINS = 1 << 20

_CELLS = 1 << 16

#: Pixels looked at together, so that what is computed of them stays in the processor's cache.
_BLOCK = 1 << 16

#: Pixels whose bins wait to be counted together, since each count touches every bin.
_BATCH = 1 << 21

#: Pixels of a map that are looked at beforehand, at least: every n-th row and column.
_PREVIEW = 1 << 14

#: A bin with more than this share of the pixels is heavy: its cell is cut to single numbers, of so many at most.
_HEAVY_SHARE = 1 / 500
_MOST_HEAVY = 8

#: A cell's layout is one integer: the number of its first bin, then how many of its 16 bits are dropped.
_DROP_BITS = 5
_DROP = (1 << _DROP_BITS) - 1

_MAGNITUDE = np.int32(0x7FFFFFFF)
_LARGEST = int(np.float32(np.finfo(np.float32).max).view(np.int32))

#: Cells beyond the scores that were looked at: a doubling has 128.
_MARGIN = 64
_MARGIN_WORTH = 0.01

#: Scores this much smaller than the largest get no more than one bin per cell, unless they crowd there.
_NEGLIGIBLE = 2.0**-20


class PixelCounts:
    """Histogram of pixel scores, filled image by image.

    Args:
        preview: The maps to be counted, at any size, to see where scores crowd; without it all cells are cut
            alike, which leaves the bins .1 % wide.
        values: All scores there can be, B, float32, ascending and distinct: one bin each, and no preview.

    A region is an 8-connected component of an image's mask. `regions`, divided by `region_count` and summed from
    above, is the per-region overlap (PRO).

    Attributes:
        region_count: Number of regions.
    """

    def __init__(
        self, preview: Iterable[npt.NDArray[Any]] = (), *, values: npt.NDArray[np.float32] | None = None
    ) -> None:
        """Lay out the bins."""
        self._distinct = values
        if values is not None:
            self._turned = np.arange(len(values))
            self._clear(len(values))
            return
        crowd = np.zeros(_CELLS, np.int64)
        some_keys = [np.zeros(0, np.int32)]
        for anomaly_map in preview:
            step = max(1, math.isqrt(anomaly_map.size // _PREVIEW))
            keys = _keys(np.asarray(anomaly_map[::step, ::step], np.float32).ravel())
            crowd += np.bincount((keys >> 16) + _CELLS // 2, minlength=_CELLS)
            some_keys.append(keys[:: 1 + len(keys) // 1024])
        bits = _bits_of_cells(crowd)
        bits[_heavy_cells(np.concatenate(some_keys), bits)] = 16
        first = np.cumsum(1 << bits) - (1 << bits)
        self._layout = ((first << _DROP_BITS) | (16 - bits)).astype(np.int32)
        # By the leading 16 bits as they are. Negative numbers come in the reverse order: their cells are found here,
        # the bins within a cell are turned when they are asked for. Minus zero is zero.
        leading = np.arange(-_CELLS // 2, _CELLS // 2)
        self._raw_layout = np.empty(_CELLS, np.int32)
        self._raw_layout[leading] = self._layout[np.where(leading < 0, leading ^ 0x7FFF, leading) + _CELLS // 2]
        self._raw_layout[-_CELLS // 2] = (first[_CELLS // 2] << _DROP_BITS) | 16
        cells = np.repeat(np.arange(_CELLS), 1 << bits)
        self._turned = np.arange(len(cells))
        negative = cells < _CELLS // 2
        self._turned[negative] = ((2 * first + (1 << bits) - 1)[cells] - self._turned)[negative]
        self._clear(len(cells))

    @classmethod
    def laid_out(cls, maps: Callable[[int], npt.NDArray[Any]], sizes: Mapping[int, tuple[int, int]]) -> PixelCounts:
        """Bins for the maps of some images, resized to these; nothing is counted yet.

        Args:
            maps: Anomaly map h x w, float, by image id.
            sizes: Height and width in pixels of each image that is to be counted, by its id.

        Raises:
            MaskbridgeError: When a map has values that are not finite.
        """
        if sum(height * width for height, width in sizes.values()) >= EXACT_PIXELS:
            return cls(maps(image_id) for image_id in sizes)
        found = [np.unique(resized(maps(i), size_hw, where=f"image {i}")) for i, size_hw in sizes.items()]
        return cls(values=np.unique(np.concatenate([np.zeros(0, np.float32), *found])))

    def _clear(self, count: int) -> None:
        self._good = np.zeros(count, np.int64)
        self._defective = np.zeros(count, np.int64)
        self._regions = np.zeros(count)
        self.region_count = 0
        self._waiting = np.zeros(0, np.intp)
        self._filled = 0
        self._inside: list[npt.NDArray[np.intp]] = []
        self._shares: list[npt.NDArray[np.float64]] = []

    @property
    def good(self) -> npt.NDArray[np.int64]:
        """Number of good pixels per bin, B, ascending score."""
        self._flush()
        return self._good[self._turned]

    @property
    def defective(self) -> npt.NDArray[np.int64]:
        """Number of defective pixels per bin, B."""
        self._flush()
        return self._defective[self._turned]

    @property
    def regions(self) -> npt.NDArray[np.float64]:
        """Per bin the sum over regions of the share of the region's pixels in it, B."""
        self._flush()
        return self._regions[self._turned]

    def empty(self) -> PixelCounts:
        """The same bins, nothing counted."""
        other = copy.copy(self)
        other._clear(len(self._good))
        return other

    def __iadd__(self, other: PixelCounts) -> PixelCounts:
        """Add what another with the same bins has counted."""
        self._flush()
        other._flush()
        self._good += other._good
        self._defective += other._defective
        self._regions += other._regions
        self.region_count += other.region_count
        return self

    @property
    def lower(self) -> npt.NDArray[np.float32]:
        """Smallest score that falls into each bin, B, float32, ascending."""
        if self._distinct is not None:
            return self._distinct
        return _values(self._edges()[:-1])

    @property
    def upper(self) -> npt.NDArray[np.float32]:
        """Largest score that falls into each bin, B, float32, ascending."""
        if self._distinct is not None:
            return self._distinct
        return _values(self._edges()[1:] - 1)

    def add(self, anomaly_map: npt.NDArray[Any], mask: Mask, *, where: str) -> None:
        """Count the pixels of one image.

        Args:
            anomaly_map: h x w, float; resized bilinearly to the mask's size.
            mask: H x W, uint8, defect where > 0; all zero for a good image.
            where: The image's name, for the error.

        Raises:
            MaskbridgeError: When the map has values that are not finite.
        """
        full = resized(anomaly_map, (mask.shape[0], mask.shape[1]), where=where)
        if self._filled + full.size > len(self._waiting):
            self._flush()
            if full.size > len(self._waiting):
                self._waiting = np.empty(max(full.size, _BATCH), np.intp)
        bins = self._waiting[self._filled : self._filled + full.size]
        self._bin(full.ravel(), bins)
        self._filled += full.size
        rows_columns = frame(mask)
        crop = np.ascontiguousarray(mask[rows_columns])
        if crop.size:
            shares, region_count = region_shares(crop)
            self._inside.append(bins.reshape(full.shape)[rows_columns][crop > 0])
            self._shares.append(shares)
            self.region_count += region_count

    def _flush(self) -> None:
        """Count the pixels that wait."""
        if self._filled:
            self._good += np.bincount(self._waiting[: self._filled], minlength=len(self._good))
            self._filled = 0
        if self._inside:
            inside, shares = np.concatenate(self._inside), np.concatenate(self._shares)
            defective = np.bincount(inside, minlength=len(self._good))
            self._good -= defective
            self._defective += defective
            self._regions += np.bincount(inside, weights=shares, minlength=len(self._good))
            self._inside, self._shares = [], []

    def bins(self, full_map: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
        """Bin of every pixel.

        Args:
            full_map: H x W, float32, as `resized` gave it.

        Returns:
            H * W, row by row.
        """
        bins = np.empty(full_map.size, np.intp)
        self._bin(full_map.ravel(), bins)
        return self._turned[bins]

    def _bin(self, scores: npt.NDArray[np.float32], bins: npt.NDArray[np.intp]) -> None:
        """Bin of each score, before negative ones are turned."""
        if self._distinct is not None:
            bins[:] = np.searchsorted(self._distinct, scores)
            return
        for start in range(0, len(scores), _BLOCK):
            bits = scores[start : start + _BLOCK].view(np.int32)
            layout = self._raw_layout.take(bits >> 16)
            places = bits & (_CELLS - 1)
            places >>= layout & _DROP
            layout >>= _DROP_BITS
            places += layout
            bins[start : start + _BLOCK] = places

    def percentile(self, percent: float) -> float:
        """Smallest score that at least `percent` per cent of all pixels do not exceed (its bin's end)."""
        below = np.cumsum(self.good + self.defective)
        return float(self.upper[np.searchsorted(below, percent / 100 * below[-1])])

    def _edges(self) -> npt.NDArray[np.int64]:
        """Smallest key of each bin and, last, one more than the largest key, B + 1."""
        first, drop = (self._layout >> _DROP_BITS).astype(np.int64), self._layout & _DROP
        cells = np.repeat(np.arange(_CELLS, dtype=np.int64), 1 << (16 - drop))
        within = np.arange(len(cells)) - first[cells]
        keys = ((cells - _CELLS // 2) << 16) + (within << drop[cells])
        return np.append(keys, _CELLS // 2 << 16)


def resized(anomaly_map: npt.NDArray[Any], size_hw: tuple[int, int], *, where: str) -> npt.NDArray[np.float32]:
    """An anomaly map at the size of its image, bilinear.

    Args:
        anomaly_map: h x w, float.
        size_hw: Height and width of the image in pixels.
        where: The image's name, for the error.

    Returns:
        H x W, float32.

    Raises:
        MaskbridgeError: When the map has values that are not finite.
    """
    array = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    low, high = array.min(), array.max()  # NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise MaskbridgeError("the anomaly map has values that are not finite", where=where, found="NaN or infinity")
    if low == high:  # interpolation would add rounding noise and break the ties
        return np.full(size_hw, array.flat[0], np.float32)
    if array.shape != size_hw:
        array = np.asarray(cv2.resize(array, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR), np.float32)
    return array


def _bits_of_cells(crowd: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many more bits to look at in each cell, which holds `crowd` scores; gives at most `MOST_BINS` bins.

    Half of the bins go to where the scores are, half evenly to all cells between the smallest and the largest
    score and a little beyond, where there may be some that were not looked at.
    """
    filled = np.flatnonzero(crowd)
    spare = MOST_BINS // 4 - _CELLS
    if not len(filled):
        return np.full(_CELLS, int(np.log2(MOST_BINS // 2 // _CELLS)), np.int64)
    cells = np.arange(_CELLS, dtype=np.int64)
    sizes = np.abs(_values((cells - _CELLS // 2) << 16))
    beyond = np.maximum(filled[0] - cells, cells - filled[-1])
    between = np.where(beyond <= 0, 1.0, np.where(beyond <= _MARGIN, _MARGIN_WORTH, 0.0))
    between[(sizes < sizes[filled].max() * _NEGLIGIBLE) & (crowd == 0)] = 0.0
    worth = crowd / crowd.sum() + between / between.sum()
    bits: npt.NDArray[np.float64] = np.clip(np.log2(np.maximum(1.0, worth / 2 * spare)), 0, 16)
    return bits.astype(np.int64)


def _heavy_cells(keys: npt.NDArray[np.int32], bits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Cells with a bin that too large a share of the scores falls into, such as where a model saturates."""
    cells = (keys >> 16).astype(np.int64) + _CELLS // 2
    bins, counts = np.unique((cells << 16) + ((keys & 0xFFFF) >> (16 - bits[cells])), return_counts=True)
    heavy = counts > _HEAVY_SHARE * len(keys)
    heaviest = (bins[heavy] >> 16)[np.argsort(-counts[heavy], kind="stable")]
    return np.array(list(dict.fromkeys(heaviest.tolist()))[:_MOST_HEAVY], np.int64)


def _keys(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Integers in the order of the numbers, of the same shape; both zeros are one."""
    bits = (values + np.float32(0)).view(np.int32)
    turn = bits >> 31
    turn &= _MAGNITUDE
    bits ^= turn
    return bits


def _values(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The numbers that belong to keys; keys beyond the largest finite number are taken as that."""
    bits = np.clip(keys, -_LARGEST - 1, _LARGEST).astype(np.int32)
    return (bits ^ ((bits >> 31) & _MAGNITUDE)).view(np.float32)
