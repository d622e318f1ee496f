"""One polygon for one component of a mask, exact to the pixel for readers that fill areas and for Ultralytics' loader.

    polygon_xy = polygon_from_mask(mask_crop, offset_xy, size_hw)
    line = segmentation_line(0, polygon_xy, size_hw)
    (loaded,) = loader_masks([line], size_hw)               # what training at native size will see
    round_trip_iou(loaded, mask_crop, offset_xy)            # 1.0
    geometry.decode(area_rle(line, size_hw))                # what pycocotools makes of it: the same pixels

Two ways of filling are in use. Most programs (pycocotools, datumaro, shapely) take a polygon for an area: a pixel is
inside where its centre is, and the area is that of the mask where the polygon runs along the *edges* of its pixels.
Ultralytics 8.4 (`verify_image_label`, `resample_segments`, `polygon2mask`) and supervision read fractions, multiply by
the image size, truncate to whole pixels and call `cv2.fillPoly`, which fills by the even-odd rule and draws the
outline too; Ultralytics puts more points on the sides first. There every point must truncate to a pixel of the
component. Hence:

* The polygon runs along the edges of the component's pixels, but just inside: every vertex is the corner of a pixel
  *of the component*, the outermost float32 that still truncates to it. So are all points on a side between two.
* Each hole is reached by a straight cut upwards over filled pixels, walked there and back: it has no area, and
  the even-odd rule cancels it.
* Where two pixels touch by a corner alone, the polygon goes through it to the centre of the next pixel, then back to
  its corner: no point that the loader adds between them lands in one of the two pixels beside.

The mask comes back exact from Ultralytics as long as no polygon of the image has more vertices than about 16 million
divided by the longer side in pixels: beyond that the points that go through a corner lie closer together than float32
can tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskbridge.errors import DatasetError
from maskbridge.geometry import RLE
from maskbridge.yolo_lines import parse_segmentation_line

LOADER_POINTS = 1000
"""Points per polygon in the loader; more where a polygon of the image has more vertices than that."""


def polygon_from_mask(
    mask_crop: npt.NDArray[np.bool_], offset_xy: tuple[int, int], size_hw: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Outline one 8-connected component, holes included, by one polygon.

    Args:
        mask_crop: The component, bool of shape (h, w); it may touch the crop's edge.
        offset_xy: Column and row of the crop's top left pixel in the image.
        size_hw: Height and width of the image in pixels.

    Returns:
        Vertices, float64 of shape (N, 2), N ≥ 4, x before y, in pixels of the image (0 is the left edge of
        the first pixel, width the right edge of the last).

    Raises:
        DatasetError: The mask is empty, has several components, or its crop leaves the image.
    """
    (height, width), (left, top), (crop_height, crop_width) = size_hw, offset_xy, mask_crop.shape
    if left < 0 or top < 0 or left + crop_width > width or top + crop_height > height:
        raise DatasetError(
            "mask does not lie in its image",
            found=f"{crop_width}x{crop_height} at {left}, {top}",
            expected=f"within {width}x{height}",
        )
    quarters = np.repeat(np.repeat(np.pad(mask_crop, 1), 2, axis=0), 2, axis=1)
    pixels, sides = _vertices(_closed_walk(quarters), quarters)
    columns_rows = np.add(pixels, (left - 1, top - 1)).T
    fractions = [
        _fractions(index, side, size) for index, side, size in zip(columns_rows, sides.T, (width, height), strict=True)
    ]
    return np.stack(fractions, axis=1).astype(np.float64) * (width, height)


