"""Images that are one and the same picture: flipped, turned by 90 degrees, rescaled or encoded again.

Parts of one product look alike, and no limit on a likeness tells a second copy from a second part: it would
have to lie elsewhere for every product. Two questions are asked instead, each with a yardstick of its own.

* Cheaply, of every pair: do the local contrasts of two 32 x 32 thumbnails agree as closely as copies must?
  Copies are out of register by a fraction of a pixel of the smaller image: the more pixels a cell averages,
  the closer they have to agree.
* At full resolution, of the few pairs left: is their difference of the size that a JPEG encoding makes by
  itself? On real sets copies differ by up to 1.4 times that, the same part photographed again by 2.5 times,
  other parts by 11 times or more. Small images hold less to be told apart by: at 128 pixels two parts come
  down to 3.5 times, at 64 pixels to 1.6 times, and are then taken for copies. Of a picture of low contrast an
  encoding leaves nothing by which two parts differ, so the question is asked again with both stretched from
  their 1st to their 99th percentile: there copies differ by up to 4 times, bottles of an eighth of their
  contrast by 21 times at 900 pixels, 9 times at 256 and 6 times at 128.

Two photographs that differ in nothing but faint sensor noise, in no pixel's place, count as one picture too.

A group is a leader with the images that were compared with that leader directly: likeness is not passed on.

    signatures = np.stack([signature(cv2.imread(path)) for path in paths])
    pairs = near_duplicate_pairs(signatures, lambda index: cv2.imread(paths[index]))
    groups = merge_groups(len(paths), pairs)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SIDE = 32
"""Cells of the thumbnail along each axis."""
SIGNATURE_BYTES = SIDE * SIDE + 4
"""Length of a signature: the thumbnail, the mean grey level and the shorter side."""

JPEG_QUALITY = 60
"""The encoding whose error is the yardstick of the full-resolution comparison."""
MOST_CODING_ERRORS = 2.0
"""Largest difference of two copies, in coding errors."""
MOST_STRETCHED_ERRORS = 4.5
"""The same once both are stretched to full contrast."""
LEAST_DIFFERENCE = 0.5
"""Difference that rounding alone can make, in grey levels of 255."""

_UNIT = 24  # steps of the stored thumbnail in one standard deviation
_FLATTEST = 0.02  # standard deviation, in grey levels of 255, under which a thumbnail holds rounding only
_DEEPEST = 64  # what 10 bits in 16 are scaled by
_THUMBNAIL_FLOOR, _THUMBNAIL_SLOPE, _THUMBNAIL_CEILING = 0.03, 1.2, 0.6
_MEAN_TOLERANCE = 2  # grey levels of 255
_CANDIDATES = 2  # nearest earlier images whose leaders are looked at
_BLOCK = 128  # images searched for at a time
_LONGEST_SIDE = 4096  # of the grid on which two images are compared; JPEG itself ends at 65,535

_Image = npt.NDArray[Any]
_Floats = npt.NDArray[np.float32]


def signature(image: _Image) -> npt.NDArray[np.uint8]:
    """What is kept of an image to find its copies by.

    Args:
        image: H x W, H x W x 1, H x W x 3 (BGR) or H x W x 4 (BGRA, alpha ignored), uint8 or uint16.

    Returns:
        `SIGNATURE_BYTES` values, uint8: the local contrast of the image on a grid of 32 x 32 cells (int8, row
        by row: each cell less the mean of its 3 x 3 neighbourhood, in 24ths of the standard deviation, all 0
        for a flat image), the mean grey level in [0, 255] in 256ths (two bytes, high first), and the shorter
        side in pixels (two bytes, high first, 65,535 at most).
    """
    grey = _grey(image)
    shorter_side = min(grey.shape)
    while min(grey.shape) >= 12 * SIDE:  # halving first is many times faster than averaging in one go
        half = ((grey.shape[1] + 1) // 2, (grey.shape[0] + 1) // 2)
        grey = cv2.resize(grey, half, interpolation=cv2.INTER_LINEAR)
    cells = cv2.resize(_levels(grey), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    contrast = cells - cv2.blur(cells, (3, 3), borderType=cv2.BORDER_REFLECT_101)
    spread = float(contrast.std())
    flattest = _FLATTEST if grey.dtype == np.uint8 else _FLATTEST / _DEEPEST
    steps = contrast * (_UNIT / spread if spread > flattest else 0.0)
    return np.concatenate(
        [
            np.clip(np.rint(steps), -127, 127).astype(np.int8).view(np.uint8).ravel(),
            np.array(
                [*divmod(int(256 * float(cells.mean())), 256), *divmod(min(shorter_side, 65535), 256)], dtype=np.uint8
            ),
        ]
    )


def at_depth(signature: npt.NDArray[np.uint8], bit_depth: int) -> npt.NDArray[np.uint8]:
    """The signature that a 16-bit image has once it is scaled by its depth, as `load` has to give it.

    Args:
        signature: Of the image as it is stored.
        bit_depth: Bits that its source uses, 10 to 16; 8 for an 8-bit image, which is not scaled.
    """
    if bit_depth == 8:
        return signature
    mean = (int(signature[-4]) * 256 + int(signature[-3])) * 65535 // ((1 << bit_depth) - 1)
    return np.concatenate([signature[:-4], np.array(divmod(min(mean, 255 * 256), 256), dtype=np.uint8), signature[-2:]])


def near_duplicate_pairs(
    signatures: npt.NDArray[np.uint8],
    load: Callable[[int], _Image],
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[int, int]]:
    """Pairs of images that are verified to be one picture.

    Every image is compared with the leaders of its nearest earlier images, and joins the first that proves to
    be the same picture; so a picture that is there m times yields m - 1 pairs, all with its first copy.

    Args:
        signatures: N x `SIGNATURE_BYTES`, uint8, from `signature`.
        load: Decodes image i again, in any form `signature` takes; called for the rare candidates only.
        progress: Called with the number of images done and N.

    Returns:
        Pairs (i, j) of indices, i < j, in order of j. An image is second in one pair at most, and then first
        in none.

    Raises:
        ValueError: `signatures` is not an N x `SIGNATURE_BYTES` array.
    """
    if signatures.ndim != 2 or signatures.shape[1] != SIGNATURE_BYTES:
        raise ValueError(f"signatures of shape {signatures.shape}, not N x {SIGNATURE_BYTES}")
    thumbnails = _Thumbnails(signatures)
    count = len(signatures)
    leader = list(range(count))
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        for later, nearest in thumbnails.candidates(start, stop):
            for first in dict.fromkeys(leader[index] for index in nearest):
                turns = thumbnails.turns(first, later)
                if turns and _is_same_picture(load(first), load(later), turns):
                    leader[later] = first
                    break
        if progress is not None:
            progress(stop, count)
    return [(first, later) for later, first in enumerate(leader) if first != later]


def merge_groups(count: int, pairs: Iterable[tuple[int, int]], known: Sequence[int | None] | None = None) -> list[int]:
    """A group number for each image, without passing likeness on.

    Every image of a group is paired with its leader, which is its first image: of a chain a-b, b-c the group
    is a and b, and c stays alone unless a-c is a pair as well.

    Args:
        count: Number of images.
        pairs: Pairs of indices in [0, count), in any order.
        known: The group of each image where it is known from elsewhere, else None. These are certain: they
            are never parted, and pairs join them as wholes.

    Returns:
        `count` numbers from 0 on, in order of first appearance.

    Raises:
        ValueError: A pair does not name two images, or `known` is not one entry per image.
    """
    if known is not None and len(known) != count:
        raise ValueError(f"known groups of {len(known)} images, not {count}")
    group = list(range(count))
    for first, second in sorted((min(pair), max(pair)) for pair in pairs):
        if not 0 <= first < second < count:
            raise ValueError(f"({first}, {second}) is no pair of {count} images")
        if group[first] == first and group[second] == second:
            group[second] = first
    if known is not None:
        group = _joined(group, known)
    number = {name: index for index, name in enumerate(dict.fromkeys(group))}
    return [number[name] for name in group]


class _Thumbnails:
    """The signatures of all images, unpacked for the search."""

    def __init__(self, signatures: npt.NDArray[np.uint8]) -> None:
        cells = np.ascontiguousarray(signatures[:, : SIDE * SIDE]).view(np.int8)
        self.contrast: _Floats = cells.astype(np.float32) / np.float32(SIDE * _UNIT)
        self.energy: _Floats = np.square(self.contrast).sum(axis=1)
        self.mean = np.rint(signatures[:, -4] + signatures[:, -3] / 256).astype(np.int16)
        self.shorter_side = signatures[:, -2].astype(np.float32) * 256 + signatures[:, -1]

    def candidates(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Images of [start, stop) that may be copies, each with its nearest earlier images, nearest first."""
        products = self._turned(start, stop) @ self.contrast[:stop].T
        likeness = products.reshape(8, stop - start, stop).max(axis=0)
        distance = (self.energy[start:stop, None] + self.energy[:stop]) / 2 - likeness
        apart = np.abs(self.mean[start:stop, None] - self.mean[:stop])
        earlier = np.arange(stop) < np.arange(start, stop)[:, None]
        near = earlier & (apart <= _MEAN_TOLERANCE) & (distance <= self._tolerance(slice(start, stop), slice(stop)))
        for row in np.flatnonzero(near.any(axis=1)):
            columns = np.flatnonzero(near[row])
            order = np.lexsort((columns, apart[row, columns], distance[row, columns]))[:_CANDIDATES]
            yield start + int(row), columns[order].tolist()

    def turns(self, first: int, second: int) -> list[int]:
        """The turns of `second` (see `_turn`) under which it may be a copy of `first`, best first."""
        products = self._turned(second, second + 1) @ self.contrast[first]
        distance = (self.energy[first] + self.energy[second]) / 2 - products
        tolerance = self._tolerance(slice(first, first + 1), slice(second, second + 1)).item()
        return [int(turn) for turn in np.argsort(distance, kind="stable") if distance[turn] <= tolerance]

    def _turned(self, start: int, stop: int) -> _Floats:
        """The thumbnails of [start, stop) in every turn, 8 (stop - start) x 1024, turn by turn."""
        grids = self.contrast[start:stop].reshape(-1, SIDE, SIDE).transpose(1, 2, 0)
        turned = np.stack([_turn(grids, turn).transpose(2, 0, 1) for turn in range(8)])
        return turned.reshape(-1, SIDE * SIDE)

    def _tolerance(self, rows: slice, columns: slice) -> _Floats:
        """Squared distance that two copies may have: 0 equal, 1 unrelated."""
        cell = np.minimum(self.shorter_side[rows, None], self.shorter_side[None, columns]) / SIDE
        limit = np.minimum(_THUMBNAIL_FLOOR + _THUMBNAIL_SLOPE / cell, _THUMBNAIL_CEILING)
        return np.asarray(np.square(limit), dtype=np.float32)


