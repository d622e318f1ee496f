import json

import numpy as np
import pytest

from evaluation.metrics import evaluate, image_ids_sha256, truth_sha256
from maskbridge.approach import Detection, Prediction
from maskbridge.errors import MaskbridgeError
from maskbridge.files import sha256_bytes

FAMILIES = ("image", "pixel", "instance", "instance_by_type", "mask", "image_recall_by_type", "detection_rate_by_type")


def every_metric(metrics):
    return {(f, name): metric for f in FAMILIES for name, metric in metrics[f].items()}


def scored(run, dataset, part="test"):
    metrics = evaluate(run, dataset, part, samples=50).metrics
    json.dumps(metrics, allow_nan=False)
    return metrics


def test_perfect_predictions_score_one(dataset, ids, new_run, truth, tmp_path):
    metrics = scored(new_run(tmp_path / "run", dataset, truth(dataset, ids)), dataset)
    none = {key: metric["why"] for key, metric in every_metric(metrics).items() if metric["value"] is None}
    assert set(none.values()) == {"there is no defect of this size"}, "the largest defect has 864 pixels"
    for (family, name), metric in every_metric(metrics).items():
        if (family, name) in none or name.endswith("ar1"):  # several defects, one detection
            continue
        best = 0.0 if name in ("escape_rate", "overkill_rate") else 1.0
        assert metric["value"] == pytest.approx(best, abs=1e-9), (family, name)
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["high"] - metric["low"] > 0.01
        assert metric["method"] in ("wilson", "newcombe")
        assert metric["derived"] is False


def test_predictions_shuffled_over_images_score_at_chance(dataset, ids, new_run, truth, tmp_path):
    rng = np.random.default_rng(12)
    aurocs, aps = [], []
    for number in range(5):
        answer_of = dict(zip(ids, rng.permutation(ids).tolist(), strict=True))
        run = new_run(tmp_path / str(number), dataset, truth(dataset, ids, answer_of))
        metrics = evaluate(run, dataset, "test", samples=2).metrics
        aurocs.append(metrics["image"]["auroc"]["value"])
        aps.append(metrics["instance"]["segm_ap"]["value"])
    assert np.mean(aurocs) == pytest.approx(0.5, abs=0.12)
    assert np.mean(aps) < 0.2


def test_only_oracle_figures_say_so(dataset, ids, new_run, truth, tmp_path):
    metrics = scored(new_run(tmp_path / "run", dataset, truth(dataset, ids)), dataset)
    oracles = {key for key, metric in every_metric(metrics).items() if metric.get("oracle")}
    assert oracles == {("image", "f1_max"), ("pixel", "f1_max")}


def test_maps_alone_derive_everything_but_types(dataset, ids, new_run, tmp_path):
    predictions = [Prediction(image_id=i, map=dataset.mask(i).astype(np.float32)) for i in ids]
    metrics = scored(new_run(tmp_path / "run", dataset, predictions), dataset)
    assert metrics["image"]["auroc"]["derived"] is True
    assert metrics["pixel"]["auroc"]["derived"] is False
    assert metrics["instance"]["segm_ap"] == {**metrics["instance"]["segm_ap"], "value": 1.0, "derived": True}
    assert all(metric["value"] is None for metric in metrics["instance_by_type"].values())


def test_boxes_alone_derive_scores_and_maps_but_no_masks(dataset, ids, new_run, tmp_path):
    predictions = [
        Prediction(
            image_id=i,
            detections=[
                Detection(box_ltwh=tuple(a["bbox"]), score=0.9, category_id=a["category_id"])
                for a in dataset.annotations_by_image[i]
            ],
        )
        for i in ids
    ]
    metrics = scored(new_run(tmp_path / "run", dataset, predictions), dataset)
    assert (metrics["image"]["auroc"]["value"], metrics["image"]["auroc"]["derived"]) == (1.0, True)
    assert metrics["pixel"]["aupro_30"]["derived"] is True
    assert metrics["instance_by_type"]["bbox_ap"]["value"] == 1.0
    assert metrics["instance"]["segm_ap"] == {"value": None, "why": "the detections have no masks"}


def test_scores_alone_leave_the_rest_undefined_with_a_why(dataset, ids, new_run, tmp_path):
    predictions = [Prediction(image_id=i, score=float(i % 7)) for i in ids]
    metrics = scored(new_run(tmp_path / "run", dataset, predictions), dataset)
    assert metrics["image"]["auroc"]["value"] is not None
    for family in set(FAMILIES) - {"image", "image_recall_by_type"}:
        assert all(metric["value"] is None and metric["why"] for metric in metrics[family].values())


