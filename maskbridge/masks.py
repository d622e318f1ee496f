"""Reading images and masks unchanged; what is defect in a mask is `maskbridge.binarisation`.

mask = read_mask(path)                        # H x W, uint8 or uint16
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.errors import SourceError

RawMask = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode_image(data: bytes, path: Path) -> npt.NDArray[Any]:
    """Decode an image file unchanged.

    Args:
        data: Content of the file.
        path: For the error message.

    Returns:
        H x W or H x W x channels (BGR order), uint8 or uint16.

    Raises:
        SourceError: When it cannot be decoded, ends too early or is damaged in the middle.
    """
    if data[:8] == _PNG_SIGNATURE:
        _check_png(data, path)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if pixels is None:
        raise SourceError(
            "cannot be decoded",
            where=path,
            found=f"{len(data)} bytes",
            expected="a readable image",
            remedy="copy it again from the source, or remove it",
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise SourceError("has an unknown depth", where=path, found=pixels.dtype, expected="8 or 16 bit")
    return pixels


def read_mask(path: Path) -> RawMask:
    """Read a mask unchanged and reduce it to one channel.

    Grey, palette, RGB, RGBA, 1-bit, 8-bit and 16-bit files are read. A constant alpha is ignored; where the colour is
    constant and alpha is not, alpha is the mask; where both vary, transparent pixels are 0. Colours reduce to their
    largest channel.

    Returns:
        H x W, uint8 or uint16.

    Raises:
        SourceError: When the file cannot be decoded, or has more than one colour beside black that are not greys.
    """
    return decode_mask(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Content of an image or mask file.

    Raises:
        SourceError: When it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError("cannot be read", where=path, found=error.strerror) from error


def decode_mask(data: bytes, path: Path) -> RawMask:
    """Decode a mask; see `read_mask`.

    Args:
        data: Content of the file.
        path: For the error message.
    """
    pixels = decode_image(data, path)
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


def _check_png(data: bytes, path: Path) -> None:
    """Refuse a PNG that ends too early, or one of whose critical chunks fails its checksum."""
    view, start, kind = memoryview(data), len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", view[start : start + 8]) if start + 8 <= len(data) else (0, b"")
        end = start + 8 + length
        if end + 4 > len(data):
            raise SourceError(
                "is truncated",
                where=path,
                found=f"a PNG of {len(data)} bytes without its end",
                expected="a whole PNG",
                remedy="copy it again from the source",
            )
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise SourceError(
                "is damaged",
                where=path,
                found=f"a chunk {kind.decode('latin-1')} at byte {start} that fails its checksum",
                expected="a whole PNG",
                remedy="copy it again from the source",
            )
        start = end + 4
