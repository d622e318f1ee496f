import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation.curves import image_curves, pro_curve, thinned


def area(points):
    x, y = np.array(points).T
    return np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)


@pytest.mark.parametrize("ties", [1, 30])
def test_the_roc_is_that_of_scikit_learn(ties):
    rng = np.random.default_rng(0)
    defective = rng.random(300) < 0.4
    scores = np.round(rng.normal(defective, 1.0) * ties) / ties
    curves = image_curves(scores, defective)
    assert area(curves["roc"]) == pytest.approx(reference.roc_auc_score(defective, scores), abs=1e-3)
    assert curves["roc"][0] == (0.0, 0.0)
    assert curves["roc"][-1] == (1.0, 1.0)


def test_the_precision_recall_curve_passes_through_the_points_of_scikit_learn():
    defective = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.3, 0.2, 0.1])
    precision, recall, _ = reference.precision_recall_curve(defective, scores)
    expected = {(round(r, 5), round(p, 5)) for r, p in zip(recall[:-1], precision[:-1], strict=True)}
    assert expected <= set(image_curves(scores, defective)["pr"])


def test_the_pro_curve_holds_the_area_of_the_metric():
    rng = np.random.default_rng(1)
    good, regions = (
        rng.integers(0, 50, 3000)[::-1] * np.linspace(2, 0, 3000),
        rng.random(3000) * np.linspace(0, 2, 3000),
    )
    from evaluation.ranking import aupro

    curve = pro_curve(good, regions)
    assert curve[-1][0] == 0.3
    assert area(curve) / 0.3 == pytest.approx(float(aupro(good, regions, 0.3)), abs=1e-3)


def test_curves_without_defects_or_without_good_images_are_missing():
    scores = np.arange(4.0)
    assert image_curves(scores, np.zeros(4, bool)) == {}
    assert set(image_curves(scores, np.ones(4, bool))) == {"pr"}


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    x = np.linspace(0, 1, 100_000)
    points = thinned(x, x**0.1)
    assert len(points) <= 400
    assert (points[0], points[-1]) == ((0.0, 0.0), (1.0, 1.0))
