import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from evaluation.metrics import evaluate
from evaluation.type_metrics import TypeMetrics, type_recall
from maskbridge.approach import Prediction
from maskbridge.predictions import Run

KINDS = ("good", "crack", "chip", "stain")


@pytest.fixture
def called(dataset, ids):
    rng = np.random.default_rng(0)
    return {i: dataset.image_by_id[i].defect_type if rng.random() < 0.7 else str(rng.choice(KINDS)) for i in ids}


def test_macro_recall_is_scikit_learns_balanced_accuracy_for_images_counted_several_times(dataset, ids, called):
    family = TypeMetrics(dataset, ids, called)
    truth = [dataset.image_by_id[i].defect_type for i in ids]
    weights = np.random.default_rng(1).integers(0, 3, (5, len(ids)))
    found = family.values(weights)
    for row, value, accuracy in zip(weights, found["macro_recall"], found["accuracy"], strict=True):
        told = [called[i] for i in ids]
        assert value == pytest.approx(balanced_accuracy_score(truth, told, sample_weight=row))
        right = np.array([a == b for a, b in zip(truth, told, strict=True)])
        assert accuracy == pytest.approx((right * row).sum() / row.sum())


def test_a_type_without_images_in_a_sample_is_left_out_of_the_mean(dataset, ids):
    everything_good = TypeMetrics(dataset, ids, dict.fromkeys(ids, "good"))
    assert everything_good.point()["macro_recall"] == pytest.approx(1 / 4)
    good_alone = np.array([[dataset.image_by_id[i].is_good for i in ids]], float)
    assert everything_good.values(good_alone)["macro_recall"][0] == 1.0


def test_recall_of_each_type_counts_good_as_one(dataset, ids, called):
    found = type_recall(dataset, ids, called).point()
    assert set(found) == set(KINDS)
    for kind, value in found.items():
        of_kind = [i for i in ids if dataset.image_by_id[i].defect_type == kind]
        assert value == pytest.approx(np.mean([called[i] == kind for i in of_kind]))


def test_metrics_json_has_them_with_intervals(dataset, ids, called, new_run, tmp_path):
    run: Run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, score=0.5, type=called[i]) for i in ids])
    metrics = evaluate(run, dataset, run.default_part(), samples=50).metrics
    for entry in (*metrics["type"].values(), *metrics["type_recall"].values()):
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["derived"] is False


def test_a_run_without_types_says_why(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, score=0.5) for i in ids])
    metrics = evaluate(run, dataset, run.default_part(), samples=50).metrics
    assert metrics["type"]["macro_recall"] == {"value": None, "why": "the run names no types"}
    assert metrics["type_recall"]["good"]["value"] is None
