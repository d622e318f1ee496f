import itertools
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from evaluation.mask_metrics import mask_overlap
from evaluation.metrics import evaluate
from maskbridge import geometry
from maskbridge.approach import Detection, Prediction

HEIGHT, WIDTH = 24, 36
WHY_GIVEN = "the run was given the boxes of the defects, which exist only where there is a defect"


def block(top, left, height, width):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


EMPTY = block(0, 0, 0, 0)
#: Of 12 and of 40 pixels.
FIRST, SECOND = block(2, 3, 3, 4), block(10, 20, 5, 8)


def found(mask, score=0.9, category_id=None):
    """A detection; the box of an empty mask is the whole image."""
    box = geometry.instances(mask, split=False)[0][0]["bbox"] if mask.any() else (0, 0, WIDTH, HEIGHT)
    return Detection(box_ltwh=tuple(box), score=score, category_id=category_id, segmentation=geometry.encode(mask))


@pytest.fixture
def measured(new_dataset, new_run, tmp_path):
    """Metrics of detections in an image with `FIRST` and `SECOND`, and of others in a good one."""

    def make(detections, good=(), **info):
        dataset = new_dataset(tmp_path / "tile", [FIRST | SECOND, EMPTY])
        predictions = [
            Prediction(image_id=1, detections=list(detections)),
            Prediction(image_id=2, detections=list(good)),
        ]
        run = new_run(tmp_path / "run", dataset, predictions, **info)
        return evaluate(run, dataset, "test", samples=20).metrics["mask"]

    return make


def values(metrics):
    return metrics["iou"]["value"], metrics["dice"]["value"]


def test_two_defects_worked_by_hand(measured):
    """6 of 12 pixels and nothing else: IoU 1/2, Dice 2/3. Moved by two of 8 columns: 30 of 50, IoU 3/5, Dice 3/4."""
    metrics = measured([found(block(2, 3, 3, 2)), found(block(10, 22, 5, 8))])
    assert values(metrics) == pytest.approx(((1 / 2 + 3 / 5) / 2, (2 / 3 + 3 / 4) / 2))
    assert metrics["iou"]["low"] <= metrics["iou"]["value"] <= metrics["iou"]["high"]
    assert metrics["iou"]["derived"] is False


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ([found(SECOND), found(FIRST)], 1.0),
        ([found(SECOND, category_id=1), found(FIRST)], 1.0),
        ([], 0.0),
        ([found(FIRST)], 0.5),
        ([found(FIRST), found(SECOND, score=0.49)], 0.5),
        ([found(FIRST), found(SECOND, score=0.5)], 1.0),
        ([found(EMPTY), found(SECOND)], 0.5),
        ([found(FIRST), found(FIRST), found(FIRST, score=0.99)], 0.5),
        ([found(FIRST | SECOND)], 40 / 52 / 2),
    ],
    ids=[
        "the order does not matter",
        "nor the type",
        "missed",
        "one missed",
        "below the threshold",
        "at the threshold",
        "an empty mask",
        "one mask for each defect and one defect for each mask",
        "one mask over both is that of the larger",
    ],
)
def test_each_defect_has_at_most_one_mask(measured, detections, expected):
    assert values(measured(detections))[0] == pytest.approx(expected)


def test_a_false_alarm_costs_nothing(measured):
    alarm = found(block(18, 2, 4, 5), score=1.0)
    assert values(measured([found(FIRST), found(SECOND), alarm], [alarm])) == (1.0, 1.0)


def test_the_sum_is_what_is_made_largest_not_the_surest_served_first(new_dataset, tmp_path):
    """A mask that overlaps both defects goes to the one for which there is no other."""
    left, right = block(4, 2, 6, 8), block(4, 11, 6, 10)
    dataset = new_dataset(tmp_path / "tile", [left | right])
    both = block(4, 4, 6, 14)  # 36 of left, 42 of right
    results = results_of(1, [(both, 1.0), (block(4, 13, 6, 10), 0.6)])
    point = mask_overlap(dataset, [1], results, {1: 0.5}).point()
    assert point["iou"] == pytest.approx((36 / (48 + 84 - 36) + 48 / 72) / 2)


