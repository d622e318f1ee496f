import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation.image_metrics import NAMES, ImageMetrics


def test_worked_by_hand():
    scores = np.array([0.1, 0.6, 0.4, 0.9, 0.8])
    defective = np.array([False, False, True, True, True])
    point = ImageMetrics(scores, defective, np.full(5, 0.5)).point()
    assert point == pytest.approx(
        {
            "auroc": 5 / 6,
            "ap": (1 + 1 + 3 / 4) / 3,
            "f1_max": 6 / 7,
            "accuracy": 3 / 5,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "escape_rate": 1 / 3,
            "overkill_rate": 1 / 2,
        }
    )


def test_equal_to_scikit_learn():
    rng = np.random.default_rng(5)
    defective = rng.random(90) < 0.7
    scores = np.round(rng.normal(defective * 0.9, 1.0), 1)
    called = scores >= 0.3
    point = ImageMetrics(scores, defective, np.full(90, 0.3)).point()
    assert point["auroc"] == pytest.approx(reference.roc_auc_score(defective, scores))
    assert point["ap"] == pytest.approx(reference.average_precision_score(defective, scores))
    assert point["accuracy"] == pytest.approx(reference.accuracy_score(defective, called))
    assert point["precision"] == pytest.approx(reference.precision_score(defective, called))
    assert point["recall"] == pytest.approx(reference.recall_score(defective, called))


def test_scores_as_large_as_numbers_go_are_ranked_without_a_word():
    scores, defective = np.array([-1e308, 1e308, -1e308, 1.5e308]), np.array([False, True, True, True])
    point = ImageMetrics(scores, defective, np.full(4, 0.5)).point()
    smaller = scores / 1e300  # scikit-learn subtracts them
    assert point["auroc"] == pytest.approx(reference.roc_auc_score(defective, smaller))
    assert point["ap"] == pytest.approx(reference.average_precision_score(defective, smaller))


def test_each_image_is_judged_by_its_own_threshold():
    scores, defective = np.array([0.2, 0.3, 20.0, 30.0]), np.array([False, True, False, True])
    assert ImageMetrics(scores, defective, np.array([0.25, 0.25, 25, 25])).point()["accuracy"] == 1.0


def test_weights_count_images_several_times():
    rng = np.random.default_rng(6)
    scores, defective, cut = rng.random(12), np.arange(12) % 3 > 0, np.full(12, 0.5)
    weights = rng.integers(0, 3, (4, 12))
    values = ImageMetrics(scores, defective, cut).values(weights)
    for row, counts in enumerate(weights):
        copied = ImageMetrics(np.repeat(scores, counts), np.repeat(defective, counts), np.full(counts.sum(), 0.5))
        assert {name: values[name][row] for name in NAMES} == pytest.approx(copied.point(), nan_ok=True)


def test_equal_scores_are_at_chance():
    point = ImageMetrics(np.full(8, 0.4), np.arange(8) < 6, None).point()
    assert point == pytest.approx({"auroc": 0.5, "ap": 0.75, "f1_max": 12 / 14})


@pytest.mark.parametrize(
    ("defective", "missing"),
    [
        (np.zeros(4, bool), {"auroc", "ap", "f1_max", "precision", "recall", "escape_rate"}),
        (np.ones(4, bool), {"auroc", "overkill_rate"}),
    ],
    ids=["no defects", "only defects"],
)
def test_undefined_metrics_say_why(defective, missing):
    family = ImageMetrics(np.arange(4.0), defective, np.full(4, 2.0))
    assert set(family.whys) == missing


def test_without_a_threshold_only_the_ranking_is_scored():
    family = ImageMetrics(np.arange(4.0), np.arange(4) > 1, None, "no fold had one")
    assert set(family.whys) == set(NAMES[3:])
    assert set(family.whys.values()) == {"no fold had one"}
