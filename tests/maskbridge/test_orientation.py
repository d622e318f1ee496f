from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from maskbridge.dataset import read_image
from maskbridge.orientation import take_orientation

#: An EXIF block that says: turned by a quarter (TIFF, one entry: tag 0x0112, SHORT, 6).
QUARTER_TURN = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def app1(content: bytes) -> bytes:
    """A segment of a JPEG that holds EXIF, XMP and others (marker, length, content)."""
    return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content


@pytest.fixture
def photo_file(tmp_path, photo):
    """A JPEG of 40 x 60, with an orientation or without."""

    def write(name="a.jpg", exif=b""):
        path = tmp_path / name
        data = cv2.imencode(".jpg", photo(0, (40, 60)))[1].tobytes()
        if exif:
            data = data[:2] + app1(b"Exif\0\0" + exif) + data[2:]
        path.write_bytes(data)
        return path

    return write


def test_the_orientation_of_a_jpeg_goes_and_its_pixels_stay(photo_file):
    path = photo_file(exif=QUARTER_TURN)
    assert cv2.imread(str(path)).shape == (60, 40, 3), "other programs turn it"
    stored = read_image(path)
    assert take_orientation(path)
    np.testing.assert_array_equal(cv2.imread(str(path))[:, :, ::-1], stored)
    assert not take_orientation(path)


def test_a_jpeg_keeps_its_other_metadata(photo_file):
    """XMP lies in a segment of the same marker."""
    path = photo_file(exif=QUARTER_TURN)
    data = path.read_bytes()
    exif, xmp = app1(b"Exif\0\0" + QUARTER_TURN), app1(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>ours</x:xmpmeta>")
    assert data.count(exif) == 1
    path.write_bytes(data[:2] + xmp + data[2:])
    assert take_orientation(path)
    assert path.read_bytes() == data[:2] + xmp + data[2:].replace(exif, b"")


def test_a_file_that_shares_its_content_keeps_it(photo_file, tmp_path):
    path = photo_file(exif=QUARTER_TURN)
    before = path.read_bytes()
    os.link(path, tmp_path / "export.jpg")
    assert take_orientation(tmp_path / "export.jpg")
    assert path.read_bytes() == before


def test_a_file_without_an_orientation_is_not_touched(photo_file):
    for path in (photo_file(), photo_file("upright.jpg", QUARTER_TURN.replace(b"\x06", b"\x01"))):
        before = path.read_bytes()
        assert not take_orientation(path)
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_an_export_has_no_orientation_and_says_so(tmp_path, source, photo, name):
    from maskbridge import plugins
    from maskbridge.convert import ConvertOptions, convert
    from maskbridge.dataset import Dataset
    from maskbridge.export import ExportOptions
    from maskbridge.files import read_json

    folder = next((source / "train" / "good").iterdir())
    data = cv2.imencode(".jpg", photo(1, (40, 60)))[1].tobytes()
    turned = folder.with_name("turned.jpg")
    turned.write_bytes(data[:2] + app1(b"Exif\0\0" + QUARTER_TURN) + data[2:])
    convert("mvtec", source, tmp_path / "dataset", ConvertOptions())
    plugins.load("format", name).export(Dataset.open(tmp_path / "dataset"), tmp_path / "out", ExportOptions())
    assert read_json(tmp_path / "out" / "export-report.json")["orientation_taken"] == ["train/good/turned.jpg"]
    exported = next((tmp_path / "out" / "images" / "train").glob("*turned.jpg"))
    assert cv2.imread(str(exported)).shape == (40, 60, 3)
    assert cv2.imread(str(turned)).shape == (60, 40, 3), "the source keeps its own"


def test_what_else_a_jpeg_says_of_itself_stays(photo_file):
    """XMP stands in a segment of the same kind as EXIF does."""
    path = photo_file(exif=QUARTER_TURN)
    data = path.read_bytes()
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    path.write_bytes(data[:2] + segment + data[2:])
    assert take_orientation(path)
    after = path.read_bytes()
    assert after[2 : 2 + len(segment)] == segment
    assert b"Exif" not in after
    assert cv2.imread(str(path)).shape == (40, 60, 3)
