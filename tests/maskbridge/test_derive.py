import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset, Image
from maskbridge.derive import PredictionView, part_image_ids
from maskbridge.errors import RunError
from maskbridge.predictions import Run, write_predictions

SIZE = (20, 30)
IDS = (1, 2, 3, 4)


def a_dataset(tmp_path):
    images = tuple(
        Image(id=i, file_name="", width=SIZE[1], height=SIZE[0], sha256="", origin="test/good", group=i) for i in IDS
    )
    folds = [{"train": [3], "val": [4], "test": [1, 2]}, {"train": [1], "val": [2], "test": [3, 4]}]
    return Dataset(tmp_path, images, (), (), {"folds": folds, "official": None}, {}, "", "")


def a_view(tmp_path, predictions, part="crossval", **info):
    write_predictions(tmp_path / "run", part, predictions)
    return PredictionView(Run(tmp_path / "run", {"fold": 0, **info}), a_dataset(tmp_path), part)


def pixel_thresholds(*values):
    return {str(fold): {"pixel": {"value": value, "rule": "given"}} for fold, value in enumerate(values)}


def a_map(*blobs):
    anomaly_map = np.zeros(SIZE, np.float32)
    for (top, left, height, width), value in blobs:
        anomaly_map[top : top + height, left : left + width] = value
    return anomaly_map


def test_what_is_there_is_not_derived(tmp_path):
    predictions = [Prediction(image_id=i, score=i / 10, map=np.full((2, 3), i, np.float32), detections=[]) for i in IDS]
    view = a_view(tmp_path, predictions)
    assert view.scores().value == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert view.maps().value(3).tolist() == [[3, 3, 3], [3, 3, 3]]
    assert view.detections().value == []
    assert not any(found.derived for found in (view.scores(), view.maps(), view.detections()))


def test_the_score_is_the_largest_confidence_and_zero_without_detections(tmp_path):
    found = {1: [0.3, 0.8], 2: [], 3: [0.2], 4: [0.9]}
    view = a_view(
        tmp_path,
        [
            Prediction(image_id=i, detections=[Detection(box_ltwh=(1, 2, 3, 4), score=s) for s in scores])
            for i, scores in found.items()
        ],
    )
    assert view.scores().value == {1: 0.8, 2: 0.0, 3: 0.2, 4: 0.9}
    assert view.scores().derived


def test_the_score_is_the_largest_value_of_the_map_where_nothing_was_detected_at_all(tmp_path):
    view = a_view(tmp_path, [Prediction(image_id=i, map=a_map(((1, 2, 3, 4), i))) for i in IDS])
    assert view.scores().value == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
    assert view.scores().derived


def test_each_fold_cuts_its_maps_at_its_own_threshold(tmp_path):
    view = a_view(
        tmp_path,
        [Prediction(image_id=i, map=a_map(((1, 2, 3, 4), 1.0))) for i in IDS],
        thresholds=pixel_thresholds(0.5, 2.0),
    )
    found = view.detections()
    assert found.derived
    assert [result["image_id"] for result in found.value] == [1, 2]
    assert view.threshold("pixel").value == {1: 0.5, 2: 0.5, 3: 2.0, 4: 2.0}


def test_of_one_map_no_more_detections_are_made_than_asked_for_and_images_with_more_are_counted(tmp_path):
    specks = [((2 * row, 3 * column, 1, 2), 1 + (row + 5 * column) / 100) for row in range(5) for column in range(5)]
    maps = {1: a_map(*specks), 2: a_map(*specks[:3]), 3: a_map(*specks[:4]), 4: a_map()}
    write_predictions(tmp_path / "run", "crossval", [Prediction(image_id=i, map=m) for i, m in maps.items()])
    run = Run(tmp_path / "run", {"fold": "all", "thresholds": pixel_thresholds(1, 1)})
    found = PredictionView(run, a_dataset(tmp_path), "crossval", most_detections=3).detections()
    assert [r["image_id"] for r in found.value] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [r["score"] for r in found.value[:3]] == pytest.approx([1.24, 1.23, 1.22])
    assert found.images_cut == 2
    assert PredictionView(run, a_dataset(tmp_path), "crossval").detections().images_cut == 0


def test_without_a_pixel_threshold_no_detection_follows_from_a_map(tmp_path):
    thresholds = {
        **pixel_thresholds(0.5),
        "1": {"pixel": {"value": None, "why": "val has no defective pixel"}},
    }
    view = a_view(
        tmp_path,
        [Prediction(image_id=i, map=np.ones((2, 3), np.float32)) for i in IDS],
        thresholds=thresholds,
    )
    found = view.detections()
    assert found.value is None
    assert "fold 1: val has no defective pixel" in found.why


def test_scores_alone_give_neither_maps_nor_detections(tmp_path):
    view = a_view(tmp_path, [Prediction(image_id=i, score=0.5) for i in IDS])
    assert view.maps().value is None
    assert view.detections().value is None
    assert view.maps().why
    assert view.detections().why


def test_images_without_a_score_or_a_map_are_refused(tmp_path):
    for kind in ({"score": 1.0}, {"map": np.ones((2, 3), np.float32)}):
        view = a_view(tmp_path, [Prediction(image_id=i, **kind) for i in (1, 2, 3, 9)])
        with pytest.raises(RunError, match=r"1 missing \[4\], 1 unknown \[9\]"):
            view.scores()


def test_a_detection_in_an_unknown_image_is_refused(tmp_path):
    view = a_view(tmp_path, [Prediction(image_id=9, detections=[Detection(box_ltwh=(1, 2, 3, 4), score=1.0)])])
    for method in (view.scores, view.maps, view.detections):
        with pytest.raises(RunError, match="image_id 9"):
            method()