def _is_same_picture(first: _Image, second: _Image, turns: Iterable[int]) -> bool:
    """Whether `second`, under one of `turns`, differs from `first` by no more than an encoding would."""
    fixed, moved = _levels(_grey(first)), _levels(_grey(second))
    for turn in turns:
        turned = np.ascontiguousarray(_turn(moved, turn))
        height, width = min(fixed.shape, turned.shape, key=lambda shape: shape[0] * shape[1])
        scale = min(1.0, _LONGEST_SIDE / max(height, width))
        grid = (max(1, round(width * scale)), max(1, round(height * scale)))
        one, other = (_resized(levels, grid) for levels in (fixed, turned))
        if _agree(one, other, MOST_CODING_ERRORS) and _agree(*_stretched(one, other), MOST_STRETCHED_ERRORS):
            return True
    return False


def _resized(levels: _Floats, size_wh: tuple[int, int]) -> _Floats:
    return np.asarray(cv2.resize(levels, size_wh, interpolation=cv2.INTER_AREA), dtype=np.float32)


def _agree(one: _Floats, other: _Floats, most: float) -> bool:
    """Whether two images on one grid differ by at most so many coding errors."""
    coding_error = max(float(_smooth(_encoded(levels) - np.clip(levels, 0, 255)).std()) for levels in (one, other))
    return _difference(_smooth(one), _smooth(other)) <= max(LEAST_DIFFERENCE, most * coding_error)


