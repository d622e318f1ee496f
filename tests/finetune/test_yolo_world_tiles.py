from __future__ import annotations

import cv2
import numpy as np
import pytest

from finetune._yolo_world_tiles import Window, detect_tiled, overlap_pixels, tiled, windows
from maskbridge import geometry
from maskbridge.dataset import Dataset, read_image
from maskbridge.export import PARTS, ExportOptions, ExportReport, parts


@pytest.fixture(scope="module")
def cut(zoo_dataset, tmp_path_factory):
    """The zoo of defects in tiles of 40 px, a quarter shared; and the dataset they are of."""
    out = tmp_path_factory.mktemp("tiles")
    dataset = Dataset.open(zoo_dataset)
    tiles, left_out = tiled(dataset, 0, tile=40, overlap=0.25, out=out)
    return dataset, tiles, left_out


def place_of(image):
    return Window(*map(int, image.file_name.removesuffix(".png").rpartition("__")[2].split("_")))


@pytest.mark.parametrize("size_hw", [(900, 900), (375, 265), (100, 1000), (40, 30), (512, 513)])
@pytest.mark.parametrize("tile", [40, 200, 512])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_windows_cover_the_image_are_of_one_size_and_those_of_prediction(size_hw, tile, overlap):
    from supervision import Detections, InferenceSlicer

    found = windows(size_hw, tile, overlap)
    covered = np.zeros(size_hw, dtype=bool)
    for place in found:
        covered[place.top : place.bottom, place.left : place.right] = True
        assert place.bottom - place.top == min(tile, size_hw[0])
        assert place.right - place.left == min(tile, size_hw[1])
    assert covered.all()
    places = np.dstack([*np.meshgrid(np.arange(size_hw[1]), np.arange(size_hw[0])), np.zeros(size_hw, dtype=int)])
    seen = []

    def look(crop):
        seen.append(Window(*crop[0, 0, :2], *(crop[-1, -1, :2] + 1)))
        return Detections.empty()

    InferenceSlicer(callback=look, slice_wh=tile, overlap_wh=overlap_pixels(tile, overlap))(places.astype(np.int32))
    assert seen == found


def test_a_tile_holds_the_pixels_and_the_exact_box_of_what_is_inside(cut):
    dataset, tiles, _ = cut
    sources = {image.file_name.rpartition(".")[0]: image for image in dataset.images}
    count = 0
    for tile in tiles.images:
        place, source = place_of(tile), sources[tile.file_name.rpartition("__")[0]]
        window = np.s_[place.top : place.bottom, place.left : place.right]
        np.testing.assert_array_equal(
            read_image(tiles.image_path(tile.id)), read_image(dataset.image_path(source.id))[window]
        )
        mask = dataset.mask(source.id)[window]
        np.testing.assert_array_equal(tiles.mask(tile.id), mask)
        for annotation in tiles.annotations_by_image[tile.id]:
            piece = geometry.decode(annotation["segmentation"])
            assert annotation["bbox"] == list(cv2.boundingRect(piece))
            assert annotation["area"] == piece.sum() > 0
            count += 1
    assert count > len(dataset.annotations)


def test_whole_images_go_along_and_test_images_do_not(cut):
    dataset, tiles, left_out = cut
    split = dataset.split(0)
    sizes = {image.file_name.rpartition(".")[0]: image.size_hw for image in dataset.images}
    whole = [tile for tile in tiles.images if tile.size_hw == sizes[tile.file_name.rpartition("__")[0]]]
    assert len(whole) == len(split.train) + len(split.val)
    expected = sum(
        1 + len(windows(dataset.image_by_id[i].size_hw, 40, 0.25)) * (max(dataset.image_by_id[i].size_hw) > 40)
        for i in (*split.train, *split.val)
    )
    assert len(tiles.images) == expected - left_out
    tested = {dataset.image_by_id[i].file_name.rpartition(".")[0] for i in split.test}
    assert not tested & {tile.file_name.rpartition("__")[0] for tile in tiles.images}


def test_a_tile_without_a_defect_is_good_and_one_with_a_sliver_is_left_out(cut):
    dataset, tiles, left_out = cut
    for tile in tiles.images:
        assert tile.is_good == (not tiles.annotations_by_image[tile.id])
    assert left_out == left_out_by_hand(dataset) > 0


def left_out_by_hand(dataset):
    count = 0
    split = dataset.split(0)
    for image_id in (*split.train, *split.val):
        image = dataset.image_by_id[image_id]
        for place in windows(image.size_hw, 40, 0.25) if max(image.size_hw) > 40 else []:
            pieces = [
                (geometry.decode(a["segmentation"])[place.top : place.bottom, place.left : place.right], a["area"])
                for a in dataset.annotations_by_image[image_id]
            ]
            count += any(0 < p.sum() < min(0.1 * area, 0.01 * p.size) for p, area in pieces)
    return count


def test_negatives_are_counted_in_tiles(cut):
    _, tiles, _ = cut
    report = ExportReport("yolo", ExportOptions(negatives="0.5"))
    found = parts(tiles, ExportOptions(fold=0, negatives="0.5"), report)
    defective = [image for image in found["train"] if not image.is_good]
    assert len(found["train"]) - len(defective) == round(0.5 * len(defective))
    assert set(found) == set(PARTS)


def blobs(image):
    """A detector of white blobs: class 0, confidence 0.9 in a whole image, 0.8 in a tile."""
    mask = (image[:, :, 0] > 127).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    boxes = [[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:count]]
    score = 0.9 if image.shape[1] > 100 else 0.8
    classes = np.zeros(len(boxes), dtype=np.int64)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), np.full(len(boxes), score), classes


def test_one_defect_seen_in_many_tiles_and_whole_is_one_detection():
    image = np.zeros((150, 220, 3), dtype=np.uint8)
    image[40:70, 60:130] = 255  # across two tiles
    image[10:14, 200:203] = 255  # in one
    boxes, scores, classes = detect_tiled(blobs, image, tile=80, overlap=0.2, iou=0.6)
    assert sorted(map(tuple, boxes)) == [(60, 40, 130, 70), (200, 10, 203, 14)]
    assert scores == pytest.approx([0.9, 0.9])
    assert classes.tolist() == [0, 0]


def test_what_only_tiles_show_is_placed_in_the_image():
    def small_ones(image):
        return blobs(image) if image.shape[1] <= 100 else (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))

    image = np.zeros((150, 220, 3), dtype=np.uint8)
    image[141:144, 205:209] = 255
    boxes, scores, _ = detect_tiled(small_ones, image, tile=80, overlap=0.2, iou=0.6)
    assert boxes.tolist() == [[205, 141, 209, 144]]
    assert scores == pytest.approx([0.8])


def test_nothing_found_is_empty_and_types_do_not_suppress_each_other():
    image = np.zeros((150, 220, 3), dtype=np.uint8)
    boxes, scores, classes = detect_tiled(blobs, image, tile=80, overlap=0.2, iou=0.6)
    assert (boxes.shape, scores.shape, classes.shape) == ((0, 4), (0,), (0,))

    def two(crop):
        box = np.array([[1.0, 1, 9, 9], [1, 1, 9, 9]])
        return box, np.array([0.5, 0.4]), np.array([0, 1])

    boxes, _, classes = detect_tiled(two, image[:40, :60], tile=80, overlap=0.2, iou=0.6)
    assert classes.tolist() == [0, 1]
