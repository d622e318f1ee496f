import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.instance_metrics import BANDS, InstanceMetrics, names
from maskbridge import geometry
from maskbridge.errors import RunError

#: COCO's own areas, as its figures name them.
COCO_BANDS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
COCO_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
COCO_NAMES += ("ar1", "ar10", "ar100", "ar100_small", "ar100_medium", "ar100_large")


def reference(dataset, ids, results, kind, by_type, bands=None):
    """The figures of pycocotools; without types every defect is of the first one."""
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
        for result in found:  # with both, pycocotools takes the area of the box also for masks
            result.pop("segmentation" if kind == "bbox" else "bbox", None)
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        evaluation.params.imgIds = ids
        if bands is not None:
            evaluation.params.areaRng = [[0, 1e10], *map(list, bands.values())]
            evaluation.params.areaRngLbl = ["all", *bands]
        evaluation.evaluate()
        evaluation.accumulate()
        if bands is None:
            evaluation.summarize()
            return dict(zip(COCO_NAMES, evaluation.stats, strict=True))
    figures = {}
    for place, band in enumerate(bands, start=1):
        precision, recall = (evaluation.eval[name][..., place, -1] for name in ("precision", "recall"))
        for name, values in (("ap", precision), ("ap50", precision[0]), ("ar100", recall)):
            kept = values[values > -1]
            figures[f"{name}_{band}"] = kept.mean() if kept.size else -1
    return figures


def figures_of(point, kind):
    return {name.removeprefix(kind + "_"): value for name, value in point.items() if name.startswith(kind)}


def assert_same(family, kind, expected):
    """-1 is pycocotools' word for undefined."""
    point = figures_of(family.point(), kind)
    for name, value in expected.items():
        if value == -1:
            assert f"{kind}_{name}" in family.whys
        else:
            assert point[name] == pytest.approx(value, abs=1e-9), name


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


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("by_type", [False, True], ids=["agnostic", "by type"])
@pytest.mark.parametrize("seed", range(4))
def test_all_twelve_figures_are_those_of_pycocotools(dataset, ids, by_type, seed, kind):
    results = noisy(dataset, ids, np.random.default_rng(seed))
    family = InstanceMetrics(dataset, ids, results, by_type=by_type, bands=COCO_BANDS)
    assert_same(family, kind, reference(dataset, ids, results, kind, by_type))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("by_type", [False, True], ids=["agnostic", "by type"])
def test_figures_by_size_are_those_of_pycocotools_with_the_same_bands(dataset, ids, by_type, kind):
    bands = {"a": (0, np.nextafter(12, 0)), "b": (12, np.nextafter(60, 0)), "c": (60, 1e10), "none": (5000, 1e10)}
    results = noisy(dataset, ids, np.random.default_rng(11))
    family = InstanceMetrics(dataset, ids, results, by_type=by_type, bands=bands)
    assert_same(family, kind, reference(dataset, ids, results, kind, by_type, bands))
    assert family.whys == {name: "there is no defect of this size" for name in names(bands) if name.endswith("_none")}


