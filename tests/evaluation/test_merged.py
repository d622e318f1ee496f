"""Cross-validated runs: what compares only images that one model judged, and what goes by ranks in `val`."""

import cv2
import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation._report_data import _on_one_scale
from evaluation._report_images import Pictures
from evaluation.comparison import compare
from evaluation.curves import image_curves
from evaluation.image_metrics import ImageMetrics
from evaluation.instance_metrics import InstanceMetrics
from evaluation.metrics import evaluate
from evaluation.pixel_metrics import PixelMetrics
from maskbridge.approach import Detection, Prediction
from maskbridge.crossval import merge
from maskbridge.fold_ranks import Rank
from maskbridge.thresholds import fold_thresholds

SIZE_HW = (24, 36)


@pytest.fixture
def merged(dataset, new_run, tmp_path):
    """A merged run; `say(fold)` makes the prediction of an image, of `val` and of `test`."""

    def make(say, name="all"):
        folds = []
        for fold in range(3):
            costs = {"seconds": {"train": 1.0}, "peak_memory_mb": {"train": 1.0}, "predict_ms_per_image": 1.0}
            told = {"seed": 0, "device": "cpu", "weights_from": "none", "parameters": 1, "trained_on": {"good": 1}}
            folder = tmp_path / name / f"fold{fold}"
            new_run(folder, dataset, map(say(fold), dataset.split(fold).val), "val", fold)
            run = new_run(folder, dataset, map(say(fold), dataset.split(fold).test), "test", fold, **costs, **told)
            folds.append(run.save(thresholds={str(fold): fold_thresholds(run, dataset)}))
        return merge(tmp_path / name, folds, dataset), folds

    return make


def noisy(dataset):
    """Scores, maps and confidences with noise, on a scale that differs from fold to fold."""

    def say(fold):
        def predict(i):
            rng = np.random.default_rng([fold, i])
            z = (not dataset.image_by_id[i].is_good) + rng.normal()
            mask = dataset.mask(i)
            boxes = [
                Detection(
                    box_ltwh=tuple(a["bbox"]), score=float((1 + fold) * rng.random()), category_id=a["category_id"]
                )
                for a in dataset.annotations_by_image[i]
            ]
            boxes.append(Detection(box_ltwh=(3, 5, 9, 7), score=float((1 + fold) * rng.random()), category_id=1))
            anomaly_map = np.round(np.exp((1 + fold) * (mask + rng.normal(size=SIZE_HW))), 3).astype(np.float32)
            return Prediction(image_id=i, score=float(np.exp((1 + fold) * z)), map=anomaly_map, detections=boxes)

        return predict

    return say


def test_auroc_counts_the_pairs_that_one_model_judged_worked_by_hand():
    """Wins of 4, 4 and 3 pairs: 5 and 1 over 3 and 0, 3; 50 and 40 over 10 and 45, 3; and two ties of three, 1."""
    scores = np.array([5.0, 1, 3, 0, 50, 40, 10, 45, 500, 500, 100, 500])
    defective = np.array([1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0], bool)
    family = ImageMetrics(scores, defective, None, folds=np.repeat(["0", "1", "2"], 4))
    assert family.point()["auroc"] == pytest.approx(7 / 11)
    assert family.point()["auroc_pooled"] == pytest.approx(reference.roc_auc_score(defective, scores))
    twice_the_second = np.array([[0] * 4 + [2] * 4 + [0] * 4, [1] * 12])
    assert family.values(twice_the_second)["auroc"] == pytest.approx([3 / 4, 7 / 11])


def test_folds_of_one_kind_of_image_have_no_say_and_none_with_both_is_told():
    defective = np.array([1, 1, 1, 0], bool)
    some = ImageMetrics(np.array([1.0, 2, 5, 4]), defective, None, folds=np.array([0, 0, 1, 1]))
    assert some.point()["auroc"] == 1.0
    none = ImageMetrics(np.array([1.0, 2, 5, 4]), defective, None, folds=np.array([0, 0, 0, 1]))
    assert none.whys["auroc"] == "no fold has both good and defective images"
    assert none.point()["auroc_pooled"] == pytest.approx(1 / 3)


def test_one_model_alone_has_no_pooled_figure(dataset, ids, new_run, truth, tmp_path):
    run = new_run(tmp_path / "run", dataset, truth(dataset, ids))
    assert "auroc_pooled" not in evaluate(run, dataset, "test", samples=5).metrics["image"]


