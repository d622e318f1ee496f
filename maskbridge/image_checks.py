"""Image files checked to their end before any decoder sees them, and what their headers say.

    header = inspect(data)                # Damaged, in words, if the file is not whole
    header.size_hw, header.orientation

OpenCV takes a damaged file with a warning of libjpeg or libpng on standard error, or without a word. What is
looked at here: PNG: checksums, the whole compressed stream, filter types (https://www.w3.org/TR/png-3/). JPEG: a strict
decoding by libjpeg-turbo (simplejpeg), which refuses what libjpeg only warns of. WebP: its chunks, and a tail of zeros
(https://developers.google.com/speed/webp/docs/riff_container). BMP: room for its pixels. TIFF: see `tiff_checks`.
Neither a size that a header claims nor a small file that unpacks without end is ever allocated.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from isal import igzip_lib, isal_zlib  # inflates three times as fast as the standard library

from maskbridge.dataset_types import MOST_PIXELS, MOST_SIDE
from maskbridge.exif import orientation_of

#: What is expected of a file that is of a kind that can be read.
WHOLE = "a whole image"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BLOCK = 1 << 22  # bytes inflated at a time
_JPEG_PIXELS_A_BYTE = 512  # a block of 8 x 8 pixels takes at least one bit
_LEAST_ZEROS = 64  # bytes; streams of WebP end with a few zeros of their own
_ZERO_SHARE = 1 / 8  # of flat pictures up to a seventeenth


class Damaged(ValueError):
    """What is wrong with a file, in words, and what it should have been."""

    def __init__(self, found: str, expected: str = WHOLE) -> None:
        """Keep both."""
        super().__init__(found)
        self.found, self.expected = found, expected


@dataclass(frozen=True)
class Header:
    """What a file that is whole says of itself.

    Attributes:
        kind: `PNG`, `JPEG`, `WebP`, `BMP` or `TIFF`, by its content.
        size_hw: Height and width of the stored pixels.
        orientation: EXIF orientation, 1 to 8.
        plain: The same picture for OpenCV, which turns every TIFF by its orientation, and whose libpng remarks on
            colour profiles: without either.
    """

    kind: str
    size_hw: tuple[int, int]
    orientation: int
    plain: bytes


def inspect(data: bytes) -> Header:
    """Check a file to its end.

    Args:
        data: Content of the file.

    Raises:
        Damaged: When it ends too early, is damaged, too large, or of another format.
    """
    from maskbridge.tiff_checks import inspect_tiff

    if data[:8] == _PNG_SIGNATURE:
        return _inspect_png(data)
    if data[:2] == b"\xff\xd8":
        return _inspect_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _inspect_webp(data)
    if data[:2] == b"BM":
        return _inspect_bmp(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return inspect_tiff(data)
    raise Damaged(f"{len(data)} bytes of another kind", "PNG, JPEG, TIFF, BMP or WebP")


def require_size(height: int, width: int) -> None:
    """Refuse sizes that OpenCV does not read.

    Raises:
        Damaged: When there are no pixels or too many.
    """
    if height < 1 or width < 1:
        raise Damaged(f"{width}x{height} pixels")
    if height * width > MOST_PIXELS or max(height, width) > MOST_SIDE:
        raise Damaged(f"{width}x{height} pixels", f"at most {MOST_PIXELS} pixels, and {MOST_SIDE} along a side")


def inflate(pieces: Iterable[bytes | memoryview], most: int, *, alone: bool = False) -> Iterator[bytes]:
    """Blocks of what a zlib stream unpacks to, up to its end and its checksum.

    Args:
        pieces: The stream.
        most: Bytes that it may unpack to.
        alone: Whether nothing may follow it in the pieces.

    Raises:
        Damaged: When it is damaged, ends too early, or holds more.
    """
    stream, length = isal_zlib.decompressobj(), 0
    try:
        for piece in pieces:
            rest: bytes | memoryview = piece
            if alone and stream.eof and rest:
                raise Damaged("data behind the end of its pixels")
            while rest and not stream.eof:
                block = stream.decompress(rest, _BLOCK)
                length += len(block)
                if length > most:
                    raise Damaged("more pixel data than its header states")
                yield block
                rest = stream.unconsumed_tail
        while not stream.eof and (block := stream.decompress(b"", _BLOCK)):
            length += len(block)
            if length > most:
                raise Damaged("more pixel data than its header states")
            yield block
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub has an instance
        raise Damaged(f"compressed data that cannot be unpacked ({error})") from error
    if alone and stream.unused_data:
        raise Damaged("data behind the end of its pixels")
    if not stream.eof:
        raise Damaged("compressed data without its end")


def check_jpeg(data: bytes) -> tuple[int, int]:
    """Decode a JPEG strictly, at an eighth of its size.

    Returns:
        Height and width.

    Raises:
        Damaged: With what libjpeg says.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        require_size(height, width)
        if height * width > _JPEG_PIXELS_A_BYTE * len(data):
            raise Damaged(f"{len(data)} bytes for {width}x{height} pixels")
        target = "CMYK" if space in ("CMYK", "YCCK") else "GRAY"
        simplejpeg.decode_jpeg(data, target, min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        raise error if isinstance(error, Damaged) else Damaged(f"a JPEG: {error}") from error
    return height, width


def _inspect_jpeg(data: bytes) -> Header:
    size_hw = check_jpeg(data)
    orientation, place = 1, 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = orientation_of(memoryview(data)[place + 10 : place + 2 + length])
            break
        place += 2 + length
    return Header("JPEG", size_hw, orientation, data)


def _inspect_png(data: bytes) -> Header:
    view = memoryview(data)
    found: dict[bytes, memoryview] = {}
    pixels: list[memoryview] = []
    for kind, start, end in _png_chunks(view):
        body = view[start + 8 : end - 4]
        if (kind == b"IHDR") != (start == len(_PNG_SIGNATURE)):
            raise Damaged("a PNG whose header is not at its start")
        if kind == b"IDAT":
            pixels.append(body)
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf") and found.setdefault(kind, body) is not body:
            raise Damaged(f"a PNG with two chunks {kind.decode()}")
        elif kind[0] & 0x20 == 0 and kind not in (b"IHDR", b"PLTE", b"IEND"):
            raise Damaged(f"a PNG with an unknown chunk {kind.decode('latin-1')!r}")
    width, height, depth, colour, interlace = _png_header(found[b"IHDR"])
    palette, clear = found.get(b"PLTE", view[:0]), found.get(b"tRNS", view[:0])
    if not pixels or (colour == 3 and b"PLTE" not in found):
        raise Damaged(f"a PNG without {'a palette' if pixels else 'pixels'}")
    if len(palette) % 3 or len(palette) > 768:
        raise Damaged(f"a PNG with a palette of {len(palette)} bytes")
    if b"tRNS" in found and not _png_clear(clear, depth, colour, len(palette) // 3):
        raise Damaged(f"a PNG with {len(clear)} bytes of transparency that mean nothing")
    _check_rows(pixels, list(_png_rows(width, height, depth, colour, interlace)))
    kept = [_PNG_SIGNATURE, _png_chunk(b"IHDR", found[b"IHDR"])]
    if colour == 3:  # filled up, so that no value lies beyond it
        kept.append(_png_chunk(b"PLTE", bytes(palette).ljust(3 << depth, b"\0")))
    if len(clear):
        kept.append(_png_chunk(b"tRNS", clear))
    kept += [_png_chunk(b"IDAT", b"".join(pixels)), _png_chunk(b"IEND", b"")]
    return Header("PNG", (height, width), orientation_of(found.get(b"eXIf", b"")), b"".join(kept))


def _png_header(body: memoryview) -> tuple[int, ...]:
    if len(body) != 13:
        raise Damaged("a PNG with a header of another length")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    require_size(height, width)
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise Damaged(f"a PNG of {depth} bits, colour type {colour}, which do not exist together")
    return width, height, depth, colour, interlace


def _png_clear(body: memoryview, depth: int, colour: int, colours: int) -> bool:
    """Whether transparency is given as the colour type wants it: one grey or colour, or shares of the palette."""
    if colour == 3:
        return 1 <= len(body) <= colours
    values = struct.unpack(f">{len(body) // 2}H", body[: len(body) // 2 * 2])
    return len(body) == {0: 2, 2: 6}.get(colour) and max(values) < 1 << depth


def _png_chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk up to IEND; critical chunks and EXIF by their checksums."""
    start, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", view[start : start + 8]) if start + 8 <= len(view) else (0, b"")
        end = start + 12 + length
        if end > len(view):
            raise Damaged(f"a PNG of {len(view)} bytes without its end")
        critical = not kind[0] & 0x20 or kind in (b"tRNS", b"eXIf")
        if critical and zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise Damaged(f"a chunk {kind.decode('latin-1')} at byte {start} that fails its checksum")
        yield kind, start, end
        start = end


def _png_chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    whole = kind + body
    return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))


def _png_rows(width: int, height: int, depth: int, colour: int, interlace: int) -> Iterator[tuple[int, int]]:
    """Rows and bytes of a row, its filter type included, of each pass."""
    bits = depth * _PNG_CHANNELS[colour]
    for left, top, across, down in _ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            yield rows, 1 + (columns * bits + 7) // 8


def _check_rows(pixels: list[memoryview], passes: list[tuple[int, int]]) -> None:
    """Every row is there, and its filter type exists."""
    ends = np.cumsum([rows * length for rows, length in passes]).tolist()
    done = 0
    for block in inflate(pixels, ends[-1], alone=True):
        values = np.frombuffer(block, np.uint8)
        for end, (rows, length) in zip(ends, passes, strict=True):
            start = end - rows * length
            first, last = max(done, start), min(done + len(block), end)
            filters = values[first + (start - first) % length - done : last - done : length] if first < last else ()
            if len(filters) and int(np.max(filters)) > 4:
                raise Damaged("a PNG with a row of an unknown filter type")
        done += len(block)
    if done != ends[-1]:
        raise Damaged(f"a PNG with {done} of {ends[-1]} bytes of pixels")


def _inspect_webp(data: bytes) -> Header:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Damaged(f"a WebP of {len(data)} of {end} bytes")
    chunks: dict[bytes, memoryview] = {}
    place = 12
    while place + 8 <= end:
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if place + 8 + length > end:
            raise Damaged(f"a WebP whose chunk {kind.decode('latin-1')!r} ends after the file")
        chunks.setdefault(kind, memoryview(data)[place + 8 : place + 8 + length])
        place += 8 + length + length % 2
    if b"ANIM" in chunks or b"ANMF" in chunks:
        raise Damaged("an animation", "one picture")
    size_hw = _webp_size(chunks)
    if b"VP8X" in chunks and len(canvas := chunks[b"VP8X"]) >= 10:
        width, height = (1 + int.from_bytes(canvas[start : start + 3], "little") for start in (4, 7))
        if (height, width) != size_hw:
            raise Damaged(f"a WebP of {width}x{height} with a picture of {size_hw[1]}x{size_hw[0]}")
    exif = chunks.get(b"EXIF", memoryview(b""))
    return Header("WebP", size_hw, orientation_of(exif[6:] if bytes(exif[:4]) == b"Exif" else exif), data)


def _webp_size(chunks: dict[bytes, memoryview]) -> tuple[int, int]:
    lossy, lossless = chunks.get(b"VP8 "), chunks.get(b"VP8L")
    if lossy is not None and len(lossy) >= 10 and bytes(lossy[3:6]) == b"\x9d\x01\x2a":
        if 10 + (int.from_bytes(lossy[:3], "little") >> 5) > len(lossy):
            raise Damaged("a WebP whose first partition ends after the file")
        width, height = (int.from_bytes(lossy[start : start + 2], "little") & 0x3FFF for start in (6, 8))
        body = lossy
    elif lossless is not None and len(lossless) >= 5 and lossless[0] == 0x2F:
        bits = int.from_bytes(lossless[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        body = lossless
    else:
        raise Damaged("a WebP without a picture")
    zeros = len(body) - len(bytes(body).rstrip(b"\0"))
    if zeros >= max(_LEAST_ZEROS, _ZERO_SHARE * len(body)):
        raise Damaged(f"a WebP whose last {zeros} of {len(body)} bytes are zero")
    require_size(height, width)
    return height, width


def _inspect_bmp(data: bytes) -> Header:
    if len(data) < 26:
        raise Damaged(f"a BMP of {len(data)} bytes without its header")
    offset, head = struct.unpack_from("<II", data, 10)
    if head == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    elif head >= 40 and len(data) >= 34:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    else:
        raise Damaged(f"a BMP with a header of {head} bytes")
    require_size(abs(height), width)
    needed = offset + (width * bits + 31) // 32 * 4 * abs(height)
    if compression in (0, 3) and needed > len(data):
        raise Damaged(f"a BMP of {len(data)} of {needed} bytes")
    if compression not in (0, 3) and abs(height) * width > 255 * len(data):
        raise Damaged(f"{len(data)} bytes for {width}x{abs(height)} pixels")
    return Header("BMP", (abs(height), width), 1, data)