def test_each_type_has_its_share_of_images_and_of_defects_found(dataset, ids, new_run, tmp_path):
    """Cracks are found, of stains the first only, chips by boxes that name another type."""
    of_name = {category["name"]: category["id"] for category in dataset.categories}
    predictions = []
    for i in ids:
        kind, found = dataset.image_by_id[i].defect_type, dataset.annotations_by_image[i]
        found = found[:1] if kind == "stain" else found
        named = of_name["crack"] if kind == "chip" else of_name.get(kind)
        detections = [Detection(box_ltwh=tuple(a["bbox"]), score=0.9, category_id=named) for a in found]
        detections.append(Detection(box_ltwh=(0.0, 0.0, 36.0, 24.0), score=0.4, category_id=1))  # below .5
        predictions.append(Prediction(image_id=i, detections=detections, score=float(kind in ("crack", "chip"))))
    metrics = scored(new_run(tmp_path / "run", dataset, predictions), dataset)
    rates, recall = metrics["detection_rate_by_type"], metrics["image_recall_by_type"]
    stains = [dataset.annotations_by_image[i] for i in ids if dataset.image_by_id[i].defect_type == "stain"]
    assert rates["stain"]["value"] == pytest.approx(len(stains) / sum(map(len, stains)))
    assert (rates["crack"]["value"], rates["chip"]["value"]) == (1.0, 1.0)
    assert (recall["crack"]["value"], recall["stain"]["value"], recall["chip"]["value"]) == (1.0, 0.0, 1.0)
    assert rates["crack"]["method"] == "wilson"


def test_looking_and_finding_nothing_is_a_score_of_zero(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, detections=[]) for i in ids])
    metrics = scored(run, dataset)
    assert metrics["instance"]["bbox_ap"]["value"] == 0.0
    assert metrics["instance"]["segm_ap"]["value"] == 0.0
    assert metrics["image"]["auroc"]["value"] == 0.5
    assert metrics["pixel"]["auroc"]["value"] == 0.5
    assert metrics["image"]["precision"] == {"value": None, "why": "no image is called defective"}


@pytest.mark.parametrize("defective", [False, True], ids=["no defects", "only defects"])
def test_one_kind_of_image_alone_leaves_whys(new_dataset, new_run, truth, tmp_path, defective):
    mask = np.zeros((7, 11), np.uint8)
    mask[2:4, 3:8] = defective
    dataset = new_dataset(tmp_path / "d", [mask] * 4)
    metrics = scored(new_run(tmp_path / "run", dataset, truth(dataset, [1, 2, 3, 4])), dataset)
    assert metrics["image"]["auroc"]["value"] is None
    assert metrics["image"]["accuracy"]["value"] == 1.0
    assert (metrics["instance"]["bbox_ap"]["value"] is None) is not defective


def test_a_defective_image_without_a_mask_counts_as_defective(new_dataset, new_run, tmp_path):
    empty, mask = np.zeros((7, 11), np.uint8), np.ones((7, 11), np.uint8)
    dataset = new_dataset(tmp_path / "d", [(empty, "good"), (empty, "crack"), (mask, "crack")])
    run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, score=float(i)) for i in (1, 2, 3)])
    metrics = scored(run, dataset)
    assert metrics["images"] == {"good": 1, "defective": 2, "without_mask": 1}
    assert metrics["image"]["auroc"]["value"] == 1.0


def test_crossval_judges_each_image_by_its_fold_and_tells_the_folds(dataset, ids, new_run, tmp_path):
    fold_of = dataset.fold_of_image()
    predictions = [Prediction(image_id=i, score=10.0 * fold_of[i] + (not dataset.image_by_id[i].is_good)) for i in ids]
    thresholds = {str(f): {"image": {"value": 10.0 * f + 0.5, "rule": "given"}} for f in range(3)}
    run = new_run(tmp_path / "run", dataset, predictions, "crossval", "all", thresholds=thresholds)
    metrics = scored(run, dataset, "crossval")
    assert metrics["image"]["accuracy"]["value"] == 1.0
    assert metrics["image"]["auroc"]["value"] == 1.0
    assert metrics["image"]["auroc_pooled"]["value"] < 1.0
    auroc = metrics["folds"]["image"]["auroc"]
    assert auroc == {"values": {"0": 1.0, "1": 1.0, "2": 1.0}, "mean": 1.0, "sd": 0.0}