def test_image_figures_that_need_one_scale_go_by_ranks_in_val(dataset, ids, merged):
    run, folds = merged(noisy(dataset))
    metrics = evaluate(run, dataset, "crossval", samples=5)
    scores = {}
    for fold in folds:
        rank = Rank.among(list(fold.scores("val").values()))
        scores |= {i: float(rank(score)) for i, score in fold.scores("test").items()}
    labels, mapped = (
        np.array(each) for each in ([not dataset.image_by_id[i].is_good for i in ids], [scores[i] for i in ids])
    )
    image = metrics.metrics["image"]
    assert image["auroc_pooled"]["value"] == pytest.approx(reference.roc_auc_score(labels, mapped))
    assert image["ap"]["value"] == pytest.approx(reference.average_precision_score(labels, mapped))
    assert metrics.curves["roc"] == image_curves(mapped, labels)["roc"]
    each, pairs = [], []
    for fold in range(3):
        mine = [i for i in dataset.split(fold).test]
        of_fold = np.array([labels[ids.index(i)] for i in mine])
        each.append(reference.roc_auc_score(of_fold, [folds[fold].scores("test")[i] for i in mine]))
        pairs.append(of_fold.sum() * (~of_fold).sum())
    assert image["auroc"]["value"] == pytest.approx(np.average(each, weights=pairs))
    assert list(metrics.metrics["folds"]["image"]["auroc"]["values"].values()) == pytest.approx(each)
    assert metrics.metrics["mapping"]["image"]["2"]["values"] == len(dataset.split(2).val)


@pytest.mark.parametrize("exact", [True, False])
def test_pixel_figures_are_means_over_folds_and_ap_goes_by_ranks_in_val(
    dataset, merged, monkeypatch, exact_aupro, exact
):
    if not exact:
        monkeypatch.setattr("maskbridge.pixel_counts.EXACT_PIXELS", 0)
    tolerance = {"rel": 1e-12} if exact else {"abs": 2e-4}
    run, folds = merged(noisy(dataset))
    metrics = evaluate(run, dataset, "crossval", samples=5).metrics
    figures, pairs, regions, labels, mapped = [], [], [], [], []
    for number, fold in enumerate(folds):
        mine = dataset.split(number).test
        maps, masks = [fold.map("test", i) for i in mine], [dataset.mask(i) for i in mine]
        scores, truth = (np.concatenate([each.ravel() for each in some]) for some in (maps, masks))
        figures.append(
            [reference.roc_auc_score(truth, scores), exact_aupro(maps, masks, 0.3), exact_aupro(maps, masks, 0.05)]
        )
        pairs.append((truth > 0).sum() * (truth == 0).sum())
        regions.append(sum(region_count(mask) for mask in masks))
        rank = Rank.among(np.concatenate([fold.map("val", i).ravel() for i in dataset.split(number).val]))
        labels.append(truth), mapped.append(rank(scores))
    aurocs, aupro_30, aupro_05 = np.transpose(figures)
    pixel, labels, mapped = metrics["pixel"], np.concatenate(labels), np.concatenate(mapped)
    assert pixel["auroc"]["value"] == pytest.approx(np.average(aurocs, weights=pairs), **tolerance)
    assert pixel["aupro_30"]["value"] == pytest.approx(np.average(aupro_30, weights=regions), **tolerance)
    assert pixel["aupro_05"]["value"] == pytest.approx(np.average(aupro_05, weights=regions), **tolerance)
    assert pixel["ap"]["value"] == pytest.approx(reference.average_precision_score(labels, mapped), **tolerance)
    assert list(metrics["folds"]["pixel"]["aupro_30"]["values"].values()) == pytest.approx(aupro_30, **tolerance)
    for name in ("auroc", "aupro_30", "ap"):
        assert pixel[name]["low"] <= pixel[name]["value"] <= pixel[name]["high"]


def test_coarse_bins_of_several_folds_stay_close_to_the_fine_ones(dataset, merged):
    run, _ = merged(noisy(dataset))
    found = evaluate(run, dataset, "crossval", samples=5)
    family = PixelMetrics(found.view, found.view.maps().value, found.ranks["pixel"])
    coarse = {name: value[0] for name, value in family.values(np.ones((1, len(found.view.image_ids)))).items()}
    assert coarse == pytest.approx(family.point(), abs=3e-3)


def region_count(mask):
    return cv2.connectedComponents(mask, connectivity=8)[0] - 1


