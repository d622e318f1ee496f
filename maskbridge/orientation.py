"""EXIF orientations in exported images: masks lie on the stored pixels, and other programs turn them.

take_orientation(Path("images/train/000.jpg"))     # True if the file had one; the pixels stay as they are stored
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from maskbridge.errors import DatasetError
from maskbridge.files import write_bytes

_HEAD_BYTES = 1 << 16
_MARKS = (b"Exif", b"eXIf", b"EXIF", b"II*\0", b"MM\0*")
#: cv2 writes these without loss.
_LOSSLESS = {".png": [], ".tif": [], ".tiff": [], ".bmp": [], ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101]}


def take_orientation(path: Path) -> bool:
    """Make a file show its pixels as they are stored to every program; a file without an orientation stays untouched.

    A JPEG loses its EXIF segments, its pixels stay what they are; other formats are written anew without loss. A hard
    link is replaced, never written through.

    Returns:
        Whether there was an orientation.

    Raises:
        DatasetError: When the file has one that cannot be taken away.
    """
    with path.open("rb") as file:
        if not any(mark in file.read(_HEAD_BYTES) for mark in _MARKS):
            return False
    data = path.read_bytes()
    pixels = np.frombuffer(data, dtype=np.uint8)
    turned = cv2.imdecode(pixels, cv2.IMREAD_COLOR)
    stored = cv2.imdecode(pixels, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if turned is None or stored is None or (turned.shape == stored.shape and (turned == stored).all()):
        return False
    suffix = path.suffix.lower()
    if suffix in (".jpg", ".jpeg"):
        write_bytes(path, _without_exif(data))
        return True
    whole = cv2.imdecode(pixels, cv2.IMREAD_UNCHANGED)
    if suffix not in _LOSSLESS or whole is None:
        raise DatasetError("has an EXIF orientation that cannot be taken away", where=path, remedy="save it as PNG")
    write_bytes(path, cv2.imencode(suffix, whole, _LOSSLESS[suffix])[1].tobytes())
    return True


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
