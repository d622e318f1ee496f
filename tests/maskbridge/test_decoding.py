"""Image files are read whole or refused in one line, in the frame of the stored pixels."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge.decoding import as_rgb8, decode, depth_of, highest_value, read_again, scaled
from maskbridge.errors import SourceError
from maskbridge.exif import BACK, WORDS, turned_upright
from maskbridge.files import read_regular
from maskbridge.image_checks import Damaged, inspect, require_size

HEIGHT, WIDTH = 120, 170
Pixels = np.ndarray


def smooth(seed: int = 0, channels: int = 3) -> Pixels:
    shape = (HEIGHT, WIDTH, channels) if channels > 1 else (HEIGHT, WIDTH)
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


def encoded(suffix: str, pixels: Pixels | None = None, *flags: int) -> bytes:
    return cv2.imencode(suffix, smooth() if pixels is None else pixels, flags)[1].tobytes()


def tiff(compression: int, pixels: Pixels | None = None) -> bytes:
    return encoded(".tif", pixels, cv2.IMWRITE_TIFF_COMPRESSION, compression)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def exif(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png_with(orientation: int, pixels: Pixels | None = None) -> bytes:
    data = encoded(".png", pixels)
    return data[:33] + chunk(b"eXIf", exif(orientation)) + data[33:]


def jpeg_with(orientation: int) -> bytes:
    data, block = encoded(".jpg"), b"Exif\0\0" + exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def webp_with(orientation: int) -> bytes:
    stream, block = encoded(".webp", None, cv2.IMWRITE_WEBP_QUALITY, 101)[12:], exif(orientation)
    canvas = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    head = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + canvas
    body = b"WEBP" + head + stream + b"EXIF" + struct.pack("<I", len(block)) + block
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_with(orientation: int) -> bytes:
    """Uncompressed, one strip, in Motorola's byte order."""
    pixels = smooth()[:, :, ::-1].tobytes()
    fields = [(256, WIDTH), (257, HEIGHT), (258, 8), (259, 1), (262, 2), (273, 8), (274, orientation), (277, 3)]
    fields += [(278, HEIGHT), (279, len(pixels))]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in fields)
    directory = struct.pack(">H", len(fields)) + entries + struct.pack(">I", 0)
    return b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + directory


WITH_ORIENTATION = {"PNG": png_with, "JPEG": jpeg_with, "WebP": webp_with, "TIFF": tiff_with}

