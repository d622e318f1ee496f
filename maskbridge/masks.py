"""Reading images and masks unchanged; what is defect in a mask is `maskbridge.binarisation`.

mask = read_mask(path)                        # H x W, uint8 or uint16
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskbridge.decoding import decode
from maskbridge.errors import SourceError
from maskbridge.files import read_regular

RawMask = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def read_mask(path: Path) -> RawMask:
    """Read a mask unchanged, in the frame of its stored pixels, and reduce it to one channel; see `one_channel`.

    Raises:
        SourceError: When the file cannot be decoded, or has more than one colour beside black that are not greys.
    """
    return one_channel(decode(read_regular(path, error=SourceError), path).pixels, path)


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