def test_masks_and_pairing_agree_with_pycocotools_and_every_order_tried(new_dataset, tmp_path):
    rng = np.random.default_rng(5)
    truth = [block(1, 1, 6, 9), block(9, 3, 7, 5), block(3, 14, 8, 12), block(15, 20, 6, 11)]
    dataset = new_dataset(tmp_path / "tile", [np.maximum.reduce(truth)])
    for _ in range(20):
        masks = [np.roll(truth[i], tuple(rng.integers(-5, 6, 2)), (0, 1)) for i in rng.integers(0, 4, 5)]
        results = results_of(1, [(mask, 0.9) for mask in masks])
        defects = [geometry.packed(a["segmentation"]) for a in dataset.annotations_by_image[1]]
        iou = coco_mask.iou([geometry.packed(r["segmentation"]) for r in results], defects, [0] * 4)
        best = max(
            sum(iou[row, column] for column, row in enumerate(rows)) for rows in itertools.permutations(range(5), 4)
        )
        assert mask_overlap(dataset, [1], results, {1: 0.5}).point()["iou"] == pytest.approx(best / 4)


def test_dice_is_twice_the_shared_pixels_over_both_areas(new_dataset, tmp_path):
    rng = np.random.default_rng(6)
    dataset = new_dataset(tmp_path / "tile", [FIRST])
    for _ in range(10):
        mask = (rng.random((HEIGHT, WIDTH)) < 0.2).astype(np.uint8) | block(2, 3, 2, 3)
        point = mask_overlap(dataset, [1], results_of(1, [(mask, 1.0)]), {1: 0.5}).point()
        assert point["dice"] == pytest.approx(2 * (mask & FIRST).sum() / (mask.sum() + FIRST.sum()))


def test_a_run_that_was_given_truth_pairs_by_place_and_has_no_other_figures(dataset, ids, new_run, prompted, tmp_path):
    """The mask of the first defect of an image is empty, of the others right: even where those overlap the first."""
    firsts = {defects[0]["id"] for defects in dataset.annotations_by_image.values() if defects}
    run = new_run(
        tmp_path / "run",
        dataset,
        prompted(dataset, ids, lambda a: EMPTY if a["id"] in firsts else geometry.decode(a["segmentation"])),
        truth_given="boxes of the defects",
    )
    metrics = evaluate(run, dataset, "test", samples=20).metrics
    count = len(dataset.annotations)
    assert values(metrics["mask"]) == pytest.approx([(count - len(firsts)) / count] * 2)
    assert metrics["instance"]["segm_ap50"]["value"] is not None
    for family in ("image", "image_recall_by_type", "pixel", "instance_by_type", "detection_rate_by_type"):
        assert {(m["value"], m["why"]) for m in metrics[family].values()} == {(None, WHY_GIVEN)}, family
    boxes = [metric for name, metric in metrics["instance"].items() if name.startswith("bbox")]
    assert {(m["value"], m["why"]) for m in boxes} == {(None, WHY_GIVEN)}


def test_masks_that_were_swapped_by_a_run_that_was_given_truth_are_not_set_right(
    new_dataset, new_run, prompted, tmp_path
):
    dataset = new_dataset(tmp_path / "tile", [FIRST | SECOND])
    one, other = (geometry.decode(a["segmentation"]) for a in dataset.annotations)
    swapped = prompted(dataset, [1], lambda a: other if a["id"] == 1 else one)
    run = new_run(tmp_path / "run", dataset, swapped, truth_given="boxes of the defects")
    assert values(evaluate(run, dataset, "test", samples=5).metrics["mask"]) == (0.0, 0.0)


