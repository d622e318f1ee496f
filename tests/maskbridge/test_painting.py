import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.painting import detections_from_map, map_from_detections

SIZE = (20, 30)


def a_map(*blobs):
    anomaly_map = np.zeros(SIZE, np.float32)
    for (top, left, height, width), value in blobs:
        anomaly_map[top : top + height, left : left + width] = value
    return anomaly_map


def test_confidences_are_painted_over_masks_and_boxes_and_the_largest_stays():
    ring = np.zeros(SIZE, np.uint8)
    ring[4:12, 5:20] = 1
    ring[6:10, 8:15] = 0
    with_mask = {
        "image_id": 1,
        "category_id": None,
        "bbox": [5.0, 4.0, 15.0, 8.0],
        "score": 0.5,
        "segmentation": geometry.encode(ring),
    }
    with_box = {"image_id": 1, "category_id": None, "bbox": [18.0, 10.0, 20.0, 20.0], "score": 0.9}
    weak = {"image_id": 1, "category_id": None, "bbox": [-3.0, -2.0, 30.0, 10.0], "score": 0.1}
    painted = map_from_detections([with_box, with_mask, weak], SIZE)
    assert painted.shape == SIZE
    assert painted[5, 6] == np.float32(0.5)
    assert painted[7, 10] == np.float32(0.1)
    assert painted[10, 18] == np.float32(0.9)
    assert painted[19, 29] == np.float32(0.9)
    assert painted[15, 2] == 0
    assert not map_from_detections([], SIZE).any()


def test_detections_are_the_8_connected_components_above_the_threshold():
    anomaly_map = a_map(((2, 3, 4, 6), 0.6), ((6, 9, 2, 2), 0.8), ((15, 20, 5, 10), 0.7), ((0, 25, 2, 2), 0.4))
    first, second = detections_from_map(anomaly_map, 0.5, 7)
    assert (first["bbox"], second["bbox"]) == ([3, 2, 8, 6], [20, 15, 10, 5])
    assert (first["score"], second["score"]) == pytest.approx((0.8, 0.7))
    decoded = geometry.decode(first["segmentation"])
    assert decoded.shape == SIZE
    assert decoded.sum() == 28
    assert {(r["image_id"], r["category_id"]) for r in (first, second)} == {(7, None)}


def test_a_value_equal_to_the_threshold_is_above_it():
    assert len(detections_from_map(a_map(((2, 3, 4, 6), 0.1)), float(np.float32(0.1)), 1)) == 1
    assert detections_from_map(a_map(((2, 3, 4, 6), 0.1)), 0.2, 1) == []


def test_of_many_components_the_highest_are_kept():
    dots = np.zeros((60, 80), np.float32)
    dots[::2, ::2] = np.arange(1, 1201).reshape(30, 40)
    results = detections_from_map(dots, 1.0, 1)
    assert [r["score"] for r in results] == list(range(1200, 1100, -1))
