from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge import masks
from maskbridge.binarisation import mask_values, refuse_labels
from maskbridge.decoding import decode
from maskbridge.errors import SourceError

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


@pytest.fixture
def ring(zoo: dict[str, np.ndarray]) -> np.ndarray:
    return zoo["ring"] > 0


@pytest.fixture
def defect(tmp_path: Path) -> Callable[[bytes], np.ndarray]:
    """Where the defect is in a mask file, if the source has this one file."""

    def read(data: bytes) -> np.ndarray:
        (tmp_path / "mask.png").write_bytes(data)
        mask = masks.read_mask(tmp_path / "mask.png")
        assert mask.ndim == 2
        values = mask_values(mask)
        refuse_labels({"mask.png": values}, tmp_path)
        return mask >= values.threshold

    return read


@pytest.mark.parametrize("top", [1, 255])
def test_a_grey_mask_is_read(png, defect, ring, top: int) -> None:
    np.testing.assert_array_equal(defect(png(ring * top, depth=8, colour_type=GREY)), ring)


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_a_16_bit_mask_is_read_unchanged(png, defect, ring, top: int) -> None:
    np.testing.assert_array_equal(defect(png(ring * top, depth=16, colour_type=GREY)), ring)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_mask_of_few_bits_is_read(png, defect, ring, depth: int) -> None:
    top = 2**depth - 1
    np.testing.assert_array_equal(defect(png(ring * top, depth=depth, colour_type=GREY)), ring)


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (0, 0, 1)])
@pytest.mark.parametrize("depth", [8, 16])
def test_an_rgb_mask_is_read(png, defect, ring, colour: tuple[int, int, int], depth: int) -> None:
    pixels = ring[..., None] * np.array(colour)
    np.testing.assert_array_equal(defect(png(pixels, depth=depth, colour_type=RGB)), ring)


@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 0, 0)])
def test_a_palette_mask_is_read(png, defect, ring, depth: int, colour: tuple[int, int, int]) -> None:
    data = png(ring.astype(int), depth=depth, colour_type=PALETTE, palette=[(0, 0, 0), colour])
    np.testing.assert_array_equal(defect(data), ring)


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_constant_alpha_is_ignored(png, defect, ring, alpha: int, depth: int) -> None:
    pixels = np.dstack([ring * 255] * 3 + [np.full(ring.shape, alpha)])
    np.testing.assert_array_equal(defect(png(pixels, depth=depth, colour_type=RGBA)), ring)
    pixels = np.dstack([ring * 255, np.full(ring.shape, alpha)])
    np.testing.assert_array_equal(defect(png(pixels, depth=depth, colour_type=GREY_ALPHA)), ring)


@pytest.mark.parametrize("colour", [0, 255])
def test_where_the_colour_is_constant_a_varying_alpha_is_the_mask(png, defect, ring, colour: int) -> None:
    pixels = np.dstack([np.full(ring.shape, colour)] * 3 + [ring * 255])
    np.testing.assert_array_equal(defect(png(pixels, depth=8, colour_type=RGBA)), ring)


def test_where_both_vary_what_is_transparent_is_no_defect(png, defect, ring) -> None:
    seen = np.ones(ring.shape, bool)
    seen[:20] = False
    pixels = np.dstack([ring * 255] * 3 + [seen * 255])
    np.testing.assert_array_equal(defect(png(pixels, depth=8, colour_type=RGBA)), ring & seen)


def test_a_colour_label_mask_is_refused_with_its_colours(png, defect, tmp_path: Path) -> None:
    pixels = np.zeros((24, 36, 3), int)
    pixels[2:5], pixels[8:9] = (255, 0, 0), (0, 255, 0)
    with pytest.raises(SourceError, match=r"mask\.png.*3 RGB colours.*\(255, 0, 0\), \(0, 255, 0\)"):
        defect(png(pixels, depth=8, colour_type=RGB))


def test_colours_that_would_all_be_defect_are_refused(png, defect, ring) -> None:
    """Red on white: by the largest channel every pixel would be a defect."""
    pixels = np.where(ring[..., None], (255, 0, 0), (255, 255, 255))
    with pytest.raises(SourceError, match="2 RGB colours"):
        defect(png(pixels, depth=8, colour_type=RGB))


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_of_one_value_is_all_or_nothing(png, defect, value: int) -> None:
    found = defect(png(np.full((24, 36), value), depth=8, colour_type=GREY))
    assert found.all() == found.any() == bool(value)


def damage(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    return {
        "empty": b"",
        "cut": data[:middle],
        "header only": data[:33],
        "signature only": data[:8],
        "without its last byte": data[:-1],
        "a byte changed": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "zeros inside": data[:middle] + bytes(40) + data[middle + 40 :],
        "header changed": data[:20] + bytes([data[20] ^ 1]) + data[21:],
        "no image": b"<html>404</html>" * 20,
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "cut",
        "header only",
        "signature only",
        "without its last byte",
        "a byte changed",
        "zeros inside",
        "header changed",
        "no image",
    ],
)
def test_a_damaged_file_is_refused_in_silence_of_the_libraries(
    png, photo, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(damage(png(photo(1), depth=8, colour_type=RGB), how))
    with pytest.raises(SourceError, match=r"a b\.png: (is truncated|is damaged|cannot be decoded); found"):
        masks.read_mask(path)
    assert capfd.readouterr().err == ""


def test_bytes_after_the_end_of_a_png_do_no_harm(png, defect, ring) -> None:
    data = png(ring * 255, depth=8, colour_type=GREY) + b"appended by some camera" * 10
    np.testing.assert_array_equal(defect(data), ring)


def test_a_truncated_jpeg_is_refused(tmp_path: Path, photo) -> None:
    data = cv2.imencode(".jpg", photo(1))[1].tobytes()
    with pytest.raises(SourceError, match=r"a\.jpg: is damaged; found a JPEG: Premature end"):
        decode(data[: len(data) // 2], tmp_path / "a.jpg")


def test_a_missing_mask_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.png: no such file"):
        masks.read_mask(tmp_path / "gone.png")
