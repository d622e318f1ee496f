"""How many good and defective pixels have which anomaly score, counted map by map in little memory.

    counts = PixelCounts(maps)                          # a quick look at some pixels of each: where do scores crowd?
    counts.add(anomaly_map, mask, where="image 17")     # for every image; nothing of the map is kept
    counts.good, counts.defective, counts.regions       # per bin, ascending score

Scores are binned by the leading bits of their float32 pattern, turned so that integer order is number order
(http://stereopsis.com/radix.html). Such bins are narrow in proportion to the score, so that heavy tails cost
nothing. The first 16 bits give 65,536 cells; each cell is cut once more by as many of the remaining 16 bits
as the scores crowded into it are worth, a quarter of a million bins in all. Scores that fill few cells, such as
1000.001, 1000.002, ..., are thereby counted exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.errors import MaskbridgeError
from maskbridge.geometry import Mask

#: The most bins there are; half as many after a preview, which puts them where they matter.
MOST_BINS = 1 << 19

_CELLS = 1 << 16

#: Pixels looked at together, so that what is computed of them stays in the processor's cache.
_BLOCK = 1 << 16

#: Pixels of a map that are looked at beforehand, at least: every n-th row and column.
_PREVIEW = 1 << 14

#: A cell's layout is one integer: the number of its first bin, then how many of its 16 bits are dropped.
_DROP_BITS = 5
_DROP = (1 << _DROP_BITS) - 1

_MAGNITUDE = np.int32(0x7FFFFFFF)
_LARGEST = int(np.float32(np.finfo(np.float32).max).view(np.int32))

#: Scores this much smaller than the largest get no more than one bin per cell, unless they crowd there.
_NEGLIGIBLE = 2.0**-20


class PixelCounts:
    """Histogram of pixel scores, filled image by image.

    Args:
        preview: The maps to be counted, at any size, to see where scores crowd; without it all cells are cut
            alike, which leaves the bins .1 % wide.

    Attributes:
        good: Number of good pixels per bin, B, int64, ascending score.
        defective: Number of defective pixels per bin, B, int64.
        regions: Per bin the sum over regions of the share of the region's pixels in it, B, float64; a region
            is an 8-connected component of an image's mask. Divided by `region_count` and summed from above,
            it is the per-region overlap (PRO).
        region_count: Number of regions.
    """

    def __init__(self, preview: Iterable[npt.NDArray[Any]] = ()) -> None:
        """Lay out the bins."""
        crowd = np.zeros(_CELLS, np.int64)
        for anomaly_map in preview:
            step = max(1, math.isqrt(anomaly_map.size // _PREVIEW))
            some = np.append(anomaly_map[::step, ::step], (anomaly_map.min(), anomaly_map.max()))
            crowd += np.bincount((_keys(some.astype(np.float32)) >> 16) + _CELLS // 2, minlength=_CELLS)
        bits = _bits_of_cells(crowd)
        first = np.cumsum(1 << bits) - (1 << bits)
        self._layout = ((first << _DROP_BITS) | (16 - bits)).astype(np.int32)
        self._clear(int((1 << bits).sum()))

    def _clear(self, count: int) -> None:
        self.good: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self.defective: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self.regions: npt.NDArray[np.float64] = np.zeros(count)
        self.region_count = 0

    def empty(self) -> PixelCounts:
        """The same bins, nothing counted."""
        other = copy.copy(self)
        other._clear(len(self.good))
        return other

    def __iadd__(self, other: PixelCounts) -> PixelCounts:
        """Add what another with the same bins has counted."""
        self.good += other.good
        self.defective += other.defective
        self.regions += other.regions
        self.region_count += other.region_count
        return self

    @property
    def lower(self) -> npt.NDArray[np.float32]:
        """Smallest score that falls into each bin, B, float32, ascending."""
        return _values(self._edges()[:-1])

    @property
    def upper(self) -> npt.NDArray[np.float32]:
        """Largest score that falls into each bin, B, float32, ascending."""
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
        size_hw = (mask.shape[0], mask.shape[1])
        bins = self.bins(resized(anomaly_map, size_hw, where=where))
        self.good += np.bincount(bins, minlength=len(self.good))
        rows, columns = frame(mask)
        crop = np.ascontiguousarray(mask[rows, columns])
        if not crop.size:
            return
        inside = bins.reshape(size_hw)[rows, columns][crop > 0]
        defective = np.bincount(inside, minlength=len(self.good))
        self.good -= defective
        self.defective += defective
        shares, region_count = region_shares(crop)
        if region_count == 1:
            self.regions += defective * shares[0]
        else:
            self.regions += np.bincount(inside, weights=shares, minlength=len(self.good))
        self.region_count += region_count

    def bins(self, full_map: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
        """Bin of every pixel.

        Args:
            full_map: H x W, float32, as `resized` gave it.

        Returns:
            H * W, row by row.
        """
        scores = full_map.ravel()
        bins = np.empty(len(scores), np.intp)
        for start in range(0, len(scores), _BLOCK):
            keys = _keys(scores[start : start + _BLOCK])
            cells = (keys >> 16).astype(np.intp)
            cells += _CELLS // 2
            layout = self._layout.take(cells, mode="clip")
            keys &= _CELLS - 1
            keys >>= layout & _DROP
            layout >>= _DROP_BITS
            np.add(keys, layout, out=bins[start : start + _BLOCK])
        return bins

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


def frame(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns that hold all of a mask; empty where it is."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    rows_of = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[rows_of].any(axis=0))
    return rows_of, slice(int(columns[0]), int(columns[-1]) + 1)


def region_shares(mask: Mask) -> tuple[npt.NDArray[np.float64], int]:
    """One over the area of its region for every defective pixel, and the number of 8-connected regions.

    Returns:
        N, float64, row by row over the N defective pixels; and the number of regions.
    """
    count, labels = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    inside = labels[mask > 0]
    return 1.0 / np.bincount(inside)[inside], int(count) - 1


def _bits_of_cells(crowd: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many more bits to look at in each cell, which holds `crowd` scores; gives at most `MOST_BINS` bins.

    Half of the bins go to where the scores are, half evenly to all cells between the smallest and the largest
    score, where resizing may put some.
    """
    filled = np.flatnonzero(crowd)
    spare = MOST_BINS // 2 - _CELLS
    if not len(filled):
        return np.full(_CELLS, int(np.log2(MOST_BINS // _CELLS)), np.int64)
    cells = np.arange(_CELLS, dtype=np.int64)
    sizes = np.abs(_values((cells - _CELLS // 2) << 16))
    between = (cells >= filled[0]) & (cells <= filled[-1])
    between &= (sizes >= sizes[filled].max() * _NEGLIGIBLE) | (crowd > 0)
    worth = crowd / crowd.sum() + between / between.sum()
    bits: npt.NDArray[np.float64] = np.clip(np.log2(np.maximum(1.0, worth / 2 * spare)), 0, 16)
    return bits.astype(np.int64)


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