def test_coco_figures_order_detections_of_different_folds_by_their_rank_in_val(dataset, ids, merged):
    run, folds = merged(noisy(dataset))
    results = run.detections("crossval")
    fold_of = dataset.fold_of_image()
    ranks = [Rank.among([r["score"] for r in fold.detections("val")]) for fold in folds]
    mapped = [{**r, "score": float(ranks[fold_of[r["image_id"]]](r["score"]))} for r in results]
    found = evaluate(run, dataset, "crossval", samples=5).metrics
    for family, by_type in (("instance", False), ("instance_by_type", True)):
        expected = InstanceMetrics(dataset, ids, mapped, by_type=by_type).point()
        raw = InstanceMetrics(dataset, ids, results, by_type=by_type).point()
        for name in ("bbox_ap", "bbox_ap50", "bbox_ar100"):
            assert found[family][name]["value"] == pytest.approx(expected[name])
        assert abs(raw["bbox_ap"] - expected["bbox_ap"]) > 1e-3


def test_every_decision_of_a_merged_run_is_that_of_the_folds(dataset, merged):
    run, folds = merged(noisy(dataset))
    whole = evaluate(run, dataset, "crossval", samples=5).metrics
    images = {"right": 0, "all": 0}
    overlap = np.zeros((3, 2))
    for number, fold in enumerate(folds):
        cut = {kind: entry["value"] for kind, entry in fold.info["thresholds"][str(number)].items()}
        for i in dataset.split(number).test:
            images["all"] += 1
            images["right"] += (fold.scores("test")[i] >= cut["image"]) != dataset.image_by_id[i].is_good
            called, mask = fold.map("test", i) >= np.float32(cut["pixel"]), dataset.mask(i) > 0
            overlap[number] += (called & mask).sum(), (called | mask).sum()
    assert whole["image"]["accuracy"]["value"] == pytest.approx(images["right"] / images["all"])
    assert whole["pixel"]["iou"]["value"] == pytest.approx(overlap[:, 0].sum() / overlap[:, 1].sum())
    each = list(whole["folds"]["pixel"]["iou"]["values"].values())
    assert each == pytest.approx(overlap[:, 0] / overlap[:, 1])


def test_two_merged_runs_are_compared_on_the_pairs_within_their_folds(dataset, ids, merged):
    """The second has other scales and the same order in each fold: no sample tells them apart."""
    runs = [merged(noisy(dataset), "one")[0], merged(rescaled(noisy(dataset)), "two")[0]]
    one, two = (evaluate(run, dataset, "crossval", samples=50) for run in runs)
    for family, metric in (("image", "auroc"), ("pixel", "aupro_30")):
        found = compare(one, two, family, metric)
        assert found.difference == pytest.approx(0, abs=1e-12)
        assert found.winner is None


def rescaled(say):
    def other(fold):
        def predict(i):
            made = say(fold)(i)
            return Prediction(
                image_id=i, score=7.0**fold * made.score - 5, map=2 * made.map, detections=made.detections
            )

        return predict

    return other


def test_the_report_has_scores_and_thresholds_on_one_scale_and_the_decisions_of_the_folds(dataset, ids, merged):
    run, folds = merged(noisy(dataset))
    found = evaluate(run, dataset, "crossval", samples=5)
    raw, cuts = found.view.scores().value, found.view.threshold("image").value
    for i in ids[:6]:  # neighbours of the threshold, below it and on it
        cuts[i] = raw[i]
        raw[ids[ids.index(i) + 12]], cuts[ids[ids.index(i) + 12]] = np.nextafter(raw[i], -1), raw[i]
    shown, shown_cuts = _on_one_scale(found, raw, cuts, ids)
    assert [s - c >= 0 for s, c in zip(shown, shown_cuts, strict=True)] == [raw[i] >= cuts[i] for i in ids]
    ranks = [Rank.among(list(fold.scores("val").values())) for fold in folds]
    untouched = ids[20]
    assert shown[20] == ranks[dataset.fold_of_image()[untouched]](raw[untouched])


def test_maps_of_the_report_are_shown_each_on_the_scale_of_its_fold(dataset, merged):
    run, folds = merged(noisy(dataset))
    [scales] = Pictures([evaluate(run, dataset, "crossval", samples=5)], 64).scales
    for number, fold in enumerate(folds):
        pixels = np.concatenate([fold.map("test", i).ravel() for i in dataset.split(number).test])
        assert scales[str(number)] == pytest.approx(np.percentile(pixels, [60, 99.7]))
