"""EXIF orientations: which frame masks belong to, and images that are rewritten upright."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge.check import check
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset, Image
from maskbridge.exif import turned_upright
from maskbridge.export import ExportOptions
from maskbridge.files import read_json

MASK = np.zeros((48, 64), np.uint8)
MASK[4:12, 6:30] = 255
#: The name of an image with orientation and mask in the sources below.
NAME = "test/crack/001.png"
TURNS = [2, 3, 4, 5, 6, 7, 8]


def with_exif(pixels: np.ndarray, orientation: int, block: bytes | None = None) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = tiff if block is None else block
    part = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = cv2.imencode(".png", pixels)[1].tobytes()
    return data[:33] + part + data[33:]


def jpeg_with_exif(pixels: np.ndarray, orientation: int) -> bytes:
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    block = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


@pytest.fixture
def turned(source: Path, photo: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """A source with one image of an orientation, and its mask as given."""

    def make(orientation: int, mask: np.ndarray, pixels: np.ndarray | None = None) -> Path:
        stored = photo(50) if pixels is None else pixels
        (source / NAME).write_bytes(with_exif(stored, orientation))
        cv2.imwrite(str(source / "ground_truth/crack/001_mask.png"), mask)
        return source

    return make


def converted(source: Path, out: Path, **options: object) -> tuple[Dataset, Image]:
    convert("mvtec", source, out, ConvertOptions(**options))
    assert check(out) == []
    dataset = Dataset.open(out)
    return dataset, next(image for image in dataset.images if image.file_name == NAME)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_upright_picture_is_turned_back_where_its_size_tells(turned, tmp_path, orientation) -> None:
    source = turned(orientation, turned_upright(MASK, orientation))
    dataset, image = converted(source, tmp_path / "out")
    assert image.size_hw == (48, 64)
    np.testing.assert_array_equal(dataset.mask(image.id) * 255, MASK)
    told = dataset.card["changes"]["orientation"]
    assert told["files"] == {NAME: {"orientation": orientation, "masks_drawn": "upright", "image": "as stored"}}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_stored_pixels_stays_where_its_size_tells(turned, tmp_path, orientation) -> None:
    dataset, image = converted(turned(orientation, MASK), tmp_path / "out")
    np.testing.assert_array_equal(dataset.mask(image.id) * 255, MASK)
    assert dataset.card["changes"]["orientation"]["files"][NAME]["masks_drawn"] == "stored"


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_half_turns_and_flips_are_refused_without_an_option(turned, refused, tmp_path, orientation) -> None:
    line = refused("convert", "mvtec", turned(orientation, MASK), tmp_path / "out")
    assert f"EXIF orientation {orientation}" in line
    assert "--orientation stored" in line
    assert NAME in line


@pytest.mark.parametrize("orientation", TURNS)
def test_square_pictures_are_refused_without_an_option(turned, refused, tmp_path, photo, orientation) -> None:
    source = turned(orientation, MASK[:, :48], photo(50)[:, :48])
    assert f"EXIF orientation {orientation}" in refused("convert", "mvtec", source, tmp_path / "out")


@pytest.mark.parametrize("orientation", TURNS)
def test_a_mask_that_is_the_same_in_both_frames_raises_no_question(turned, tmp_path, photo, orientation) -> None:
    ring = np.zeros((48, 48), np.uint8)
    cv2.rectangle(ring, (10, 10), (37, 37), 255, 3)
    dataset, image = converted(turned(orientation, ring, photo(50)[:, :48]), tmp_path / "out")
    np.testing.assert_array_equal(dataset.mask(image.id) * 255, ring)
    assert dataset.card["changes"]["orientation"]["files"][NAME]["masks_drawn"] is None


@pytest.mark.parametrize("orientation", TURNS)
def test_stored_takes_masks_as_they_lie_on_the_stored_pixels(turned, tmp_path, orientation) -> None:
    dataset, image = converted(turned(orientation, MASK), tmp_path / "out", orientation="stored")
    np.testing.assert_array_equal(dataset.mask(image.id) * 255, MASK)


@pytest.mark.parametrize("orientation", TURNS)
def test_upright_rewrites_the_image_without_loss_and_without_exif(turned, tmp_path, photo, orientation) -> None:
    source = turned(orientation, turned_upright(MASK, orientation))
    before = (source / NAME).read_bytes()
    dataset, image = converted(source, tmp_path / "out", orientation="upright")
    shown = turned_upright(photo(50), orientation)
    assert image.size_hw == shown.shape[:2]
    np.testing.assert_array_equal(dataset.read_image(image.id)[..., ::-1], shown)
    np.testing.assert_array_equal(cv2.imread(str(dataset.image_path(image.id))), shown)
    np.testing.assert_array_equal(dataset.mask(image.id) * 255, turned_upright(MASK, orientation))
    assert (source / NAME).read_bytes() == before
    assert dataset.card["changes"]["images_put_there_by"]["rewritten upright"] == 1


def test_a_good_image_raises_no_question_and_is_rewritten_with_the_others(source, tmp_path, photo) -> None:
    good = source / "train/good/001.png"
    good.unlink()
    good.with_suffix(".jpg").write_bytes(jpeg_with_exif(photo(60), 6))
    convert("mvtec", source, tmp_path / "stored", ConvertOptions())
    convert("mvtec", source, tmp_path / "upright", ConvertOptions(orientation="upright"))
    for name, file, size_hw in (
        ("stored", "train/good/001.jpg", (48, 64)),
        ("upright", "train/good/001.png", (64, 48)),
    ):
        assert check(tmp_path / name) == []
        dataset = Dataset.open(tmp_path / name)
        image = next(image for image in dataset.images if image.file_name == file)
        assert image.size_hw == size_hw
        assert dataset.read_image(image.id).shape[:2] == size_hw


def test_two_images_of_one_name_after_rewriting_are_refused(source, refused, tmp_path, photo) -> None:
    (source / "train/good/001.jpg").write_bytes(jpeg_with_exif(photo(60), 6))
    line = refused("convert", "mvtec", source, tmp_path / "out", "--orientation", "upright")
    assert "train/good/001.png" in line
    assert "rename" in line


def test_a_mask_that_fits_neither_frame_is_refused_with_the_orientation(turned, refused, tmp_path) -> None:
    line = refused("convert", "mvtec", turned(6, MASK[:40]), tmp_path / "out")
    assert "found 64x40" in line
    assert "EXIF orientation 6" in line
    line = refused("convert", "mvtec", turned(6, MASK), tmp_path / "out", "--orientation", "upright")
    assert "expected 48x64" in line
    assert "--orientation upright" in line


def test_a_mask_with_the_orientation_of_its_image_lies_on_the_stored_pixels(turned, tmp_path) -> None:
    source = turned(3, MASK)
    (source / "ground_truth/crack/001_mask.png").write_bytes(with_exif(MASK, 3))
    dataset, image = converted(source, tmp_path / "stored")
    np.testing.assert_array_equal(dataset.mask(image.id) * 255, MASK)
    dataset, image = converted(source, tmp_path / "upright", orientation="upright")
    np.testing.assert_array_equal(dataset.mask(image.id) * 255, MASK[::-1, ::-1])


def test_a_mask_with_another_orientation_than_its_image_is_refused(source, refused, tmp_path) -> None:
    (source / "ground_truth/crack/001_mask.png").write_bytes(with_exif(MASK, 6))
    line = refused("convert", "mvtec", source, tmp_path / "out")
    assert "mask has EXIF orientation 6, and its image 1" in line


def test_an_exif_block_that_means_nothing_is_no_orientation(turned, tmp_path, photo) -> None:
    source = turned(1, MASK)
    for block in (b"", b"II*\0", b"XX" * 20, b"II*\0" + bytes([255] * 30)):
        (source / NAME).write_bytes(with_exif(photo(50), 1, block))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        dataset, _ = converted(source, tmp_path / "out")
        assert dataset.card["changes"]["orientation"]["count"] == 0


def test_copies_are_found_in_the_frame_of_the_dataset(source, tmp_path, photo) -> None:
    (source / "train/good/turned.png").write_bytes(with_exif(photo(1), 6))
    convert("mvtec", source, tmp_path / "out", ConvertOptions(orientation="upright"))
    pairs = read_json(tmp_path / "out/dataset.json")["rules"]["groups"]["near_duplicates"]
    assert pairs == [["train/good/000.png", "train/good/turned.png"]]


@pytest.mark.parametrize("format", ["yolo", "coco"])
def test_exports_show_the_stored_pixels_to_every_program(turned, tmp_path, photo, format) -> None:
    from maskbridge import plugins

    dataset, _ = converted(turned(6, MASK), tmp_path / "out")
    plugins.load("format", format).export(dataset, tmp_path / "export", ExportOptions())
    exported = next((tmp_path / "export/images").rglob("*crack*/001.png"), None)
    exported = exported or next((tmp_path / "export/images").rglob("*crack__001.png"))
    np.testing.assert_array_equal(cv2.imread(str(exported)), photo(50))
    assert read_json(tmp_path / "export/export-report.json")["orientation_taken"] == [NAME]
