"""Image files as arrays: whole or refused, in the frame of the stored pixels, without a word of the libraries.

picture = decode(path.read_bytes(), path)             # unchanged: 8 or 16 bit, grey, BGR or BGRA
rgb = as_rgb8(picture.pixels, bit_depth=12)           # what models see
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.errors import MaskbridgeError, SourceError
from maskbridge.files import read_regular, sha256_bytes
from maskbridge.image_checks import WHOLE, Damaged, inspect

#: Depths that cameras give their pixels in 16-bit files.
BIT_DEPTHS = (10, 12, 14, 16)


@dataclass(frozen=True)
class Picture:
    """A decoded file.

    Attributes:
        pixels: H x W or H x W x channels (BGR order), uint8 or uint16, as stored.
        orientation: EXIF orientation, which is not applied.
        kind: `PNG`, `JPEG`, `WebP`, `BMP` or `TIFF`.
    """

    pixels: npt.NDArray[Any]
    orientation: int
    kind: str


def read_again(path: Path, sha256: str, name: Path | None = None) -> bytes:
    """A file of a source that has been read before.

    Args:
        path: The file.
        sha256: Of what was read.
        name: What the message calls the file, if not `path`.

    Raises:
        SourceError: When it has changed, or is no longer there.
    """
    try:
        if sha256_bytes(data := read_regular(path)) == sha256:
            return data
        found = None
    except MaskbridgeError as error:
        found = error
    raise SourceError(
        "has changed since it was read",
        where=name or path,
        found=found,
        remedy="convert again when nothing writes to the source",
    ) from found


def decode(data: bytes, path: Path, error: type[MaskbridgeError] = SourceError) -> Picture:
    """Decode an image file unchanged.

    Args:
        data: Content of the file.
        path: For the error message.
        error: What is raised.

    Raises:
        MaskbridgeError: When it is not whole, too large, or of another format or depth.
    """
    remedy = "copy it again from the source, or remove it"
    try:
        header = inspect(data)
        pixels = cv2.imdecode(np.frombuffer(header.plain, np.uint8), cv2.IMREAD_UNCHANGED)
    except Damaged as problem:
        what = "is damaged" if problem.expected == WHOLE else "cannot be decoded"
        raise error(what, where=path, found=problem.found, expected=problem.expected, remedy=remedy) from problem
    except cv2.error as problem:
        raise error("cannot be decoded", where=path, found=problem.err, remedy=remedy) from problem
    if pixels is None or pixels.shape[:2] != header.size_hw:
        found = f"a {header.kind} that OpenCV does not read"
        raise error("cannot be decoded", where=path, found=found, remedy="save it as PNG")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise error("has an unknown depth", where=path, found=pixels.dtype, expected="8 or 16 bit")
    return Picture(pixels, header.orientation, header.kind)


def highest_value(pixels: npt.NDArray[Any]) -> int:
    """Largest value of a 16-bit image, alpha left out; 0 for 8 bits, which are never scaled."""
    if pixels.dtype != np.uint16:
        return 0
    return int((pixels[..., :3] if pixels.ndim == 3 else pixels).max())


def depth_of(highest: int) -> int:
    """The smallest of `BIT_DEPTHS` that holds a value; 8 for 0, where no image has 16 bits with light in it."""
    return next(bits for bits in BIT_DEPTHS if highest < 1 << bits) if highest else 8


def scaled(pixels: npt.NDArray[Any], bit_depth: int, dtype: type[np.uint8] | type[np.uint16]) -> npt.NDArray[Any]:
    """Stretch 16-bit pixels from their depth to the whole range of a type; 8-bit ones stay as they are.

    Args:
        pixels: H x W or H x W x channels; a fourth channel is alpha, whose range is always the whole one.
        bit_depth: Of the source; 8, where it is not known, counts as 16.
        dtype: `np.uint8` or `np.uint16`.

    Returns:
        Of the same shape, rounded; a value beyond the depth becomes the largest one.
    """
    if pixels.dtype != np.uint16:
        return pixels
    most, whole = np.iinfo(dtype).max, 65535
    top = (1 << bit_depth) - 1 if bit_depth > 8 else whole

    def table(end: int) -> npt.NDArray[Any]:
        return np.minimum((np.arange(whole + 1) * (2 * most) + end) // (2 * end), most).astype(dtype)

    stretched: npt.NDArray[Any] = table(top)[pixels]
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        stretched[..., -1] = table(whole)[pixels[..., -1]]
    return stretched


def as_rgb8(pixels: npt.NDArray[Any], bit_depth: int) -> npt.NDArray[np.uint8]:
    """H x W x 3, uint8, RGB, of what `decode` gives: grey is repeated, alpha dropped, 16 bits are scaled."""
    eight = scaled(pixels, bit_depth, np.uint8)
    if eight.ndim == 2:
        return np.asarray(cv2.cvtColor(eight, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    return np.ascontiguousarray(eight[..., 2::-1], dtype=np.uint8)
