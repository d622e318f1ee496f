"""One line of a YOLO label file, written and read: text on one side, pixels on the other.

    line = detection_line(0, (5, 5, 5, 5), (48, 64))    # "0 0.1171875 0.15625 0.078125 0.104166666667"
    parse_detection_line(line, (48, 64))                # (0, (5.0, 5.0, 5.0, 5.0))

A detection line is `class cx cy w h`, a segmentation line `class x1 y1 x2 y2 …`; everything but the class is
a fraction of the image's width or height. The format has no other reference than its reader,
`verify_image_label` in Ultralytics: whole class indices, no value below 0 or above 1, and either five fields
in every line of a file or at least seven. Of two equal lines in a file it drops one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskbridge.errors import DatasetError

BoxLtwh: TypeAlias = tuple[float, float, float, float]
"""Left, top, width, height in pixels, half-open: a 5x5 square at (5, 5) is (5, 5, 5, 5)."""


def detection_line(class_index: int, box_ltwh: BoxLtwh, size_hw: tuple[int, int]) -> str:
    """Write a box as a detection line.

    Args:
        class_index: Class, 0 or more.
        box_ltwh: Half-open box in pixels, inside the image.
        size_hw: Height and width of the image in pixels.

    Returns:
        `class cx cy w h` in fractions of the image, without a line end; twelve digits, so that parsing gives
        the box back to 1e-6 px.

    Raises:
        DatasetError: The class is negative, or the box is empty or not inside the image.
    """
    left, top, box_width, box_height = box_ltwh
    height, width = size_hw
    inside = left >= 0 and top >= 0 and left + box_width <= width and top + box_height <= height
    if not (inside and box_width > 0 and box_height > 0):
        raise DatasetError(
            "box does not lie in its image",
            found=f"[x, y, w, h] {list(box_ltwh)}",
            expected=f"within {width}x{height}",
        )
    fractions = (
        (left + box_width / 2) / width,
        (top + box_height / 2) / height,
        box_width / width,
        box_height / height,
    )
    return _line(class_index, fractions, digits=12)


def segmentation_line(class_index: int, polygon_xy: npt.NDArray[np.float64], size_hw: tuple[int, int]) -> str:
    """Write a polygon as a segmentation line.

    Args:
        class_index: Class, 0 or more.
        polygon_xy: Vertices, float64 of shape (N, 2), N ≥ 3, x before y, in pixels, 0 ≤ x ≤ width.
        size_hw: Height and width of the image in pixels.

    Returns:
        `class x1 y1 x2 y2 …` in fractions of the image, without a line end; nine digits, a float32 exactly.

    Raises:
        DatasetError: The class is negative, there are fewer than three vertices, or one is not in the image.
    """
    height, width = size_hw
    fractions = polygon_xy / (width, height)
    if len(polygon_xy) < 3:
        raise DatasetError("polygon is not one", found=f"{len(polygon_xy)} vertices", expected="3 or more")
    if not ((fractions >= 0) & (fractions <= 1)).all():
        low, high = polygon_xy.min(axis=0).tolist(), polygon_xy.max(axis=0).tolist()
        raise DatasetError(
            "polygon does not lie in its image",
            found=f"x, y from {low} to {high}",
            expected=f"within {width}x{height}",
        )
    return _line(class_index, fractions.ravel().tolist(), digits=9)


def parse_detection_line(
    line: str, size_hw: tuple[int, int], *, where: str | os.PathLike[str] | None = None
) -> tuple[int, BoxLtwh]:
    """Read a detection line.

    Args:
        line: `class cx cy w h`.
        size_hw: Height and width of the image in pixels.
        where: File and line number for the error message.

    Returns:
        Class index and half-open box (left, top, width, height) in pixels.

    Raises:
        DatasetError: The line has not five fields, a bad class, or a value outside [0, 1].
    """
    class_index, fractions = _parse_fractions(line, where)
    if len(fractions) != 4:
        raise DatasetError(
            "not a detection line",
            where=where,
            found=f"{1 + len(fractions)} fields",
            expected="5: class cx cy w h",
        )
    height, width = size_hw
    center_x, center_y, box_width, box_height = (fractions * (width, height, width, height)).tolist()
    return class_index, (center_x - box_width / 2, center_y - box_height / 2, box_width, box_height)


def parse_segmentation_line(
    line: str, size_hw: tuple[int, int], *, where: str | os.PathLike[str] | None = None
) -> tuple[int, npt.NDArray[np.float64]]:
    """Read a segmentation line.

    Args:
        line: `class x1 y1 x2 y2 x3 y3 …`.
        size_hw: Height and width of the image in pixels.
        where: File and line number for the error message.

    Returns:
        Class index and vertices, float64 of shape (N, 2), x before y, in pixels.

    Raises:
        DatasetError: The line has fewer than three points or half a point, a bad class, or a value outside
            [0, 1].
    """
    class_index, fractions = _parse_fractions(line, where)
    if len(fractions) < 6 or len(fractions) % 2:
        raise DatasetError(
            "not a segmentation line",
            where=where,
            found=f"{1 + len(fractions)} fields",
            expected="class x1 y1 x2 y2 x3 y3 …: an odd number of fields, 7 or more",
        )
    height, width = size_hw
    return class_index, fractions.reshape(-1, 2) * (width, height)


def _parse_fractions(line: str, where: str | os.PathLike[str] | None) -> tuple[int, npt.NDArray[np.float64]]:
    """Read what every YOLO line has in common: a class, then values in [0, 1], float64 (fields - 1,)."""
    class_field, *fields = line.split() or [""]
    if not (class_field.isascii() and class_field.isdigit()):
        raise DatasetError("bad class", where=where, found=repr(class_field), expected="a whole number of 0 or more")
    fractions = np.array([_number(field) for field in fields], dtype=np.float64)
    bad = np.flatnonzero(~((fractions >= 0) & (fractions <= 1)))
    if bad.size:
        field = int(bad[0])
        raise DatasetError(f"bad value in field {field + 2}", where=where, found=repr(fields[field]), expected="0 to 1")
    return int(class_field), fractions


def _line(class_index: int, fractions: Sequence[float], *, digits: int) -> str:
    if class_index < 0:
        raise DatasetError("bad class", found=class_index, expected="a whole number of 0 or more")
    return str(class_index) + f" %.{digits}g" * len(fractions) % tuple(fractions)


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return math.nan