WHOLE = {
    "png": encoded(".png"),
    "png, 16 bit": encoded(".png", smooth().astype(np.uint16) * 257),
    "png, grey": encoded(".png", smooth(channels=1)),
    "jpeg": encoded(".jpg"),
    "jpeg, progressive": encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg, restarts": encoded(".jpg", None, cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "webp": encoded(".webp", None, cv2.IMWRITE_WEBP_QUALITY, 90),
    "webp, lossless": encoded(".webp", None, cv2.IMWRITE_WEBP_QUALITY, 101),
    "bmp": encoded(".bmp"),
    "tiff": tiff(1),
    "tiff, lzw": tiff(5),
    "tiff, lzw, 16 bit": tiff(5, smooth().astype(np.uint16) * 257),
    "tiff, deflate": tiff(8),
    "tiff, packbits": tiff(32773),
}
UNCOMPRESSED = ("bmp", "tiff")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_read_as_opencv_reads_it(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = decode(WHOLE[name], Path("a"))
    np.testing.assert_array_equal(
        found.pixels, cv2.imdecode(np.frombuffer(WHOLE[name], np.uint8), cv2.IMREAD_UNCHANGED)
    )
    assert found.orientation == 1
    assert capfd.readouterr().err == ""


def harmed(data: bytes, how: str) -> bytes:
    size = len(data)
    return {
        "cut in half": data[: size // 2],
        "cut after its header": data[:60],
        "without its last bytes": data[:-20],
        "second half zero": data[: size // 2] + bytes(size - size // 2),
        "middle third zero": data[: size // 3] + bytes(size // 3) + data[size // 3 * 2 :],
    }[how]


HOW = ["cut in half", "cut after its header", "without its last bytes", "second half zero", "middle third zero"]


def can_be_told(name: str, how: str) -> bool:
    """Zeros are pixels where nothing is compressed; WebP has no checksum, and any bits in its middle are a picture."""
    return not ("zero" in how and name in UNCOMPRESSED) and not ("middle" in how and "webp" in name)


@pytest.mark.parametrize(("name", "how"), [(name, how) for name in WHOLE for how in HOW if can_be_told(name, how)])
def test_a_file_that_is_not_whole_is_refused_without_a_word_of_the_libraries(
    name: str, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SourceError, match=r"^b c\.img: (is damaged|cannot be decoded); found "):
        decode(harmed(WHOLE[name], how), Path("b c.img"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["png", "tiff, deflate"])
def test_changed_bytes_fail_their_checksum(name: str) -> None:
    data = bytearray(WHOLE[name])
    for place in range(len(data) // 2, len(data) // 2 + 20):
        data[place] ^= 0x55
    with pytest.raises(SourceError, match="is damaged"):
        decode(bytes(data), Path("a"))


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"])
def test_a_png_chunk_that_fails_its_checksum_is_named(kind: bytes) -> None:
    """Everything else is right: nothing but that checksum tells."""
    bodies = {
        b"IHDR": struct.pack(">IIBBBBB", 10, 9, 8, 3, 0, 0, 0),
        b"PLTE": b"\1\2\3",
        b"tRNS": b"\xff",
        b"eXIf": exif(1),
        b"IDAT": zlib.compress(ROWS),
        b"IEND": b"",
    }
    chunks = {name: chunk(name, body) for name, body in bodies.items()}
    start = len(PNG_SIGNATURE + b"".join(chunks.values()).partition(chunks[kind])[0])
    assert decode(PNG_SIGNATURE + b"".join(chunks.values()), Path("a")).pixels.shape[:2] == (9, 10)
    chunks[kind] = chunks[kind][:-1] + bytes([chunks[kind][-1] ^ 1])
    with pytest.raises(SourceError, match=f"a chunk {kind.decode()} at byte {start} that fails its checksum"):
        decode(PNG_SIGNATURE + b"".join(chunks.values()), Path("a"))


def test_an_lzw_code_beyond_its_table_is_found() -> None:
    """Of 8 bits OpenCV gives what came before it, and black below."""
    data = bytearray(WHOLE["tiff, lzw"])
    data[3000:3060] = b"\xff" * 60
    assert cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_UNCHANGED) is not None
    with pytest.raises(SourceError, match="LZW code that is not in its table"):
        decode(bytes(data), Path("a"))


def packbits_of(strip: bytes) -> bytes:
    """A grey TIFF of 10 x 9 pixels with one strip, its directory behind it."""
    fields = [(256, 10), (257, 9), (258, 8), (259, 32773), (262, 1), (273, 8), (277, 1), (278, 9), (279, len(strip))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(fields)) + directory


def test_a_run_of_packbits_that_ends_after_its_strip_is_found() -> None:
    """Its length alone would fill the picture: 90 literal bytes, or 50 of them and 40 times the next."""
    for strip in (bytes([89, *range(90)]), bytes([49, *range(50), 217, 7])):
        assert decode(packbits_of(strip), Path("a")).pixels.size == 90
        with pytest.raises(SourceError, match="piece 0 of 1 has 89 of 90 bytes of pixels"):
            decode(packbits_of(strip[:-1]), Path("a"))


def png_of(header: tuple[int, ...], stream: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    return PNG_SIGNATURE + head + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


ROWS = bytes(11 * 9)  # 9 rows of 10 grey pixels, each after its filter type


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(ROWS[:-1])), "98 of 99 bytes of pixels"),
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(ROWS + b"\0")), "more pixel data than its header states"),
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(bytes(10**8))), "more pixel data than its header states"),
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(ROWS) + b"behind"), "data behind the end"),
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(ROWS)[:-4]), "compressed data without its end"),
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(ROWS)[:-1] + b"x"), "cannot be unpacked"),
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(b"\x05" + ROWS[1:])), "unknown filter type"),
        (png_of((10, 9, 8, 0, 0, 0, 0), zlib.compress(ROWS[:-11] + b"\x07" + ROWS[:10])), "unknown filter type"),
        (png_of((10, 9, 3, 0, 0, 0, 0), zlib.compress(ROWS)), "do not exist together"),
        (png_of((10, 9, 8, 3, 0, 0, 0), zlib.compress(ROWS)), "without a palette"),
    ],
)
def test_a_png_whose_checksums_are_right_and_whose_pixels_are_not_is_refused(
    data: bytes, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SourceError, match=told):
        decode(data, Path("a"))
    assert capfd.readouterr().err == ""