@pytest.mark.parametrize("seed", range(3))
def test_crowded_images_are_matched_as_pycocotools_does(new_dataset, tmp_path, seed):
    """Many overlapping boxes of several types and sizes, tied confidences and tied overlaps."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        return np.hstack([rng.integers(0, 80, (count, 2)), 2 ** rng.integers(1, 7, (count, 2))]).astype(float)

    ids = list(range(1, 13))
    annotations = [
        {
            "id": 100 * i + n,
            "image_id": i,
            "category_id": int(rng.integers(1, 4)),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for i in ids[:-2]
        for n, box in enumerate(boxes(25), start=1)
    ]
    results = [
        {
            "image_id": i,
            "category_id": int(rng.integers(1, 4)),
            "bbox": box.tolist(),
            "score": float(rng.integers(0, 20)),
        }
        for i in ids
        for box in np.vstack([boxes(130), *([a["bbox"]] for a in annotations if a["image_id"] == i)])
    ]
    dataset = SimpleNamespace(
        images=[SimpleNamespace(id=i, height=150, width=200) for i in ids],
        annotations=annotations,
        categories=[{"id": i, "name": str(i), "supercategory": "tile"} for i in (1, 2, 3)],
        annotations_by_image={i: [a for a in annotations if a["image_id"] == i] for i in ids},
    )
    for by_type in (False, True):
        family = InstanceMetrics(dataset, ids, results, by_type=by_type, bands=COCO_BANDS)
        assert_same(family, "bbox", reference(dataset, ids, results, "bbox", by_type))


def test_equal_to_pycocotools_on_some_images_only(dataset, ids):
    some = ids[1::3]
    results = [r for r in noisy(dataset, ids, np.random.default_rng(5)) if r["image_id"] in some]
    family = InstanceMetrics(dataset, some, results, by_type=True, bands=COCO_BANDS)
    assert_same(family, "segm", reference(dataset, some, results, "segm", True))


def test_equal_to_pycocotools_beyond_a_hundred_detections(dataset, ids):
    results = [r for seed in range(60) for r in noisy(dataset, ids[:4], np.random.default_rng(seed))]
    family = InstanceMetrics(dataset, ids, results, by_type=False, bands=COCO_BANDS)
    assert_same(family, "bbox", reference(dataset, ids, results, "bbox", False))


def test_images_without_defects_full_of_false_positives_count_as_in_pycocotools(dataset, ids, truth):
    good = [image.id for image in dataset.images if image.is_good]
    results = truth_results(dataset, ids, truth)
    wrong = [{**results[n % 5], "image_id": i, "score": 2.0 - n / 99} for i in good for n in range(90)]
    family = InstanceMetrics(dataset, ids, [*results, *wrong], by_type=False, bands=COCO_BANDS)
    expected = reference(dataset, ids, [*results, *wrong], "segm", False)
    assert expected["ap"] < 0.1
    assert_same(family, "segm", expected)


def test_a_defect_of_a_hundred_pixels_has_a_band_of_its_own(new_dataset, tmp_path):
    masks = [np.zeros((150, 200), np.uint8) for _ in range(3)]
    for mask, side in zip(masks, (9, 10, 100), strict=True):
        mask[3 : 3 + side, 5 : 5 + side] = 1
    dataset = new_dataset(tmp_path / "d", masks)
    found = {"image_id": 2, "category_id": 1, "bbox": [5.0, 3.0, 10.0, 10.0], "score": 0.9}
    family = InstanceMetrics(dataset, [1, 2, 3], [found], by_type=False)
    point = family.point()
    values = [point[f"bbox_ap_{band}"] for band in BANDS]
    assert values[:2] == pytest.approx([0, 1])
    assert values[3] == 0
    assert family.whys["bbox_ap_1000_10000px"] == "there is no defect of this size"


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
        assert {name: values[name][row] for name in alone} == pytest.approx(alone, nan_ok=True)
    family = InstanceMetrics(dataset, ids, results, by_type=True)
    twice = {name: value[0] for name, value in family.values(np.full((1, len(ids)), 2)).items()}
    assert twice == pytest.approx(family.point(), nan_ok=True)


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
    without_masks = {name for name, why in family.whys.items() if why == "the detections have no masks"}
    assert without_masks == {f"segm_{name}" for name in ("ap", "ap50", "ap75", "ar1", "ar10", "ar100")} | {
        f"segm_{name}_under_100px" for name in ("ap", "ap50", "ar100")
    }


def test_false_positives_on_good_images_cost_precision(dataset, ids, truth):
    results = truth_results(dataset, ids, truth)
    good = next(image.id for image in dataset.images if image.is_good)
    wrong = {**results[0], "image_id": good, "score": 2.0}
    assert InstanceMetrics(dataset, ids, [*results, wrong], by_type=False).point()["segm_ap"] < 1


def test_an_empty_list_looked_and_found_nothing(dataset, ids):
    for by_type in (False, True):
        family = InstanceMetrics(dataset, ids, [], by_type=by_type)
        point = {name: value for name, value in family.point().items() if name not in family.whys}
        assert set(point.values()) == {0.0}
        assert {"bbox_ap", "segm_ap50", "bbox_ar100", "segm_ap_under_100px"} <= set(point)


def test_without_a_defect_all_is_undefined(new_dataset, tmp_path):
    dataset = new_dataset(tmp_path / "d", [np.zeros((5, 9), np.uint8)] * 2)
    family = InstanceMetrics(dataset, [1, 2], [], by_type=False)
    assert set(family.whys) == set(names())


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


@pytest.mark.parametrize("most", [1, 2, 3, 25])
@pytest.mark.parametrize("by_type", [False, True], ids=["agnostic", "by type"])
def test_another_limit_of_detections_is_that_of_pycocotools(dataset, ids, by_type, most):
    results = noisy(dataset, ids, np.random.default_rng(6))
    family = InstanceMetrics(dataset, ids, results, by_type=by_type, bands={}, most=most)
    levels = [level for level in (1, 10) if level < most] + [most]
    point = family.point()
    assert family.names == names({}, most)
    recalls = {name for name in point if "_ar" in name}
    assert recalls == {f"{kind}_ar{level}" for kind in ("bbox", "segm") for level in levels}
    for kind in ("bbox", "segm"):
        expected = limited(dataset, ids, results, kind, by_type, levels)
        assert {name: point[f"{kind}_{name}"] for name in expected} == pytest.approx(expected, abs=1e-9)


def limited(dataset, ids, results, kind, by_type, levels):
    """AP, AP50 and recalls of pycocotools with `maxDets` of one's own."""
    only = {} if by_type else {"category_id": 1}
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image.id, "height": image.height, "width": image.width} for image in dataset.images],
        "annotations": [{**annotation, **only} for annotation in dataset.annotations],
        "categories": [dict(category) for category in dataset.categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([{**r, **only} for r in results]), kind)
        evaluation.params.imgIds, evaluation.params.maxDets = ids, levels
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][:, :, :, 0], evaluation.eval["recall"][:, :, 0]
    figures = {"ap": precision[..., -1], "ap50": precision[0, ..., -1]}
    figures |= {f"ar{level}": recall[..., place] for place, level in enumerate(levels)}
    return {name: values[values > -1].mean() for name, values in figures.items()}


def test_images_with_more_detections_than_are_looked_at_are_counted(dataset, ids):
    results = [
        {"image_id": i, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
        for i, times in ((ids[0], 4), (ids[1], 3), (ids[2], 5))
        for _ in range(times)
    ]
    cut = [InstanceMetrics(dataset, ids, results, by_type=False, most=most).images_cut for most in (2, 3, 4, 5)]
    assert cut == [3, 2, 1, 0]
    assert InstanceMetrics(dataset, ids, results, by_type=False).images_cut == 0
