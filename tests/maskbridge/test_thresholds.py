import dataclasses

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Annotation, Dataset, Image
from maskbridge.pixel_counts import PixelCounts
from maskbridge.predictions import Run, write_predictions
from maskbridge.thresholds import (
    detection_threshold,
    fold_thresholds,
    held_back_thresholds,
    pixel_threshold,
    score_threshold,
)

SIZE = (30, 20)


def best_f1(values, labels):
    precision, recall, _ = precision_recall_curve(labels, values)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))


def dataset_of(masks, tmp_path):
    images, annotations = [], []
    for number, mask in enumerate(masks, start=1):
        kind = "crack" if mask.any() else "good"
        height, width = mask.shape
        images.append(
            Image(
                id=number,
                file_name=f"test/{kind}/{number}.png",
                width=width,
                height=height,
                sha256="",
                origin=f"test/{kind}",
                group=number,
            )
        )
        for instance in geometry.instances(mask)[0]:
            annotations.append(
                Annotation(id=len(annotations) + 1, image_id=number, category_id=1, iscrowd=0, **instance)
            )
    ids = [image.id for image in images]
    splits = {"folds": [{"train": [], "val": ids, "test": []}], "official": None}
    return Dataset(tmp_path, tuple(images), tuple(annotations), (), splits, {}, "", "")


def masks_of_two_defects():
    defect = np.zeros(SIZE, np.uint8)
    defect[5:12, 4:9] = 1
    return [defect, np.zeros(SIZE, np.uint8), defect.T.copy(), np.zeros(SIZE, np.uint8)]


def run_with(tmp_path, predictions):
    write_predictions(tmp_path / "run", "val", predictions)
    return Run(tmp_path / "run", {"fold": 0})


def test_the_threshold_is_the_midpoint_between_lowest_accepted_and_next_lower_score():
    assert score_threshold(np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True])) == pytest.approx(0.4)


def test_of_two_tied_cuts_the_lower_is_taken():
    scores = np.array([1.0, 2.0, 3.0, 4.0])  # accept 4: 2·1/(1+2); accept 1..4: 2·2/(4+2)
    assert score_threshold(scores, np.array([True, False, False, True])) == 1.0


def test_of_three_tied_cuts_the_one_nearest_to_the_middle_is_taken():
    """Accept the first, five or nine: 2·1/(1+3), 2·2/(5+3), 2·3/(9+3), each 1/2; every other cut has less."""
    scores = np.array([30.0, 20, 19, 18, 17, 6, 5, 4, 3, 1, 0])
    defective = np.zeros(11, bool)
    defective[[0, 4, 8]] = True
    # cuts at 25, 11.5 and 2: the middle is 13.5, 11.5 the nearest
    assert score_threshold(scores, defective) == 11.5


def test_the_threshold_reaches_the_best_f1_of_any_cut():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.random(40) < 0.3
        labels[0] = True
        scores = np.round(rng.normal(labels * 1.0, 1.0), 1)
        threshold = score_threshold(scores, labels)
        assert f1_score(labels, scores >= threshold) == pytest.approx(best_f1(scores, labels))


def test_neighbouring_floats_are_still_told_apart():
    low = 1.0
    high = np.nextafter(low, 2.0)
    assert score_threshold(np.array([low, high]), np.array([False, True])) == high


def test_equal_scores_give_that_score():
    assert score_threshold(np.full(5, 0.25), np.array([True, False, False, True, False])) == 0.25


def test_the_pixel_threshold_reaches_the_best_f1_of_any_cut():
    rng = np.random.default_rng(1)
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 2:11] = 1
    anomaly_map = np.round(rng.normal(mask * 1.0, 0.8), 2).astype(np.float32)
    counts = PixelCounts()
    counts.add(anomaly_map, mask, where="it")
    called = anomaly_map >= np.float32(pixel_threshold(counts))
    assert f1_score(mask.ravel(), called.ravel()) == pytest.approx(best_f1(anomaly_map.ravel(), mask.ravel()))


def test_the_detection_threshold_counts_each_defect_once():
    box = [2, 3, 10, 5]
    results = [
        {"image_id": 1, "category_id": None, "bbox": [float(v) for v in box], "score": score} for score in (0.9, 0.5)
    ]
    assert detection_threshold(results, {1: [box], 2: []}) == pytest.approx(0.7)


@pytest.mark.parametrize(("width", "found"), [(5, True), (4, False)], ids=["IoU .5", "IoU .4"])
def test_a_detection_finds_a_defect_at_a_box_iou_of_a_half(width, found):
    result = {"image_id": 1, "category_id": 1, "bbox": [2.0, 3.0, float(width), 6.0], "score": 0.9}
    assert detection_threshold([result], {1: [[2, 3, 10, 6]]}) == (0.9 if found else None)


def test_detections_that_find_nothing_give_no_threshold():
    result = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.9}
    assert detection_threshold([result], {1: [[10, 10, 5, 4]]}) is None
    assert detection_threshold([], {1: [[10, 10, 5, 4]]}) is None


def test_perfect_maps_give_all_three_thresholds(tmp_path):
    masks = masks_of_two_defects()
    run = run_with(
        tmp_path,
        [Prediction(image_id=i, map=mask.astype(np.float32)) for i, mask in enumerate(masks, start=1)],
    )
    thresholds = fold_thresholds(run, dataset_of(masks, tmp_path))
    assert thresholds["image"]["value"] == 0.5
    assert thresholds["pixel"]["value"] == pytest.approx(0.5)
    assert thresholds["detection"]["value"] == 1.0
    assert all("val" in entry["rule"] for entry in thresholds.values())