def test_the_mean_is_over_defects_not_over_images_and_follows_the_weights(new_dataset, tmp_path):
    dataset = new_dataset(tmp_path / "tile", [FIRST | SECOND, FIRST, EMPTY])
    family = mask_overlap(dataset, [1, 2, 3], results_of(2, [(FIRST, 0.9)]), dict.fromkeys((1, 2, 3), 0.5))
    assert family.point()["iou"] == pytest.approx(1 / 3)
    iou = family.values(np.array([[1, 1, 1], [0, 3, 1], [2, 1, 0], [0, 0, 1]]))["iou"]
    assert iou == pytest.approx([1 / 3, 1.0, 1 / 5, np.nan], nan_ok=True)
    assert family.units["iou"].tolist() == [True, True, False]


def test_folds_are_told_by_themselves_with_their_spread(dataset, new_run, truth, tmp_path):
    """Fold 0 finds everything, the others nothing."""
    fold_of = dataset.fold_of_image()
    predictions = [p if fold_of[p.image_id] == 0 else replace(p, detections=[]) for p in perfect(dataset, truth)]
    run = new_run(tmp_path / "run", dataset, predictions, "crossval", "all")
    metrics = evaluate(run, dataset, "crossval", samples=20).metrics
    counts = [sum(len(dataset.annotations_by_image[i]) for i in fold_of if fold_of[i] == fold) for fold in range(3)]
    assert metrics["mask"]["iou"]["value"] == pytest.approx(counts[0] / sum(counts))
    spread = metrics["folds"]["mask"]["iou"]
    assert spread["values"] == {"0": 1.0, "1": 0.0, "2": 0.0}
    assert (spread["mean"], spread["sd"]) == pytest.approx((1 / 3, np.std([1, 0, 0], ddof=1)))


def test_each_fold_has_its_own_threshold(dataset, new_run, truth, tmp_path):
    fold_of = dataset.fold_of_image()
    thresholds = {str(fold): {"detection": {"value": value}} for fold, value in enumerate((0.5, 1.0, 1.5))}
    run = new_run(tmp_path / "run", dataset, perfect(dataset, truth), "crossval", "all", thresholds=thresholds)
    spread = evaluate(run, dataset, "crossval", samples=5).metrics["folds"]["mask"]["iou"]
    assert spread["values"] == {"0": 1.0, "1": 1.0, "2": 0.0}
    assert len(set(fold_of.values())) == 3


def test_masks_from_a_map_are_derived(dataset, ids, new_run, tmp_path):
    maps = [Prediction(image_id=i, map=dataset.mask(i).astype(np.float32)) for i in ids]
    metrics = evaluate(new_run(tmp_path / "run", dataset, maps), dataset, "test", samples=20).metrics["mask"]
    assert (metrics["dice"]["value"], metrics["dice"]["derived"]) == (1.0, True)


def test_what_cannot_be_told_says_why(new_dataset, new_run, measured, tmp_path):
    boxes = [Detection(box_ltwh=(3, 2, 4, 3), score=0.9)]
    assert whys(measured(boxes)) == {"the detections have no masks"}
    assert whys(measured([found(FIRST), *boxes])) == {"the detections have no masks"}
    none = {"official": {"detection": {"value": None, "why": "val has no defect"}}}
    told = whys(measured([found(FIRST)], thresholds=none))
    assert told == {"no detection threshold for fold official: val has no defect"}
    dataset = new_dataset(tmp_path / "good", [EMPTY, EMPTY])
    for name, kinds in (("looked", {"detections": []}), ("scored", {"score": 0.5})):
        run = new_run(tmp_path / name, dataset, [Prediction(image_id=i, **kinds) for i in (1, 2)])
        told = whys(evaluate(run, dataset, "test", samples=5).metrics["mask"])
        assert told == {"there is no defect" if name == "looked" else "the run has neither detections nor maps"}


def whys(metrics):
    assert values(metrics) == (None, None)
    return {metric["why"] for metric in metrics.values()}


def perfect(dataset, truth):
    return truth(dataset, [image.id for image in dataset.images])


def results_of(image_id, masks):
    """COCO results of masks and their confidences."""
    return [
        {
            "image_id": image_id,
            "category_id": None,
            "bbox": [0.0, 0.0, 1.0, 1.0],
            "score": score,
            "segmentation": geometry.encode(mask),
        }
        for mask, score in masks
    ]
