from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from maskbridge import geometry
from maskbridge.geometry import frame, region_shares

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 31)).filter(lambda shape: shape[0] != shape[1])
MASKS = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 255])))


def tight_box(mask: np.ndarray) -> list[int]:
    """Half-open box by rows and columns, without OpenCV."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]


def assert_exact(mask: np.ndarray) -> None:
    found, dropped = geometry.instances(mask)
    masks = [geometry.decode(instance["segmentation"]) for instance in found]
    assert not dropped
    assert len(found) == cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)[0] - 1
    np.testing.assert_array_equal(np.sum(masks, axis=0, dtype=int) if masks else np.zeros(mask.shape), mask > 0)
    for instance, one in zip(found, masks, strict=True):
        assert instance["bbox"] == tight_box(one)
        assert instance["area"] == one.sum()
        assert geometry.component_count(one) == 1
        assert instance["segmentation"]["size"] == list(mask.shape)
        assert isinstance(instance["segmentation"]["counts"], str)
    union = geometry.union((instance["segmentation"] for instance in found), mask.shape)
    np.testing.assert_array_equal(union, mask > 0)


@pytest.mark.parametrize("kind", ["line", "diagonal", "pit", "ring", "corner", "frame", "whole", "several", "none"])
def test_every_pixel_of_the_zoo_comes_back_in_tight_boxes(zoo: dict[str, np.ndarray], kind: str) -> None:
    assert_exact(zoo[kind])
    assert_exact(zoo[kind][::-1, ::-1])
    assert_exact(zoo[kind].T)
    assert_exact(zoo[kind] > 0)


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_every_pixel_of_a_random_mask_comes_back_in_tight_boxes(mask: np.ndarray) -> None:
    assert_exact(mask)


@pytest.mark.parametrize(
    ("kind", "count"),
    [("line", 1), ("diagonal", 1), ("ring", 1), ("corner", 1), ("frame", 2), ("several", 3), ("none", 0)],
)
def test_the_zoo_has_as_many_instances_as_components(zoo: dict[str, np.ndarray], kind: str, count: int) -> None:
    assert len(geometry.instances(zoo[kind])[0]) == count == geometry.component_count(zoo[kind])


def test_a_square_of_five_at_five_is_5_5_5_5() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 5:10] = 1
    assert geometry.instances(mask)[0][0]["bbox"] == [5, 5, 5, 5]


def test_instances_come_in_scan_order_of_their_top_left_pixels(zoo: dict[str, np.ndarray]) -> None:
    boxes = [instance["bbox"] for instance in geometry.instances(zoo["several"])[0]]
    assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))


def test_unsplit_a_mask_is_one_instance(zoo: dict[str, np.ndarray]) -> None:
    (instance,), _ = geometry.instances(zoo["several"], split=False)
    np.testing.assert_array_equal(geometry.decode(instance["segmentation"]), zoo["several"] > 0)
    assert instance["bbox"] == tight_box(zoo["several"])
    assert geometry.instances(zoo["none"], split=False) == ([], [])


@pytest.mark.parametrize(("min_area", "kept", "dropped"), [(1, 3, []), (2, 2, [1]), (197, 1, [196, 1])])
def test_what_is_below_min_area_is_dropped_and_counted(
    zoo: dict[str, np.ndarray], min_area: int, kept: int, dropped: list[int]
) -> None:
    found, areas = geometry.instances(zoo["several"], min_area=min_area)
    assert len(found) == kept
    assert sorted(areas) == sorted(dropped)


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_rle_equals_that_of_the_coco_api(mask: np.ndarray) -> None:
    reference = coco_mask.encode(np.asfortranarray(mask > 0).view(np.uint8))
    assert geometry.encode(mask)["counts"] == reference["counts"].decode()
    assert geometry.encode_crop(mask, (0, 0), mask.shape)["counts"] == reference["counts"].decode()


@given(MASKS, st.integers(0, 9), st.integers(0, 7), st.integers(0, 9), st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_a_crop_is_encoded_as_if_it_were_the_whole_image(
    crop: np.ndarray, left: int, right: int, top: int, bottom: int
) -> None:
    whole = np.pad(crop, ((top, bottom), (left, right)))
    assert geometry.encode_crop(crop, (left, top), whole.shape) == geometry.encode(whole)


def test_the_union_of_nothing_is_empty_and_has_the_size_of_the_image() -> None:
    empty: Any = geometry.union([], (24, 36))
    assert empty.shape == (24, 36)
    assert not empty.any()


def test_regions_are_8_connected_and_share_one_each():
    shares, count = region_shares(two_regions())
    assert count == 2
    assert shares.sum() == pytest.approx(2)
    assert sorted(set(shares.round(9).tolist())) == pytest.approx([1 / 41, 1 / 30])
    assert region_shares(np.zeros((31, 47), np.uint8))[1] == 0


@pytest.mark.parametrize(
    "mask",
    [
        np.eye(9, 14, dtype=np.uint8),
        np.ones((9, 14), np.uint8),
        np.pad(np.ones((1, 1), np.uint8), ((8, 0), (0, 13))),
    ],
    ids=["diagonal", "whole image", "one pixel at the frame"],
)
def test_a_region_of_any_shape_is_one(mask):
    shares, count = region_shares(mask)
    assert count == 1
    assert shares.sum() == pytest.approx(1)


def two_regions():
    mask = np.zeros((31, 47), np.uint8)
    mask[3:7, 5:15] = 1  # 40 pixels
    mask[7, 15] = 1  # touches it at a corner
    mask[20, 2:32] = 1  # 30 pixels
    return mask


def test_the_frame_of_a_mask_holds_all_of_it_and_no_more():
    assert frame(two_regions()) == (slice(3, 21), slice(2, 32))
    assert two_regions()[frame(two_regions())].sum() == two_regions().sum()
    assert np.zeros((4, 7), np.uint8)[frame(np.zeros((4, 7), np.uint8))].size == 0
