"""Exported images as any program reads them: 8 bit, and shown as they are stored.

Masks lie on the stored pixels, and other programs turn a picture by its EXIF orientation; of 16 bits most read the
upper eight.

    take_orientation(Path("images/train/000.jpg"))     # True if the file had one; the pixels stay as they are stored
    take_depth(Path("images/train/001.png"), 12)       # True if the file had 16 bits
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.decoding import decode, scaled
from maskbridge.errors import DatasetError
from maskbridge.files import read_regular, write_bytes

_MARKS = (b"Exif", b"eXIf", b"EXIF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: How cv2 writes them without loss, by kind.
_LOSSLESS: dict[str, tuple[str, list[int]]] = {
    "PNG": (".png", []),
    "TIFF": (".tif", []),
    "WebP": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
}


def take_orientation(path: Path) -> bool:
    """Make a file show its pixels as they are stored to every program; a file without an orientation stays untouched.

    A JPEG loses its EXIF segments, its pixels stay what they are; other formats are written anew without loss. A hard
    link is replaced, never written through.

    Returns:
        Whether there was an orientation.

    Raises:
        DatasetError: When the file is damaged.
    """
    data = read_regular(path, error=DatasetError)
    if not any(mark in data for mark in _MARKS):
        return False
    picture = decode(data, path, DatasetError)
    if picture.orientation == 1:
        return False
    write_bytes(path, _without_exif(data) if picture.kind == "JPEG" else _encoded(picture.pixels, picture.kind))
    return True


def take_depth(path: Path, bit_depth: int) -> bool:
    """Write a 16-bit file anew with 8 bits, without EXIF, in its own format; another one stays untouched.

    Args:
        path: The file; a hard link is replaced, never written through.
        bit_depth: Bits that its pixels use.

    Returns:
        Whether it had 16 bits.

    Raises:
        DatasetError: When the file is damaged.
    """
    picture = decode(read_regular(path, error=DatasetError), path, DatasetError)
    if picture.pixels.dtype != np.uint16:
        return False
    write_bytes(path, _encoded(scaled(picture.pixels, bit_depth, np.uint8), picture.kind))
    return True


def _encoded(pixels: npt.NDArray[Any], kind: str) -> bytes:
    suffix, flags = _LOSSLESS[kind]
    return cv2.imencode(suffix, pixels, flags)[1].tobytes()


def _without_exif(data: bytes) -> bytes:
    """A JPEG without its EXIF segments (ITU T.81, annex B: marker, length, content)."""
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        length = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place : place + length]
        if not (segment[1] == 0xE1 and segment[4:8] == b"Exif"):
            kept.append(segment)
        place += length
    return b"".join([*kept, data[place:]])