def test_crossval_is_the_union_of_the_test_parts_and_other_parts_are_the_folds(tmp_path):
    dataset = a_dataset(tmp_path)
    assert part_image_ids(Run(tmp_path, {"fold": "all"}), dataset, "crossval") == IDS
    assert part_image_ids(Run(tmp_path, {"fold": 1}), dataset, "test") == (3, 4)
    assert part_image_ids(Run(tmp_path, {"fold": 1}), dataset, "val") == (2,)
    with pytest.raises(RunError, match="crossval alone"):
        part_image_ids(Run(tmp_path, {"fold": "all"}), dataset, "test")


def test_a_mask_that_is_not_one_of_its_image_is_refused_with_the_entry_named(tmp_path):
    small = geometry.encode(np.ones((3, 4), np.uint8))
    for rle, told in ((small, "image 1"), ({"size": list(SIZE), "counts": [5, 595]}, "segmentation.counts")):
        detections = [Detection(box_ltwh=(1, 2, 3, 4), score=1.0, segmentation=rle)]
        view = a_view(tmp_path, [Prediction(image_id=1, detections=detections)])
        with pytest.raises(RunError, match=f"entry 0.*{told}"):
            view.maps()


def test_a_map_not_named_by_an_image_is_refused(tmp_path):
    view = a_view(tmp_path, [Prediction(image_id=i, map=np.ones((2, 3), np.float32)) for i in IDS])
    np.save(tmp_path / "run/predictions/crossval/maps/other.npy", np.ones((2, 3)))
    with pytest.raises(RunError, match=r"other\.npy"):
        view.maps()


@pytest.mark.parametrize("box_ltwh", [(-2, 2, 5, 4), (1, -1, 3, 4), (25, 2, 30, 4), (1, 15, 3, 9.0)])
def test_a_box_that_leaves_its_image_is_refused_with_the_entry_named(tmp_path, box_ltwh):
    view = a_view(tmp_path, [Prediction(image_id=1, detections=[Detection(box_ltwh=box_ltwh, score=1.0)])])
    with pytest.raises(RunError, match=r"entry 0: the box leaves image 1.*clip boxes to the image"):
        view.detections()


def test_a_box_may_leave_its_image_by_rounding(tmp_path):
    height, width = SIZE
    view = a_view(
        tmp_path, [Prediction(image_id=1, detections=[Detection(box_ltwh=(-0.4, 0, width + 0.8, height), score=1.0)])]
    )
    assert len(view.detections().value) == 1


CATEGORIES = ({"id": 4, "name": "chip", "supercategory": ""}, {"id": 9, "name": "crack", "supercategory": ""})


def a_typed_view(tmp_path, predictions, **info):
    view = a_view(tmp_path, predictions, **info)
    dataset = Dataset(tmp_path, view.dataset.images, (), CATEGORIES, view.dataset.splits, {}, "", "")
    return PredictionView(view.run, dataset, "crossval")


def test_a_type_that_is_there_is_not_derived(tmp_path):
    kinds = {1: "good", 2: "chip", 3: "crack", 4: "good"}
    view = a_typed_view(tmp_path, [Prediction(image_id=i, score=0.5, type=kinds[i]) for i in IDS])
    assert view.types().value == kinds
    assert not view.types().derived


def test_a_detectors_type_is_that_of_the_surest_detection_where_the_image_is_called_defective(tmp_path):
    found = {1: [(0.3, 9), (0.8, 4)], 2: [(0.9, 9), (0.2, 4)], 3: [(0.4, 4)], 4: []}
    thresholds = {str(fold): {"image": {"value": 0.5, "rule": "given"}} for fold in (0, 1)}
    predictions = [
        Prediction(
            image_id=i, detections=[Detection(box_ltwh=(1, 2, 3, 4), score=s, category_id=c) for s, c in entries]
        )
        for i, entries in found.items()
    ]
    view = a_typed_view(tmp_path, predictions, thresholds=thresholds)
    assert view.types().value == {1: "chip", 2: "crack", 3: "good", 4: "good"}
    assert view.types().derived
    assert a_typed_view(tmp_path, predictions).types().why.startswith("no image threshold")


def test_detections_of_unknown_type_name_none(tmp_path):
    box = Detection(box_ltwh=(1, 2, 3, 4), score=0.5)
    view = a_typed_view(tmp_path, [Prediction(image_id=i, detections=[box]) for i in IDS])
    assert view.types().why == "the run names no types"
    assert a_typed_view(tmp_path, [Prediction(image_id=i, score=0.5) for i in IDS]).types().value is None


def test_where_nothing_was_detected_all_images_are_good(tmp_path):
    thresholds = {str(fold): {"image": {"value": 0.5, "rule": "given"}} for fold in (0, 1)}
    view = a_typed_view(tmp_path, [Prediction(image_id=i, detections=[]) for i in IDS], thresholds=thresholds)
    assert set(view.types().value.values()) == {"good"}


def test_a_type_of_another_dataset_is_refused(tmp_path):
    view = a_typed_view(tmp_path, [Prediction(image_id=i, type="scratch") for i in IDS])
    with pytest.raises(RunError, match=r"a type is not the dataset's.*scratch"):
        view.types()


def test_types_of_other_images_are_refused(tmp_path):
    view = a_typed_view(tmp_path, [Prediction(image_id=i, type="good") for i in IDS[:-1]])
    with pytest.raises(RunError, match="the types of part crossval are of other images"):
        view.types()
