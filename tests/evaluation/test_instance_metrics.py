import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.instance_metrics import NAMES, InstanceMetrics
from maskbridge import geometry
from maskbridge.errors import RunError


def reference(dataset, ids, results, kind, by_type):
    """AP, AP50 and AR100 of pycocotools; without types every defect is of the first one."""
    only = {} if by_type else {"category_id": 1}
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image.id, "height": image.height, "width": image.width} for image in dataset.images],
        "annotations": [{**annotation, **only} for annotation in dataset.annotations],
        "categories": [dict(category) for category in dataset.categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        found = [{**r, **only} for r in results]
        for result in found if kind == "bbox" else ():
            result.pop("segmentation")
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        evaluation.params.imgIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[1], evaluation.stats[8]


def noisy(dataset, ids, rng):
    """The truth moved, doubled, mistaken and left out, with tied confidences and inventions."""
    results = []
    for image_id in ids:
        image = dataset.image_by_id[image_id]
        masks = [(geometry.decode(a["segmentation"]), a["category_id"]) for a in dataset.annotations_by_image[image_id]]
        invented = np.zeros(image.size_hw, np.uint8)
        left, top = rng.integers(0, image.width - 5), rng.integers(0, image.height - 5)
        invented[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = 1
        for mask, category_id in [*masks, *masks, (invented, 1)]:
            moved = np.roll(mask, tuple(rng.integers(-1, 2, 2)), axis=(0, 1))
            if rng.random() < 0.2 or not moved.any():
                continue
            instance = geometry.instances(moved, split=False)[0][0]
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category_id if rng.random() < 0.8 else 2,
                    "bbox": [float(v) for v in instance["bbox"]],
                    "score": float(np.round(rng.random(), 1)),
                    "segmentation": instance["segmentation"],
                }
            )
    return results


@pytest.mark.parametrize("by_type", [False, True], ids=["agnostic", "by type"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools(dataset, ids, by_type, seed):
    results = noisy(dataset, ids, np.random.default_rng(seed))
    point = InstanceMetrics(dataset, ids, results, by_type=by_type).point()
    boxes = reference(dataset, ids, results, "bbox", by_type)
    masks = reference(dataset, ids, results, "segm", by_type)
    assert (point["bbox_ap"], point["bbox_ap50"], point["bbox_ar100"]) == pytest.approx(boxes, abs=1e-9)
    assert (point["segm_ap"], point["segm_ap50"]) == pytest.approx(masks[:2], abs=1e-9)


def test_equal_to_pycocotools_on_some_images_only(dataset, ids):
    some = ids[1::3]
    results = [r for r in noisy(dataset, ids, np.random.default_rng(5)) if r["image_id"] in some]
    point = InstanceMetrics(dataset, some, results, by_type=True).point()
    assert point["segm_ap"] == pytest.approx(reference(dataset, some, results, "segm", True)[0], abs=1e-9)


def test_equal_to_pycocotools_beyond_a_hundred_detections(dataset, ids):
    results = [r for seed in range(60) for r in noisy(dataset, ids[:4], np.random.default_rng(seed))]
    point = InstanceMetrics(dataset, ids, results, by_type=False).point()
    expected = reference(dataset, ids, results, "bbox", False)
    assert (point["bbox_ap"], point["bbox_ap50"], point["bbox_ar100"]) == pytest.approx(expected, abs=1e-9)


def test_weights_count_images_several_times(dataset, ids):
    rng = np.random.default_rng(6)
    results = noisy(dataset, ids, rng)
    for place, result in enumerate(results):
        result["score"] = float(rng.permutation(1000)[0]) + place / 1e4  # no ties between images
    kept = rng.integers(0, 2, (3, len(ids)))
    values = InstanceMetrics(dataset, ids, results, by_type=False).values(kept)
    for row, counts in enumerate(kept):
        some = [image_id for image_id, count in zip(ids, counts, strict=True) if count]
        mine = [r for r in results if r["image_id"] in some]
        alone = InstanceMetrics(dataset, some, mine, by_type=False).point()
        assert {name: values[name][row] for name in NAMES} == pytest.approx(alone)
    family = InstanceMetrics(dataset, ids, results, by_type=True)
    twice = {name: value[0] for name, value in family.values(np.full((1, len(ids)), 2)).items()}
    assert twice == pytest.approx(family.point())


def test_worked_by_hand(new_dataset, tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:8, 3:13] = 1
    mask[12:18, 3:13] = 1
    dataset = new_dataset(tmp_path / "d", [mask, np.zeros((20, 30), np.uint8)])
    first = {"image_id": 1, "category_id": None, "bbox": [3.0, 2.0, 10.0, 6.0], "score": 0.9}
    wrong = {"image_id": 2, "category_id": None, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.8}
    second = {"image_id": 1, "category_id": None, "bbox": [3.0, 12.0, 5.0, 6.0], "score": 0.7}  # IoU one half
    family = InstanceMetrics(dataset, [1, 2], [first, wrong, second], by_type=False)
    point = family.point()
    # at .5: precision 1 for recall 0 to .5 (51 levels), 2/3 beyond (50); above: 1 for 51 levels, 0 for 50
    half = 51 / 101
    assert point["bbox_ap50"] == pytest.approx(half + 50 / 101 * 2 / 3)
    assert point["bbox_ap"] == pytest.approx((half + 50 / 101 * 2 / 3 + 9 * half) / 10)
    assert point["bbox_ar100"] == pytest.approx((1 + 9 * 0.5) / 10)
    assert set(family.whys) == {"segm_ap", "segm_ap50"}


def test_false_positives_on_good_images_cost_precision(dataset, ids, truth):
    results = truth_results(dataset, ids, truth)
    good = next(image.id for image in dataset.images if image.is_good)
    wrong = {**results[0], "image_id": good, "score": 2.0}
    assert InstanceMetrics(dataset, ids, [*results, wrong], by_type=False).point()["segm_ap"] < 1


def test_an_empty_list_looked_and_found_nothing(dataset, ids):
    for by_type in (False, True):
        family = InstanceMetrics(dataset, ids, [], by_type=by_type)
        assert family.point() == dict.fromkeys(NAMES, 0.0)
        assert not family.whys


def test_without_a_defect_all_is_undefined(new_dataset, tmp_path):
    dataset = new_dataset(tmp_path / "d", [np.zeros((5, 9), np.uint8)] * 2)
    family = InstanceMetrics(dataset, [1, 2], [], by_type=False)
    assert set(family.whys) == set(NAMES)


def test_detections_of_unknown_type_have_no_metrics_by_type(dataset, ids, truth):
    results = [{**result, "category_id": None} for result in truth_results(dataset, ids, truth)]
    family = InstanceMetrics(dataset, ids, results, by_type=True)
    assert set(family.whys.values()) == {"the detections are of unknown type"}


def test_a_type_the_dataset_does_not_have_is_refused(dataset, ids, truth):
    results = truth_results(dataset, ids, truth)
    results[0]["category_id"] = 99
    with pytest.raises(RunError, match="99"):
        InstanceMetrics(dataset, ids, results, by_type=False)


def truth_results(dataset, ids, truth):
    return [
        {
            "image_id": prediction.image_id,
            "category_id": d.category_id,
            "bbox": [float(v) for v in d.box_ltwh],
            "score": d.score,
            "segmentation": d.segmentation,
        }
        for prediction in truth(dataset, ids)
        for d in prediction.detections
    ]