def _stretched(one: _Floats, other: _Floats) -> tuple[_Floats, _Floats]:
    """Both images from the 1st to the 99th percentile of their grey levels to [0, 255], by one map.

    What tells two parts of low contrast apart is else below what an encoding changes.
    """
    both = np.concatenate([one.ravel(), other.ravel()])
    low, high = (float(level) for level in np.percentile(both, (1, 99)))
    if high - low < 1 / _DEEPEST:  # all but a hundredth of the pixels are equal: the rest counts
        low, high = float(both.min()), float(both.max())
    gain = np.float32(255 / max(high - low, 1 / _DEEPEST))
    return (one - np.float32(low)) * gain, (other - np.float32(low)) * gain


def _difference(one: _Floats, other: _Floats) -> float:
    """Root mean square difference in grey levels, less a shift of up to half a pixel from resampling."""
    change = (one - other).ravel()
    slopes = np.stack(
        [cv2.Scharr(one, cv2.CV_32F, *axis, scale=1 / 32).ravel() for axis in ((1, 0), (0, 1))],
        dtype=np.float32,
    )
    shift = np.linalg.pinv(slopes @ slopes.T) @ (slopes @ change)
    shift *= 0.5 / max(0.5, float(np.abs(shift).max()))
    return float(np.sqrt(np.square(change - shift @ slopes).mean()))


