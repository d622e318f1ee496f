import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation import ranking


def binned(scores, labels):
    """Good and defective per distinct score, ascending."""
    values, place = np.unique(scores, return_inverse=True)
    good = np.bincount(place, weights=~labels, minlength=len(values))
    return good, np.bincount(place, weights=labels, minlength=len(values))


def drawn(kind, rng):
    labels = rng.random(300) < 0.3
    scores = rng.normal(labels * 0.8, 1.0)
    return labels, {
        "smooth": scores,
        "heavy-tailed": np.exp(6 * scores),
        "tied": np.round(scores),
        "constant": np.ones(300),
    }[kind]


@pytest.mark.parametrize("kind", ["smooth", "heavy-tailed", "tied", "constant"])
def test_equal_to_scikit_learn(kind):
    labels, scores = drawn(kind, np.random.default_rng(3))
    good, defective = binned(scores, labels)
    assert ranking.auroc(good, defective) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    assert ranking.average_precision(good, defective) == pytest.approx(
        reference.average_precision_score(labels, scores), abs=1e-12
    )
    precision, recall, _ = reference.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert ranking.f1_max(good, defective) == pytest.approx(f1.max(), abs=1e-12)


def test_worked_by_hand():
    # scores 1: two good; 2: one good, one defective; 3: two defective
    good, defective = np.array([2, 1, 0]), np.array([0, 1, 2])
    assert ranking.auroc(good, defective) == pytest.approx((2 * 3 + 1 * 2 + 0.5) / 9)
    assert ranking.average_precision(good, defective) == pytest.approx(2 / 3 * 1 + 1 / 3 * 3 / 4)
    assert ranking.f1_max(good, defective) == pytest.approx(2 * 3 / (4 + 3))


def test_aupro_worked_by_hand():
    # descending: all of one region at no false positive, half of the other at 1 of 4, the rest at 4 of 4
    good, regions = np.array([3, 1, 0]), np.array([0.5, 0.5, 1.0])
    # overlap 0.5 at rate 0, 0.75 at 0.25; up to 0.125 the mean is (0.5 + 0.625) / 2
    assert ranking.aupro(good, regions, 0.125) == pytest.approx((0.5 + 0.625) / 2)
    assert ranking.aupro(good, regions, 1.0) == pytest.approx(0.25 * (0.5 + 0.75) / 2 + 0.75 * (0.75 + 1) / 2)


def test_many_samples_are_computed_as_one_by_one():
    rng = np.random.default_rng(4)
    good, defective = rng.integers(0, 5, (6, 30)), rng.integers(0, 3, (6, 30))
    pairs = list(zip(good, defective, strict=True))
    for function in (ranking.auroc, ranking.average_precision, ranking.f1_max):
        assert function(good, defective) == pytest.approx(np.array([function(*pair) for pair in pairs]))
    together = ranking.aupro(good, defective, 0.3)
    assert together == pytest.approx(np.array([ranking.aupro(*pair, 0.3) for pair in pairs]))


def test_what_is_undefined_is_nan():
    some, none = np.array([1, 2, 3]), np.zeros(3)
    assert np.isnan(ranking.auroc(some, none))
    assert np.isnan(ranking.auroc(none, some))
    assert np.isnan(ranking.average_precision(some, none))
    assert np.isnan(ranking.f1_max(some, none))
    assert np.isnan(ranking.aupro(none, some, 0.3))
    assert np.isnan(ranking.aupro(some, none, 0.3))