def test_a_defect_image_without_a_mask_counts_by_its_score_alone(tmp_path):
    """Whether its map and detections are right, nobody can tell."""
    masks = masks_of_two_defects()
    boxes = {1: [(4, 5, 5, 7)], 3: [(5, 4, 7, 5)]}
    found = [
        Prediction(
            image_id=i,
            score=float(mask.any()),
            map=mask.astype(np.float32),
            detections=[Detection(box_ltwh=box, score=0.9) for box in boxes.get(i, [])],
        )
        for i, mask in enumerate(masks, start=1)
    ]
    run, dataset = run_with(tmp_path / "plain", found), dataset_of(masks, tmp_path)
    plain = fold_thresholds(run, dataset)
    lost = len(masks) + 1
    extra = dataclasses.replace(dataset.images[0], id=lost, origin="test/crack", group=lost)
    splits = {"folds": [{"train": [], "val": [*range(1, lost + 1)], "test": []}], "official": None}
    longer = dataclasses.replace(dataset, images=(*dataset.images, extra), splits=splits)
    assert longer.without_mask == {lost}
    noise = np.random.default_rng(0).uniform(0, 3, masks[0].shape).astype(np.float32)
    alarms = [Detection(box_ltwh=(x, 1, 3, 4), score=0.4 + x / 1000) for x in range(12)]
    found.append(Prediction(image_id=lost, score=0.25, map=noise, detections=alarms))
    entries = fold_thresholds(run_with(tmp_path / "longer", found), longer)
    assert entries["pixel"] == plain["pixel"]
    assert entries["detection"] == plain["detection"]
    assert plain["detection"]["value"] == 0.9
    assert (plain["image"]["value"], entries["image"]["value"]) == (0.5, 0.125), "it is a defect by its score"


def test_detections_alone_give_all_three_thresholds(tmp_path):
    masks = masks_of_two_defects()
    first = Detection(box_ltwh=(4, 5, 5, 7), score=0.8)
    second = Detection(box_ltwh=(5, 4, 7, 5), score=0.6)
    wrong = Detection(box_ltwh=(0, 0, 3, 3), score=0.2)
    found = [[first, wrong], [wrong], [second], []]
    run = run_with(tmp_path, [Prediction(image_id=i, detections=d) for i, d in enumerate(found, start=1)])
    thresholds = fold_thresholds(run, dataset_of(masks, tmp_path))
    assert [thresholds[kind]["value"] for kind in ("image", "pixel", "detection")] == pytest.approx([0.4, 0.4, 0.4])


def test_scores_alone_give_no_pixel_and_no_detection_threshold(tmp_path):
    masks = masks_of_two_defects()
    run = run_with(tmp_path, [Prediction(image_id=i, score=float(m.any())) for i, m in enumerate(masks, start=1)])
    thresholds = fold_thresholds(run, dataset_of(masks, tmp_path))
    assert thresholds["image"]["value"] == 0.5
    assert thresholds["pixel"]["value"] is None
    assert "neither maps nor detections" in thresholds["pixel"]["why"]
    assert thresholds["detection"]["value"] is None


def test_good_images_alone_give_no_threshold(tmp_path):
    masks = [np.zeros(SIZE, np.uint8)] * 2
    predictions = [Prediction(image_id=i, score=1.0, map=np.ones(SIZE, np.float32), detections=[]) for i in (1, 2)]
    thresholds = fold_thresholds(run_with(tmp_path, predictions), dataset_of(masks, tmp_path))
    assert [entry["value"] for entry in thresholds.values()] == [None, None, None]
    assert all(entry["why"] for entry in thresholds.values())


def test_a_run_that_was_given_truth_has_no_threshold_and_says_why(tmp_path):
    masks = masks_of_two_defects()
    dataset = dataset_of(masks, tmp_path)
    of_image = {i: dataset.annotations_by_image[i] for i in range(1, 5)}
    run = run_with(
        tmp_path,
        [
            Prediction(image_id=i, detections=[Detection(box_ltwh=tuple(a["bbox"]), score=0.5) for a in defects])
            for i, defects in of_image.items()
        ],
    )
    thresholds = fold_thresholds(Run(run.path, {**run.info, "truth_given": "boxes of the defects"}), dataset)
    why = "the run was given the boxes of the defects, which exist only where there is a defect"
    assert thresholds == {kind: {"value": None, "why": why} for kind in ("image", "pixel", "detection")}


def test_held_back_images_set_the_largest_score_and_the_percentile_of_their_maps():
    rng = np.random.default_rng(2)
    maps = [rng.gamma(2.0, 1.0, SIZE).astype(np.float32) for _ in range(20)]
    thresholds = held_back_thresholds({1: 0.2, 2: 0.7, 3: 0.1}, iter(maps))
    every = np.sort(np.concatenate([m.ravel() for m in maps]))
    assert thresholds["image"]["value"] == 0.7
    assert thresholds["pixel"]["value"] == pytest.approx(np.percentile(every, 99.9, method="higher"), rel=1e-3)
    assert thresholds["detection"]["value"] is None


def test_nothing_held_back_says_why():
    thresholds = held_back_thresholds({}, None)
    assert all(entry["value"] is None and entry["why"] for entry in thresholds.values())
