import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.matching import box_iou, mask_iou, match

HALF = np.array([0.5])


def test_the_overlap_of_half_open_boxes_is_that_of_their_pixels():
    assert box_iou([[0, 0, 4, 6]], [[2, 0, 4, 6], [0, 0, 4, 6], [10, 10, 1, 1]]) == pytest.approx(
        np.array([[1 / 3, 1.0, 0.0]])
    )


def test_the_overlap_of_masks_is_that_of_their_pixels():
    one, two = np.zeros((7, 9), np.uint8), np.zeros((7, 9), np.uint8)
    one[0:2, 0:4] = 1
    two[1:3, 0:4] = 1
    rles = [geometry.encode(one), geometry.encode(two)]
    assert mask_iou(rles, rles) == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1]]))


def test_a_defect_is_found_once_by_the_surest_detection():
    assert match(np.array([[0.6], [0.9]]), HALF).tolist() == [[True, False]]


def test_a_detection_takes_the_free_defect_it_overlaps_most():
    overlaps = np.array([[0.6, 0.7], [0.0, 0.9], [0.6, 0.2]])
    assert match(overlaps, HALF).tolist() == [[True, False, True]]


def test_each_threshold_is_matched_by_itself():
    assert match(np.array([[0.5], [0.8]]), np.array([0.5, 0.75])).tolist() == [[True, False], [False, True]]


def test_nothing_matches_where_nothing_is():
    assert match(box_iou([], [[1, 2, 3, 4]]), HALF).shape == (1, 0)
    assert match(box_iou([[1, 2, 3, 4]], []), HALF).tolist() == [[False]]
    assert mask_iou([], []).shape == (0, 0)
