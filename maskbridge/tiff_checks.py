"""TIFF files checked to their end: every strip or tile of the first picture unpacks to all its pixels.

    header = inspect_tiff(data)           # Damaged, in words, if the file is not whole

OpenCV reads 8-bit TIFF through an interface of libtiff that goes on after errors. TIFF 6.0, section 13 for LZW:
https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from maskbridge.exif import ORIENTATION_TAG, Entry, orientation_of, read_directory
from maskbridge.image_checks import Damaged, Header, check_jpeg, inflate, require_size

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _JPEG_TABLES = 322, 323, 324, 325, 347
_YCBCR = 6
_NO_RUN = bytes(64)  # zeros that neither LZW nor a fax code writes

_CLEAR, _END = 256, 257
# Codes after a clear, up to a full table: their widths, and where they begin.
#: Number of the compression that loses pixels.
JPEG_IN_TIFF = 7

_LZW_WIDTHS = np.repeat([9, 10, 11, 12], [254, 512, 1024, 2050])
_LZW_STARTS = np.concatenate([[0], np.cumsum(_LZW_WIDTHS)[:-1]])


def inspect_tiff(data: bytes) -> Header:
    """Check the first picture of a TIFF to its end.

    Raises:
        Damaged: When it ends too early, is damaged, or is compressed in a way that cannot be checked.
    """
    try:
        fields = read_directory(data)
    except ValueError as error:
        raise Damaged(f"a TIFF with {error}") from error
    for tag, field in fields.items():
        if field.end > len(data):
            raise Damaged(f"a TIFF whose field {tag} lies outside the file")
    width, height = _number(fields, _WIDTH), _number(fields, _HEIGHT)
    require_size(height, width)
    compression = _number(fields, _COMPRESSION, 1)
    unpack = _UNPACKED.get(compression)
    if unpack is None:
        raise Damaged(f"a TIFF of compression {compression}", "none, LZW, Deflate, PackBits, JPEG or fax")
    pieces = list(_pieces(fields, data, height, width))
    for index, (piece, needed, most) in enumerate(pieces):
        if len(piece) == 0:
            raise Damaged(f"a TIFF whose piece {index} of {len(pieces)} lies outside the file")
        there = needed if compression == JPEG_IN_TIFF else unpack(piece, needed, most)
        if compression == JPEG_IN_TIFF:
            _check_jpeg_piece(piece, fields, data)
        if there < needed and not (compression == 1 and _number(fields, _PHOTOMETRIC, 0) == _YCBCR):
            raise Damaged(f"a TIFF whose piece {index} of {len(pieces)} has {there} of {needed} bytes of pixels")
    orientation, plain = orientation_of(data), data
    if orientation != 1:
        entry, upright = fields[ORIENTATION_TAG], bytearray(data)
        struct.pack_into(entry.code, upright, entry.place, 1)
        plain = bytes(upright)
    return Header("TIFF", (height, width), orientation, plain)


def compression_of(data: bytes) -> int:
    """Number of the compression of the first picture of a TIFF that was inspected; `JPEG_IN_TIFF` loses pixels."""
    return _number(read_directory(data), _COMPRESSION, 1)


def _number(fields: dict[int, Entry], tag: int, default: int | None = None) -> int:
    values = fields[tag].values if tag in fields else ()
    if values:
        return values[0]
    if default is None or tag in fields:
        raise Damaged(f"a TIFF without field {tag}")
    return default


def _pieces(fields: dict[int, Entry], data: bytes, height: int, width: int) -> Iterator[tuple[memoryview, int, int]]:
    """Each strip or tile (empty where it lies outside the file), the bytes it unpacks to, and those of a full one."""
    samples = _number(fields, _SAMPLES, 1)
    bits = fields[_BITS].values if _BITS in fields else (1,)
    if not bits or max(bits) > 64 or samples > 64:
        raise Damaged("a TIFF without the depth of its pixels")
    planes = samples if _number(fields, _PLANAR, 1) == 2 else 1
    pixel_bits = max(bits) * samples // planes
    if _TILES in fields:
        across, down = _number(fields, _TILE_WIDTH), _number(fields, _TILE_HEIGHT)
        places, sizes = fields.get(_TILES), fields.get(_TILE_BYTES)
    else:
        across, down = width, min(_number(fields, _ROWS_PER_STRIP, height), height)
        places, sizes = fields.get(_STRIPS), fields.get(_STRIP_BYTES)
    if across < 1 or down < 1:
        raise Damaged("a TIFF with strips of no pixel")
    count = -(-width // across) * -(-height // down) * planes
    row = (across * pixel_bits + 7) // 8
    if places is None or len(places.values) < count:
        raise Damaged(f"a TIFF without the places of its {count} strips or tiles")
    if sizes is None and _number(fields, _COMPRESSION, 1) != 1:
        raise Damaged("a TIFF without the lengths of its strips or tiles")
    if sizes is not None and len(sizes.values) < count:
        raise Damaged(f"a TIFF without the lengths of its {count} strips or tiles")
    for index in range(count):
        rows = down
        if _TILES not in fields:
            rows = min(down, height - index % (count // planes) * down)
        start = places.values[index]
        end = start + (rows * row if sizes is None else sizes.values[index])
        yield memoryview(data)[start:end] if end <= len(data) else memoryview(b""), rows * row, down * row


def _check_jpeg_piece(piece: memoryview, fields: dict[int, Entry], data: bytes) -> None:
    tables = fields.get(_JPEG_TABLES)
    head = b"" if tables is None else data[tables.place : tables.end]
    whole = bytes(piece)
    if len(head) > 4 and whole[:2] == b"\xff\xd8":  # the tables end with EOI, the piece begins with SOI
        whole = head[:-2] + whole[2:]
    check_jpeg(whole)


def _stored(piece: memoryview, needed: int, most: int) -> int:
    return len(piece)


def _inflated(piece: memoryview, needed: int, most: int) -> int:
    return sum(map(len, inflate([piece], most)))  # the last strip may be a full one


def _fax(piece: memoryview, needed: int, most: int) -> int:
    """Fax codes have no check of their own; zeros are none of them."""
    _refuse_zeros(piece)
    return needed


def _packbits(piece: memoryview, needed: int, most: int) -> int:
    place = length = 0
    while place < len(piece) and length < needed:
        head = piece[place]
        if head < 128:
            place += head + 2
            length += head + 1
        else:
            place += 1 if head == 128 else 2
            length += 0 if head == 128 else 257 - head
    return length if place <= len(piece) else min(length, needed - 1)


def _lzw(piece: memoryview, needed: int, most: int) -> int:
    """Bytes that LZW codes unpack to: one code after the other, without the bytes themselves."""
    _refuse_zeros(piece)
    data = np.concatenate([np.frombuffer(piece, np.uint8), np.zeros(3, np.uint8)]).astype(np.int64)
    bits, begin, length = 8 * len(piece), 0, 0
    while length < needed:
        starts = begin + _LZW_STARTS
        fits = starts + _LZW_WIDTHS <= bits
        starts, widths = starts[fits], _LZW_WIDTHS[fits]
        first = starts >> 3
        three = data[first] << 16 | data[first + 1] << 8 | data[first + 2]
        codes = (three >> (24 - (starts & 7) - widths)) & ((1 << widths) - 1)
        special = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        whole = codes[: special[0]] if len(special) else codes
        limit = 257 + np.arange(len(whole))  # the entry that this code makes may be the one that it names
        wrong = np.flatnonzero(whole > np.where(np.arange(len(whole)) == 0, 255, limit))
        length += _unpacked_length(whole[: wrong[0]] if len(wrong) else whole)
        if length >= needed:
            break
        if len(wrong):
            raise Damaged("a TIFF with an LZW code that is not in its table")
        if not len(special) or codes[special[0]] == _END:
            break
        begin = int(starts[special[0]] + widths[special[0]])
    return length


def _unpacked_length(codes: npt.NDArray[np.int64]) -> int:
    """Bytes of the codes after a clear: each entry of the table is one longer than the code before it.

    Entry 258 + k was made after code k; the ways back to single bytes are followed for all codes at once, in
    steps that double.
    """
    count = len(codes)
    lengths = np.append(np.ones(count, np.int64), 0)
    back = np.append(np.where(codes < _CLEAR, count, codes - 258), count)
    while (back < count).any():
        lengths += lengths[back]
        back = back[back]
    return int(lengths.sum())


def _refuse_zeros(piece: memoryview) -> None:
    if _NO_RUN in bytes(piece):
        raise Damaged(f"a TIFF with {len(_NO_RUN)} bytes of zeros in compressed data")


#: Bytes that a strip or tile unpacks to, given itself, the bytes needed and those of a full one, by compression.
_UNPACKED: dict[int, Callable[[memoryview, int, int], int]] = {
    1: _stored,
    2: _fax,
    3: _fax,
    4: _fax,
    5: _lzw,
    7: _stored,
    8: _inflated,
    32773: _packbits,
    32946: _inflated,
}
