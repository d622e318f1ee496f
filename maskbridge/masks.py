"""Reading masks unchanged, and one binarisation rule for a whole source.

The rule: with at most two distinct values over the source, a pixel is defect where it is > 0; otherwise, if the
largest value is at least half the dtype's maximum (an anti-aliased mask), where it is at least half that maximum;
otherwise the source holds label masks and is refused. Alpha is ignored where it is constant.

    mask = read_mask(path)                        # H x W, uint8 or uint16
    threshold = binarisation(merge(stats)).threshold
    defect = mask >= threshold
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.decoding import decode, read_regular
from maskbridge.errors import SourceError

RawMask = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Values:
    """Which values masks of one dtype hold.

    Attributes:
        dtype: `uint8` or `uint16`.
        distinct: All distinct values, ascending.
    """

    dtype: str
    distinct: tuple[int, ...]


@dataclass(frozen=True)
class Binarisation:
    """Defect where value >= `threshold`, and the rule in words."""

    threshold: int
    rule: str
    distinct: tuple[int, ...]


def read_mask(path: Path) -> RawMask:
    """Read a mask unchanged, in the frame of its stored pixels, and reduce it to one channel; see `one_channel`.

    Raises:
        SourceError: When the file cannot be decoded, or has more than one colour beside black that are not greys.
    """
    return one_channel(decode(read_regular(path), path).pixels, path)


def one_channel(pixels: npt.NDArray[Any], path: Path) -> RawMask:
    """Reduce a mask to one channel.

    Grey, palette, RGB, RGBA, 1-bit, 8-bit and 16-bit files are read. A constant alpha is ignored; where the colour is
    constant and alpha is not, alpha is the mask; where both vary, transparent pixels are 0. Colours reduce to their
    largest channel.

    Args:
        pixels: H x W or H x W x channels (BGR order), uint8 or uint16.
        path: For the error message.

    Returns:
        H x W, of the same depth.

    Raises:
        SourceError: When there is more than one colour beside black, and they are not greys.
    """
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] in (2, 4):
        alpha, pixels = pixels[:, :, -1], pixels[:, :, :-1]
        if alpha.min() != alpha.max():
            if (pixels == pixels[:1, :1]).all():
                return np.ascontiguousarray(alpha)
            pixels = np.where(alpha[:, :, None] > 0, pixels, 0)
    if (pixels == pixels[:, :, :1]).all():
        return np.ascontiguousarray(pixels[:, :, 0])
    colours = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)
    if colours.any(axis=1).sum() > 1:
        listed = ", ".join(str(tuple(int(v) for v in colour[::-1])) for colour in colours[:6])
        raise SourceError(
            "is a colour label mask, not a mask of defect and background",
            where=path,
            found=f"{len(colours)} RGB colours: {listed}",
            expected="black and one colour",
            remedy="write one binary mask for each defect type",
        )
    return np.ascontiguousarray(pixels.max(axis=2))


def mask_values(mask: RawMask) -> Values:
    """Distinct values of a mask."""
    bins = 256 if mask.dtype == np.uint8 else 65536
    histogram = cv2.calcHist([mask], [0], None, [bins], [0.0, float(bins)])
    return Values(str(mask.dtype), tuple(int(value) for value in np.flatnonzero(histogram)))


def binarisation(masks: list[Values], where: Path) -> dict[str, Binarisation]:
    """Decide the rule over a whole source, for each dtype that occurs.

    Args:
        masks: Values of every mask.
        where: The source, for the error message.

    Returns:
        dtype -> rule.

    Raises:
        SourceError: When the source holds label masks.
    """
    rules: dict[str, Binarisation] = {}
    for dtype in sorted({values.dtype for values in masks}):
        distinct = sorted({value for values in masks if values.dtype == dtype for value in values.distinct})
        maximum = int(np.iinfo(dtype).max)
        half = (maximum + 1) // 2
        if len(distinct) <= 2:
            rules[dtype] = Binarisation(1, "at most two distinct values: defect where > 0", tuple(distinct))
        elif distinct[-1] >= half:
            rule = f"{len(distinct)} distinct values up to {distinct[-1]}: defect where >= {half}"
            rules[dtype] = Binarisation(half, rule, tuple(distinct))
        else:
            listed = ", ".join(map(str, distinct[:12])) + (", …" if len(distinct) > 12 else "")
            raise SourceError(
                "masks hold labels, not defect and background",
                where=where,
                found=f"{dtype} values {listed}",
                expected=f"two values, or grey values up to at least {half}",
                remedy="write binary masks (0 and 255), one file for each defect type",
            )
    return rules