def _grey(image: _Image) -> _Image:
    """H x W of the same dtype."""
    if image.ndim == 2:
        return image
    if image.shape[2] == 1:
        return image[:, :, 0]
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if image.shape[2] == 3 else cv2.COLOR_BGRA2GRAY)


def _levels(grey: _Image) -> _Floats:
    """Grey levels in [0, 255] as float32, whatever the integer dtype."""
    return grey.astype(np.float32) * np.float32(255 / np.iinfo(grey.dtype).max)


def _turn(grid: _Image, turn: int) -> _Image:
    """One of the eight flips and quarter turns of the first two axes; 0 is none."""
    rotated = np.rot90(grid, turn % 4)
    return rotated[:, ::-1] if turn >= 4 else rotated


def _smooth(levels: _Image) -> _Floats:
    """Mean over 5 x 5 pixels: an encoder errs at a finer scale than that, another part does not."""
    return np.asarray(cv2.blur(levels, (5, 5)), dtype=np.float32)


def _encoded(levels: _Image) -> _Floats:
    """The levels after a trip through JPEG."""
    pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), dtype=np.float32)


def _joined(group: list[int], known: Sequence[int | None]) -> list[int]:
    """The finest grouping that parts neither `group` nor `known`, named by the first image of each group."""
    root = list(range(len(group)))

    def find(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    first_of_known: dict[int, int] = {}
    for index, (leader, name) in enumerate(zip(group, known, strict=True)):
        others = [leader] if name is None else [leader, first_of_known.setdefault(name, index)]
        for other in others:
            low, high = sorted((find(index), find(other)))
            root[high] = low
    return [find(index) for index in range(len(group))]
