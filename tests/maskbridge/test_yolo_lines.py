"""YOLO label lines: what is written is read back, and what is malformed is told."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskbridge.errors import MaskbridgeError
from maskbridge.yolo_lines import (
    detection_line,
    parse_detection_line,
    parse_segmentation_line,
    segmentation_line,
)

TRIANGLE = np.array([[0.0, 0.0], [64.0, 0.5], [10.25, 48.0]])


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    height, width = draw(st.integers(1, 9000)), draw(st.integers(1, 9000))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = (left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top)))
    return box, (height, width)


def test_a_box_is_written_as_centre_and_size_in_fractions() -> None:
    assert detection_line(3, (5, 6, 10, 12), (48, 64)) == "3 0.15625 0.25 0.15625 0.25"


@given(boxes_in_images(), st.integers(0, 79))
def test_a_detection_line_gives_the_box_back_to_a_millionth_of_a_pixel(
    box_and_size: tuple[tuple[int, int, int, int], tuple[int, int]], class_index: int
) -> None:
    box, size_hw = box_and_size
    line = detection_line(class_index, box, size_hw)
    parsed_class, parsed_box = parse_detection_line(line, size_hw)
    assert parsed_class == class_index
    assert parsed_box == pytest.approx(box, abs=1e-6)
    assert all(0 <= float(field) <= 1 for field in line.split()[1:])


def test_a_polygon_is_written_as_points_in_fractions() -> None:
    assert segmentation_line(1, TRIANGLE, (48, 64)) == "1 0 0 1 0.0104166667 0.16015625 1"


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=3, max_size=30),
    st.integers(1, 9000),
    st.integers(1, 9000),
)
def test_a_segmentation_line_names_float32_fractions_exactly(
    points: list[tuple[float, float]], height: int, width: int
) -> None:
    fractions = np.array(points)
    line = segmentation_line(0, fractions * (width, height), (height, width))
    loaded = np.array(line.split()[1:], dtype=np.float32).reshape(-1, 2)
    np.testing.assert_array_equal(loaded, fractions.astype(np.float32))
    parsed_class, polygon_xy = parse_segmentation_line(line, (height, width))
    assert parsed_class == 0
    np.testing.assert_allclose(polygon_xy, fractions * (width, height), atol=1e-5)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 65, 5), (60, 44, 4, 5), (3, 3, 0, 5), (3, 3, 5, 0)])
def test_a_box_that_is_empty_or_leaves_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(MaskbridgeError, match=re.escape("within 64x48")):
        detection_line(0, box, (48, 64))


def test_a_negative_class_is_refused() -> None:
    with pytest.raises(MaskbridgeError, match="bad class; found -1"):
        detection_line(-1, (0, 0, 5, 5), (48, 64))


@pytest.mark.parametrize("x", [-0.01, 64.01, np.nan])
def test_a_polygon_that_leaves_the_image_is_refused(x: float) -> None:
    with pytest.raises(MaskbridgeError, match="polygon does not lie in its image"):
        segmentation_line(0, np.array([[x, 1.0], [2.0, 3.0], [4.0, 1.0]]), (48, 64))


@pytest.mark.parametrize("vertices", [0, 2])
def test_a_polygon_of_fewer_than_three_vertices_is_refused(vertices: int) -> None:
    with pytest.raises(MaskbridgeError, match=f"found {vertices} vertices; expected 3 or more"):
        segmentation_line(0, TRIANGLE[:vertices], (48, 64))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "bad class; found ''"),
        ("1.5 0.5 0.5 0.1 0.1", "bad class; found '1.5'"),
        ("-1 0.5 0.5 0.1 0.1", "bad class; found '-1'"),
        ("0 0.5 0.5 0.1", "not a detection line; found 4 fields; expected 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "not a detection line; found 6 fields; expected 5"),
        ("0 0.5 half 0.1 0.1", "bad value in field 3; found 'half'; expected 0 to 1"),
        ("0 0.5 0.5 0.1 1.01", "bad value in field 5; found '1.01'; expected 0 to 1"),
        ("0 -0.5 0.5 0.1 0.1", "bad value in field 2; found '-0.5'; expected 0 to 1"),
        ("0 0.5 0.5 nan 0.1", "bad value in field 4; found 'nan'; expected 0 to 1"),
    ],
)
def test_a_malformed_detection_line_names_place_found_and_expected(line: str, complaint: str) -> None:
    with pytest.raises(MaskbridgeError, match=re.escape(f"labels/a.txt:7: {complaint}")):
        parse_detection_line(line, (48, 64), where="labels/a.txt:7")


@pytest.mark.parametrize("line", ["0", "0 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 0.1 0.9 0.8 0.7"])
def test_a_segmentation_line_without_three_whole_points_is_refused(line: str) -> None:
    with pytest.raises(MaskbridgeError, match=f"labels/a.txt:7: .*found {len(line.split())} fields"):
        parse_segmentation_line(line, (48, 64), where="labels/a.txt:7")
