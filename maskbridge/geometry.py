"""Exact geometry of defect instances: components, run-length encoding, half-open boxes.

A mask is bool or uint8, H x W, defect where > 0. Boxes are `box_ltwh` = [left, top, width, height] in whole pixels,
half-open (a 5x5 square at 5,5 is [5, 5, 5, 5]). RLE is the compressed column-major run-length encoding of the COCO
API (`size` = [height, width], `counts` a string); https://github.com/cocodataset/cocoapi.

    for instance in instances(mask):
        instance["segmentation"], instance["bbox"], instance["area"]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

Mask = npt.NDArray[np.uint8]


class RLE(TypedDict):
    """Compressed run-length encoding of one mask."""

    size: list[int]
    counts: str


class Instance(TypedDict):
    """One defect instance, in the keys of a COCO annotation."""

    segmentation: RLE
    bbox: list[int]
    area: int


def instances(mask: npt.NDArray[Any], *, split: bool = True, min_area: int = 1) -> tuple[list[Instance], list[int]]:
    """Turn a mask into instances.

    Args:
        mask: H x W, defect where > 0.
        split: One instance per 8-connected component, in scan order of their top-left pixels; otherwise one
            instance for the whole mask.
        min_area: Components below this many pixels are dropped.

    Returns:
        The instances, and the areas in pixels of those dropped. Both are empty for an empty mask.
    """
    binary = (mask > 0).view(np.uint8)
    left, top, width, height = cv2.boundingRect(binary)
    if width == 0:
        return [], []
    crop = np.ascontiguousarray(binary[top : top + height, left : left + width])
    kept: list[Instance] = []
    dropped: list[int] = []
    for piece, x, y, area in _components(crop) if split else [(crop, 0, 0, int(crop.sum()))]:
        if area < min_area:
            dropped.append(area)
            continue
        h, w = piece.shape
        segmentation = encode_crop(piece, (left + x, top + y), (mask.shape[0], mask.shape[1]))
        kept.append({"segmentation": segmentation, "bbox": [left + x, top + y, w, h], "area": area})
    return kept, dropped


def encode(mask: npt.NDArray[Any]) -> RLE:
    """Encode a mask (H x W, defect where > 0) as compressed RLE."""
    raw = coco_mask.encode(np.asfortranarray((mask > 0).view(np.uint8)))
    return {"size": [int(raw["size"][0]), int(raw["size"][1])], "counts": raw["counts"].decode("ascii")}


def encode_crop(crop: npt.NDArray[Any], offset_xy: tuple[int, int], size_hw: tuple[int, int]) -> RLE:
    """Encode a mask given by a crop, without ever making the whole image.

    Args:
        crop: h x w, defect where > 0.
        offset_xy: Column and row of the crop's top-left pixel in the image.
        size_hw: Height and width of the image.

    Returns:
        The RLE of the whole image.
    """
    (height, width), (x, y) = size_hw, offset_xy
    flat = np.zeros((crop.shape[1], height), dtype=bool)
    flat[:, y : y + crop.shape[0]] = (crop > 0).T
    changes = np.flatnonzero(np.diff(flat.ravel(), prepend=False, append=False)) + x * height
    edges = np.concatenate([[0], changes, [width * height]])
    runs = np.diff(edges)
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]
    raw = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": raw["counts"].decode("ascii")}


def decode(rle: RLE) -> Mask:
    """Decode a compressed RLE to a mask, H x W, uint8, 0 or 1."""
    decoded: Mask = coco_mask.decode(packed(rle))
    return decoded


def area(rle: RLE) -> int:
    """Number of pixels of a mask."""
    return int(coco_mask.area(packed(rle)))


def box(rle: RLE) -> tuple[float, float, float, float] | None:
    """Left, top, width, height of a mask's tight box, half-open; None where the mask is empty."""
    left, top, width, height = (float(value) for value in coco_mask.toBbox(packed(rle)))
    return (left, top, width, height) if width and height else None


def packed(rle: RLE) -> dict[str, Any]:
    """An RLE as pycocotools takes it: `counts` in bytes."""
    return {"size": list(rle["size"]), "counts": rle["counts"].encode("ascii")}


def union(rles: Iterable[RLE], size_hw: tuple[int, int]) -> Mask:
    """Union of masks: H x W, uint8, 0 or 1; all zero when there are none."""
    pieces = [packed(rle) for rle in rles]
    if not pieces:
        return np.zeros(size_hw, dtype=np.uint8)
    merged: Mask = coco_mask.decode(coco_mask.merge(pieces))
    return merged


def component_count(mask: npt.NDArray[Any]) -> int:
    """Number of 8-connected components of a mask."""
    return int(cv2.connectedComponents((mask > 0).view(np.uint8), connectivity=8)[0]) - 1


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


def _components(crop: Mask) -> list[tuple[Mask, int, int, int]]:
    """Tight crop, left, top and area of each 8-connected component."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8, ltype=cv2.CV_32S)
    if count == 2:
        return [(crop, 0, 0, int(stats[1, cv2.CC_STAT_AREA]))]
    pieces: list[tuple[Mask, int, int, int]] = []
    for label in range(1, count):
        x, y, w, h, area = (int(value) for value in stats[label])
        piece = (labels[y : y + h, x : x + w] == label).view(np.uint8)
        pieces.append((piece, x, y, area))
    return sorted(pieces, key=lambda piece: (piece[2], piece[1]))