def loader_masks(
    lines: Sequence[str], size_hw: tuple[int, int], *, mask_ratio: int = 1
) -> Iterator[npt.NDArray[np.uint8]]:
    """Rasterise the segmentation lines of one image the way Ultralytics' loader does at native size.

    The lines of an image belong together: the longest polygon decides how many points the others get. Native
    size means that the loader neither resizes nor pads: `YOLODataset(augment=False, rect=False)` with `imgsz`
    the pair (height, width), or with `imgsz` an integer and a square image of that size.

    Args:
        lines: All lines of one label file, in order.
        size_hw: Height and width of the image in pixels.
        mask_ratio: The loader's option of that name; its default in training is 4.

    Yields:
        One mask per line, uint8 of shape (height // mask_ratio, width // mask_ratio), 0 or 1.

    Raises:
        DatasetError: A line is malformed.
    """
    height, width = size_hw
    polygons = [
        parse_segmentation_line(line, (1, 1), where=f"line {number}")[1].astype(np.float32)
        for number, line in enumerate(lines, start=1)
    ]
    longest = max((len(polygon) for polygon in polygons), default=0)
    count = longest + 1 if longest > LOADER_POINTS else LOADER_POINTS
    for polygon in polygons:
        points = _resampled(polygon, count) * np.array([width, height], dtype=np.float32)
        mask = np.zeros(size_hw, dtype=np.uint8)
        cv2.fillPoly(mask, [points.astype(np.int32)], color=(1,))
        if mask_ratio != 1:
            mask = cv2.resize(mask, (width // mask_ratio, height // mask_ratio)).astype(np.uint8)
        yield mask


def area_rle(line: str, size_hw: tuple[int, int]) -> RLE:
    """Fill a segmentation line as an area, by pycocotools.

    Args:
        line: `class x1 y1 x2 y2 x3 y3 …`.
        size_hw: Height and width of the image in pixels.

    Returns:
        The RLE of the whole image: the pixels whose centres are inside by the even-odd rule.

    Raises:
        DatasetError: The line is malformed.
    """
    height, width = size_hw
    polygon_xy = parse_segmentation_line(line, size_hw)[1]
    (rle,) = coco_mask.frPyObjects([polygon_xy.ravel().tolist()], height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def round_trip_iou(
    loaded: npt.NDArray[np.uint8], mask_crop: npt.NDArray[np.bool_], offset_xy: tuple[int, int]
) -> float:
    """Intersection over union of a component and what a reader made of it.

    Args:
        loaded: Mask of the whole image, uint8 of shape (height, width), 0 or 1.
        mask_crop: The component, bool of shape (h, w), not empty.
        offset_xy: Column and row of the crop's top left pixel in the image.

    Returns:
        Intersection over union, range [0, 1].
    """
    (left, top), (height, width) = offset_xy, mask_crop.shape
    common = np.count_nonzero(loaded[top : top + height, left : left + width].astype(bool) & mask_crop)
    return float(common / (np.count_nonzero(loaded) + np.count_nonzero(mask_crop) - common))


def _closed_walk(quarters: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Walk over the borders of one component, four quarters to a pixel, background around it.

    Returns:
        Quarters (N, 2), x before y; steps are diagonal or along an axis.

    A hole is reached by the vertical cut above its top left pixel; OpenCV begins its border one pixel to the
    left of that. The cut ends below the background pixel that stops it, hence on the border of a hole that
    begins higher up, or on the outer border: a tree, built from the lowest hole upwards.
    """
    filled = quarters.astype(np.uint8)
    contours, hierarchy = cv2.findContours(filled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    borders = [contour[:, 0, :].astype(np.int64) for contour in contours]
    parents = [] if hierarchy is None else hierarchy.reshape(-1, 4)[:, 3]
    outers = [border for border, parent in zip(borders, parents, strict=True) if parent < 0]
    holes = [border for border, parent in zip(borders, parents, strict=True) if parent >= 0]
    if len(outers) != 1:
        raise DatasetError("a polygon outlines one component", found=f"{len(outers)} components", expected=1)
    if not holes:
        return outers[0]

    regions = cv2.connectedComponents(1 - filled, connectivity=4)[1]
    rows = np.arange(1, len(filled) + 1)[:, None]
    run_tops = np.maximum.accumulate(np.where(filled, 0, rows), axis=0)
    detours: dict[int, list[tuple[int, npt.NDArray[np.int64]]]] = defaultdict(list)
    borders_by_region = {int(regions[0, 0]): outers[0]}
    for hole in holes:
        left_neighbour_x, y = hole[0]
        borders_by_region[int(regions[y, left_neighbour_x + 1])] = hole

    for hole in sorted(holes, key=lambda border: -int(border[0, 1])):
        x, y = int(hole[0, 0]) + 1, int(hole[0, 1])
        foot, head = (x, y - 1), (x, int(run_tops[y - 1, x]))
        loop = _with_detours(hole, detours.pop(int(regions[y, x]), []))
        start = _index_of(loop, foot)
        detour = np.concatenate([loop[start:], loop[: start + 1], [head]])
        around = int(regions[head[1] - 1, x])
        detours[around].append((_index_of(borders_by_region[around], head), detour))
    return _with_detours(outers[0], detours.pop(int(regions[0, 0]), []))


def _index_of(walk: npt.NDArray[np.int64], pixel_xy: tuple[int, int]) -> int:
    return int(np.flatnonzero((walk[:, 0] == pixel_xy[0]) & (walk[:, 1] == pixel_xy[1]))[0])


def _with_detours(
    border: npt.NDArray[np.int64], detours: list[tuple[int, npt.NDArray[np.int64]]]
) -> npt.NDArray[np.int64]:
    if not detours:
        return border
    pieces, done = [], 0
    for index, detour in sorted(detours, key=lambda item: item[0]):
        pieces += [border[done : index + 1], detour]
        done = index + 1
    return np.concatenate([*pieces, border[done:]])


def _vertices(
    walk: npt.NDArray[np.int64], quarters: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Place the vertices of a closed walk over quarters of pixels.

    Returns:
        Pixels (N, 2) and the place inside each, (N, 2) of -1 (lower edge), 0 (middle) and 1 (upper edge).
    """
    walk = walk[(walk != np.roll(walk, 1, axis=0)).any(axis=1)]
    following = np.roll(walk, -1, axis=0)
    diagonal = np.flatnonzero((walk != following).all(axis=1))
    here, there = walk[diagonal], following[diagonal]
    by_row = np.stack([there[:, 0], here[:, 1]], axis=1)
    by_column = np.stack([here[:, 0], there[:, 1]], axis=1)
    # Around the inner corner of three pixels by way of the third; between two alone through the middle of the next.
    round_row, round_column = (quarters[turn[:, 1], turn[:, 0]][:, None] for turn in (by_row, by_column))
    turns = np.where(round_row, by_row, np.where(round_column, by_column, there))
    pixels = np.insert(walk // 2, diagonal + 1, turns // 2, axis=0)
    turn_sides = np.where(round_row | round_column, turns % 2 * 2 - 1, 0)
    sides = np.insert(walk % 2 * 2 - 1, diagonal + 1, turn_sides, axis=0)

    step_out = np.sign(np.diff(4 * pixels + sides, axis=0, append=4 * pixels[:1] + sides[:1]))
    kept = (step_out != np.roll(step_out, 1, axis=0)).any(axis=1)
    return pixels[kept], sides[kept]


def _fractions(index: npt.NDArray[np.int64], side: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.float32]:
    """Fractions of `size`, float32 (N,): the middle of a pixel, or the first or last that truncates to it.

    It truncates to the pixel in float32, in float64, and in float64 from the nine digits of a label file.
    """
    fractions: npt.NDArray[np.float32] = ((index + 0.5 + 0.5 * side) / size).astype(np.float32)
    fractions = np.clip(fractions + 2 * side * np.spacing(fractions), 0, 1).astype(np.float32)
    middle = ((index + 0.5) / size).astype(np.float32)
    while (outside := _outside(fractions, index, size)).any():
        fractions[outside] = np.nextafter(fractions[outside], middle[outside])
    return fractions


def _outside(fractions: npt.NDArray[np.float32], index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.bool_]:
    """Which fractions may truncate to another pixel than `index`, (N,)."""
    exact = fractions.astype(np.float64) * size
    digits = 5e-9 * exact
    inside = (index + digits <= exact) & (exact < index + 1 - digits)
    outside: npt.NDArray[np.bool_] = ~inside | ((fractions * np.float32(size)).astype(np.int64) != index)
    return outside


def _resampled(polygon: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """Ultralytics' `resample_segments` for at most `count` vertices: (count, 2) points, every vertex kept."""
    if len(polygon) == count:
        return polygon
    closed = np.concatenate([polygon, polygon[:1]])
    vertices = np.arange(len(closed))
    added = np.linspace(0, len(polygon), max(count - len(closed), 0))
    places = np.insert(added, np.searchsorted(added, vertices), vertices)
    return np.stack([np.interp(places, vertices, axis) for axis in closed.T], axis=1).astype(np.float32)
