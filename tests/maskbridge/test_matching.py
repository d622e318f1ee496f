import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskbridge import geometry
from maskbridge.matching import Pairs, box_pairs, mask_pairs, match, ranks

HALF = np.array([0.5])


def boxes(*rows):
    return np.array(rows, np.float64).reshape(-1, 4)


def units(*values):
    return np.array(values, np.int64)


def one_unit(overlaps):
    """Pairs of a table D x G, and ranks in the order of its rows."""
    detected, true = np.nonzero(overlaps)
    return Pairs(detected, true, overlaps[detected, true]), np.arange(len(overlaps))


def found(overlaps, thresholds=HALF, ignored=None):
    return match(*one_unit(np.array(overlaps)), thresholds, ignored).tolist()


def test_the_overlap_of_half_open_boxes_is_that_of_their_pixels():
    true = boxes([2, 0, 4, 6], [0, 0, 4, 6], [10, 10, 1, 1])
    pairs = box_pairs(boxes([0, 0, 4, 6]), units(0), true, units(0, 0, 0), 1e-9)
    assert pairs.true.tolist() == [0, 1]
    assert pairs.iou == pytest.approx([1 / 3, 1.0])


def test_the_overlap_of_masks_is_that_of_their_pixels():
    one, two = np.zeros((7, 9), np.uint8), np.zeros((7, 9), np.uint8)
    one[0:2, 0:4] = 1
    two[1:3, 0:4] = 1
    rles = [geometry.encode(one), geometry.encode(two)]
    pairs = mask_pairs(rles, units(4, 4), rles, units(4, 4), 1e-9)
    assert pairs.iou == pytest.approx([1, 1 / 3, 1 / 3, 1])


def test_box_overlaps_are_those_of_pycocotools_to_the_last_bit():
    rng = np.random.default_rng(0)
    one, two = (np.round(rng.random((40, 4)) * 50, 2) for _ in range(2))
    expected = coco_mask.iou(one, two, [0] * 40)
    pairs = box_pairs(one, np.zeros(40, np.int64), two, np.zeros(40, np.int64), 0.2)
    table = np.zeros((40, 40))
    table[pairs.detected, pairs.true] = pairs.iou
    assert (table == np.where(expected >= 0.2, expected, 0)).all()


def test_only_what_is_of_one_unit_is_a_pair():
    box = boxes([1, 1, 5, 4])
    many = np.repeat(box, 3, axis=0)
    assert box_pairs(many, units(2, 0, 7), box, units(7), 0.5).detected.tolist() == [2]
    rle = geometry.encode(np.ones((3, 4), np.uint8))
    assert mask_pairs([rle, rle], units(1, 3), [rle], units(3), 0.5).detected.tolist() == [1]


def test_many_pairs_are_looked_at_in_pieces(monkeypatch):
    rng = np.random.default_rng(1)
    detected, true = np.round(rng.random((60, 4)) * 9), np.round(rng.random((30, 4)) * 9)
    args = (detected, np.repeat(np.arange(4), 15), true, np.tile(np.arange(5), 6), 0.1)
    whole = box_pairs(*args)
    monkeypatch.setattr("maskbridge.matching._CHUNK", 7)
    pieces = box_pairs(*args)
    assert pieces.detected.tolist() == whole.detected.tolist()
    assert pieces.true.tolist() == whole.true.tolist()


def test_ranks_count_from_the_surest_of_each_unit_and_keep_the_order_of_equals():
    assert ranks(np.array([0.1, 0.9, 0.9, 0.3, 0.5]), units(1, 1, 1, 0, 0)).tolist() == [2, 0, 1, 1, 0]
    assert ranks(np.zeros(0), units()).tolist() == []


def test_a_defect_is_found_once_by_the_surest_detection():
    assert found([[0.6], [0.9]]) == [[0, -1]]


def test_a_detection_takes_the_free_defect_it_overlaps_most():
    assert found([[0.6, 0.7], [0.0, 0.9], [0.6, 0.2]]) == [[1, -1, 0]]


def test_of_defects_overlapped_equally_the_last_is_taken():
    assert found([[0.7, 0.7]]) == [[1]]


def test_an_ignored_defect_is_taken_only_where_no_other_is_free():
    ignored = np.array([True, False])
    assert found([[0.9, 0.6], [0.8, 0.9]], ignored=ignored) == [[1, 0]]


def test_each_threshold_is_matched_by_itself():
    assert found([[0.5], [0.8]], np.array([0.5, 0.75])) == [[0, -1], [-1, 0]]


def test_units_do_not_compete():
    pairs = Pairs(units(0, 1), units(0, 1), np.array([0.6, 0.9]))
    assert match(pairs, units(0, 0), HALF).tolist() == [[0, 1]]


def test_nothing_matches_where_nothing_is():
    nothing = box_pairs(boxes(), units(), boxes([1, 2, 3, 4]), units(0), 0.5)
    assert match(nothing, units(), HALF).shape == (1, 0)
    nothing = box_pairs(boxes([1, 2, 3, 4]), units(0), boxes(), units(), 0.5)
    assert match(nothing, units(0), HALF).tolist() == [[-1]]
    assert len(mask_pairs([], units(), [], units(), 0.5).iou) == 0