def test_an_interlaced_png_is_counted_by_its_passes() -> None:
    whole = zlib.compress(bytes(6 + 4 + 4 + 9 + 12 + 30 + 44))
    assert decode(png_of((10, 9, 8, 0, 0, 0, 1), whole), Path("a")).pixels.shape == (9, 10)
    with pytest.raises(SourceError, match="108 of 109 bytes"):
        decode(png_of((10, 9, 8, 0, 0, 0, 1), zlib.compress(bytes(108))), Path("a"))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
        chunk(b"PLTE", b"abc"),
        chunk(b"sBIT", b"\xff\xff\xff"),
        chunk(b"gAMA", b"\0\0\0\0"),
        chunk(b"tEXt", b"a\0b")[:-4] + bytes(4),
    ],
)
def test_what_libpng_would_remark_on_beside_good_pixels_is_passed_over(
    extra: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    data = WHOLE["png"]
    found = decode(data[:33] + extra + data[33:], Path("a"))
    np.testing.assert_array_equal(found.pixels, smooth())
    assert capfd.readouterr().err == ""


def test_sizes_that_opencv_does_not_read_are_refused() -> None:
    """At most 2**30 pixels, and 2**20 along a side."""
    for height, width in ((1, 1), (2**15, 2**15), (2**10, 2**20), (2**20, 2**10)):
        require_size(height, width)
    for height, width in ((0, 5), (5, 0), (2**15 + 1, 2**15), (2**15, 2**15 + 1), (1, 2**20 + 1), (2**20 + 1, 1)):
        with pytest.raises(Damaged, match=f"^{width}x{height} pixels$"):
            require_size(height, width)


BOMBS = {
    "png": png_of((100_000, 100_000, 8, 2, 0, 0, 0), zlib.compress(ROWS)),
    "png below the limit": png_of((30_000, 30_000, 8, 2, 0, 0, 0), zlib.compress(ROWS)),
    "jpeg": re.sub(rb"(\xff\xc0..\x08)....", lambda m: m[1] + b"\xff\xdc\xff\xdc", WHOLE["jpeg"], count=1, flags=re.S),
    "jpeg below the limit": re.sub(
        rb"(\xff\xc0..\x08)....", lambda m: m[1] + b"\x75\x30\x75\x30", WHOLE["jpeg"], count=1, flags=re.S
    ),
    "bmp": WHOLE["bmp"][:18] + struct.pack("<ii", 100_000, 100_000) + WHOLE["bmp"][26:],
    "bmp below the limit": WHOLE["bmp"][:18] + struct.pack("<ii", 30_000, 30_000) + WHOLE["bmp"][26:],
    "tiff": tiff_with(1).replace(struct.pack(">HHII", 256, 4, 1, WIDTH), struct.pack(">HHII", 256, 4, 1, 10**9)),
    "tiff below the limit": tiff_with(1).replace(
        struct.pack(">HHII", 257, 4, 1, HEIGHT), struct.pack(">HHII", 257, 4, 1, 1_000_000)
    ),
    "webp": webp_with(1)[:24] + b"\x9f\x86\x01\x9f\x86\x01" + webp_with(1)[30:],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_size_that_only_a_header_claims_is_refused_and_not_allocated(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("OpenCV was asked")

    monkeypatch.setattr(cv2, "imdecode", never)
    with pytest.raises(SourceError, match=r"\d+x\d+ pixels|bytes|places|of \d+x\d+ with a picture"):
        decode(BOMBS[name], Path("a"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("data", [b"", b"<html>404</html>" * 9, b"GIF89a" + bytes(60), b"\x89PNG\r\n\x1a\n", b"BM"])
def test_other_kinds_are_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match=r"a\.png: (cannot be decoded|is damaged); found"):
        decode(data, Path("a.png"))


@pytest.mark.parametrize("offset", [0, 7, 2**63, 2**64 - 1])
def test_a_bigtiff_whose_directory_lies_nowhere_is_refused(offset: int) -> None:
    with pytest.raises(SourceError, match="a TIFF "):
        decode(b"II+\0\x08\0\0\0" + struct.pack("<Q", offset) + bytes(40), Path("a"))


def test_random_bytes_in_place_of_any_part_never_end_in_another_error() -> None:
    rng = np.random.default_rng(0)
    for data in [*WHOLE.values(), tiff_with(6), webp_with(6)]:
        for _ in range(60):
            start, length = int(rng.integers(0, min(len(data), 400))), int(rng.integers(1, 8))
            with contextlib.suppress(Damaged):
                inspect(data[:start] + rng.bytes(length) + data[start + length :])


@pytest.mark.parametrize("orientation", sorted(WORDS))
@pytest.mark.parametrize("kind", WITH_ORIENTATION)
def test_pixels_are_as_stored_whatever_the_orientation(kind: str, orientation: int) -> None:
    plain = decode(WITH_ORIENTATION[kind](1), Path("a"))
    found = decode(WITH_ORIENTATION[kind](orientation), Path("a"))
    assert (found.kind, found.orientation, plain.orientation) == (kind, orientation, 1)
    np.testing.assert_array_equal(found.pixels, plain.pixels)
    if kind != "JPEG":
        np.testing.assert_array_equal(found.pixels, smooth())


@pytest.mark.parametrize("orientation", sorted(WORDS))
def test_upright_is_what_a_viewer_shows(orientation: int) -> None:
    data = png_with(orientation)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    upright = turned_upright(decode(data, Path("a")).pixels, orientation)
    np.testing.assert_array_equal(upright, shown)
    np.testing.assert_array_equal(turned_upright(upright, BACK[orientation]), smooth())


@pytest.mark.parametrize(
    ("highest", "depth"), [(0, 8), (1, 10), (1023, 10), (1024, 12), (4080, 12), (4096, 14), (16384, 16), (65535, 16)]
)
def test_the_depth_is_the_smallest_that_holds_the_largest_value(highest: int, depth: int) -> None:
    assert depth_of(highest) == depth


def test_alpha_says_nothing_of_the_depth_and_eight_bits_nothing_at_all() -> None:
    pixels = np.full((3, 5, 4), 900, np.uint16)
    pixels[..., 3] = 65535
    assert highest_value(pixels) == 900
    assert highest_value(pixels[..., 0]) == 900
    assert highest_value(np.full((3, 5), 255, np.uint8)) == 0


def test_sixteen_bits_are_scaled_by_their_depth_and_eight_never() -> None:
    pixels = np.array([[0, 511, 1023]], np.uint16)
    np.testing.assert_array_equal(scaled(pixels, 10, np.uint8), [[0, 127, 255]])
    np.testing.assert_array_equal(scaled(pixels, 10, np.uint16), [[0, 32735, 65535]])
    np.testing.assert_array_equal(scaled(pixels, 12, np.uint8), [[0, 32, 64]])
    np.testing.assert_array_equal(scaled(pixels, 8, np.uint8), [[0, 2, 4]])
    np.testing.assert_array_equal(scaled(np.array([[5000]], np.uint16), 12, np.uint8), [[255]])
    eight = np.array([[0, 7, 255]], np.uint8)
    np.testing.assert_array_equal(scaled(eight, 10, np.uint8), eight)


def test_alpha_is_scaled_by_its_whole_range_whatever_the_depth_of_the_colours() -> None:
    for pixels, expected in (([1023, 511, 0, 514], [255, 127, 0, 2]), ([511, 514], [127, 2])):
        np.testing.assert_array_equal(scaled(np.array([[pixels]], np.uint16), 10, np.uint8), [[expected]])


def test_models_see_three_channels_of_eight_bits() -> None:
    pixels = np.zeros((2, 3, 4), np.uint16)
    pixels[..., 0], pixels[..., 2], pixels[..., 3] = 1023, 511, 65535
    np.testing.assert_array_equal(as_rgb8(pixels, 10)[0, 0], [127, 0, 255])
    np.testing.assert_array_equal(as_rgb8(pixels[..., 0], 10)[0, 0], [255, 255, 255])


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind(str(path))


@pytest.mark.parametrize("make", [pipe, listening, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a.png"))
    with pytest.raises(SourceError, match=r"^a\.png: (is not a regular file|cannot be read); found "):
        read_regular(Path("a.png"), error=SourceError)


def test_content_that_has_changed_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    with pytest.raises(SourceError, match=r"^b\.png: has changed since it was read; convert again"):
        read_again(tmp_path / "a.png", "0" * 64, name=Path("b.png"))
    with pytest.raises(SourceError, match=r"^b\.png: has changed since it was read; found .*no such file"):
        read_again(tmp_path / "gone.png", "0" * 64, name=Path("b.png"))