def test_the_spread_over_folds_is_that_of_a_sample_worked_by_hand(new_dataset, new_run, tmp_path):
    """Folds judge (1, 4), (2, 5) and (3, 6): right, a tie, wrong. Mean 1/2, variance (1/4 + 0 + 1/4) / 2."""
    defect, none = np.ones((5, 8), np.uint8), np.zeros((5, 8), np.uint8)
    dataset = new_dataset(tmp_path / "d", [defect] * 3 + [none] * 3)
    scores = {1: 9.0, 4: 1.0, 2: 3.0, 5: 3.0, 3: 0.1, 6: 0.2}
    run = new_run(
        tmp_path / "run", dataset, [Prediction(image_id=i, score=s) for i, s in scores.items()], "crossval", "all"
    )
    auroc = scored(run, dataset, "crossval")["folds"]["image"]["auroc"]
    assert auroc["values"] == {"0": 1.0, "1": 0.5, "2": 0.0}
    assert (auroc["mean"], auroc["sd"]) == (0.5, 0.5)


def test_the_hash_of_the_truth_tells_groups_apart(new_dataset, tmp_path):
    masks = [np.ones((5, 8), np.uint8)] * 3
    apart, again, together = (
        new_dataset(tmp_path / name, masks, groups)
        for name, groups in (("a", [1, 2, 3]), ("b", [1, 2, 3]), ("c", [1, 2, 2]))
    )
    assert truth_sha256(apart, [1, 2, 3]) == truth_sha256(again, [1, 2, 3]) != truth_sha256(together, [1, 2, 3])
    assert truth_sha256(apart, [1, 2]) == truth_sha256(together, [1, 2])


def test_the_images_are_named_by_a_hash(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, score=0.0) for i in ids])
    metrics = scored(run, dataset)
    assert metrics["part"] == "test"
    assert metrics["image_ids_sha256"] == sha256_bytes(",".join(map(str, ids)).encode())
    assert image_ids_sha256([3, 1, 2]) == image_ids_sha256([1, 2, 3])


def test_cost_comes_from_the_run_and_what_is_untold_says_why(dataset, ids, new_run, tmp_path):
    run = new_run(
        tmp_path / "run",
        dataset,
        [Prediction(image_id=i, score=0.0) for i in ids],
        seconds={"train": 12.5, "predict": 3.0},
        peak_memory_mb={"train": 900, "predict": 400},
        trained_on={"good": 5, "defective": 7},
    )
    cost = scored(run, dataset)["cost"]
    assert cost["train_seconds"]["value"] == 12.5
    assert cost["peak_memory_mb"]["value"] == 900
    assert cost["labelled_defects"]["value"] == 7
    assert cost["parameters"]["value"] is None
    assert cost["parameters"]["why"]


@pytest.mark.parametrize(
    ("fold", "facts", "value", "why"),
    [
        (0, {"forgetting": {"share": 0.25, "kept": 10, "of": 40}}, 0.25, None),
        (0, {"forgetting": {"share": None, "why": "3 finds, fewer than 20"}}, None, "3 finds, fewer than 20"),
        (0, {"prompts": {}}, None, "the approach does not measure forgetting"),
        (0, None, None, "the approach does not measure forgetting"),
        ("all", {"fold0": {"forgetting": {"share": 0.5}}, "fold1": {"forgetting": {"share": 0.7}}}, 0.6, None),
        ("all", {"fold0": {"forgetting": {"share": None, "why": "hashed"}}, "fold1": {}}, None, "hashed"),
        ("all", {"fold0": 3}, None, "the approach does not measure forgetting"),
    ],
)
def test_what_the_start_model_still_finds_comes_from_the_facts(fold, facts, value, why):
    from evaluation.metrics import _start_finds_kept

    found = _start_finds_kept({"fold": fold, "facts": facts})
    assert found["value"] == (None if value is None else pytest.approx(value))
    assert found.get("why") == why


def test_a_map_with_nan_is_refused_with_the_image_named(dataset, ids, new_run, truth, tmp_path):
    run = new_run(tmp_path / "run", dataset, truth(dataset, ids))
    np.save(run.path / "predictions/test/maps/5.npy", np.full((3, 4), np.nan, np.float32))
    with pytest.raises(MaskbridgeError, match=r"maps/5\.npy"):
        evaluate(run, dataset, "test", samples=2)


def test_a_part_without_images_is_refused(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, score=0.0) for i in ids])
    with pytest.raises(MaskbridgeError, match="val has no images"):
        evaluate(run, dataset, "val", samples=2)


def test_a_missing_score_is_refused(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, score=0.0) for i in ids[1:]])
    with pytest.raises(MaskbridgeError, match=r"1 missing \[1\]"):
        evaluate(run, dataset, "test", samples=2)
