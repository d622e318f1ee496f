"""The orientation that EXIF gives an image, and what it does to pixels (EXIF 2.32, tag 0x0112; TIFF 6.0).

orientation_of(block)                                # 1 to 8; 1 where the block does not say
upright = turned_upright(stored, 6)                  # as viewers and annotation tools show it
stored = turned_upright(upright, BACK[6])
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ORIENTATION_TAG = 0x0112
#: What a viewer does with the stored pixels.
WORDS = {
    1: "as it is stored",
    2: "mirrored",
    3: "turned by a half",
    4: "upside down and mirrored",
    5: "mirrored and turned by a quarter to the left",
    6: "turned by a quarter to the right",
    7: "mirrored and turned by a quarter to the right",
    8: "turned by a quarter to the left",
}
#: The orientation that undoes another one.
BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
_MOST_ENTRIES = 4096
_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class Entry:
    """One field of a TIFF directory.

    Attributes:
        values: Its whole numbers; none for fields of other kinds.
        place: Byte of the block at which the values begin.
        end: Byte after the last one; it may lie outside the block.
        code: `struct` format of one value, byte order included.
    """

    values: tuple[int, ...]
    place: int
    end: int
    code: str


def read_directory(block: bytes | memoryview) -> dict[int, Entry]:
    """Fields of the first directory of a TIFF structure, by tag; values that lie outside the block are left out.

    Raises:
        ValueError: When it is no TIFF structure, or its directory does not lie in the block.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None or len(block) < 8:
        raise ValueError("no TIFF header")
    try:
        version, offset = struct.unpack_from(f"{order}HI", block, 2)
        big = version == 43
        if big:
            (offset,) = struct.unpack_from(f"{order}Q", block, 8)
        elif version != 42:
            raise ValueError(f"TIFF version {version}")
        word, size, head = ("Q", 20, 8) if big else ("I", 12, 2)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), block, offset)
        if count > _MOST_ENTRIES:
            raise ValueError(f"a directory of {count} entries")
        entries: dict[int, Entry] = {}
        for start in range(offset + head, offset + head + size * count, size):
            tag, kind, number = struct.unpack_from(f"{order}HH{word}", block, start)
            place, room = start + 4 + struct.calcsize(word), struct.calcsize(word)
            length = number * _BYTES.get(kind, 1)
            if length > room:
                (place,) = struct.unpack_from(order + word, block, place)
            code, values = order + _FORMATS.get(kind, "B"), ()
            if kind in _FORMATS and place + length <= len(block):
                values = struct.unpack_from(f"{order}{number}{_FORMATS[kind]}", block, place)
            entries.setdefault(tag, Entry(values, place, place + length, code))
    except (struct.error, OverflowError) as error:
        raise ValueError("a directory that lies outside the file") from error
    return entries


def orientation_of(block: bytes | memoryview) -> int:
    """Orientation in an EXIF block (a TIFF structure); 1 where it has none, or none that means anything."""
    try:
        entry = read_directory(block).get(ORIENTATION_TAG)
    except ValueError:
        return 1
    return entry.values[0] if entry is not None and entry.values and entry.values[0] in WORDS else 1


def turned_upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """The picture as viewers show it.

    Args:
        pixels: H x W or H x W x channels, stored frame.
        orientation: 1 to 8.

    Returns:
        The same in the upright frame, contiguous; orientations from 5 on swap height and width.
    """
    across = np.swapaxes(pixels, 0, 1) if orientation >= 5 else pixels
    rows, columns = {
        1: (1, 1),
        2: (1, -1),
        3: (-1, -1),
        4: (-1, 1),
        5: (1, 1),
        6: (1, -1),
        7: (-1, -1),
        8: (-1, 1),
    }[orientation]
    return np.ascontiguousarray(across[::rows, ::columns])
