import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from evaluation.image_metrics import ImageMetrics
from evaluation.intervals import Resampling, bca_levels, measure, newcombe, wilson


def measured(scores, defective, groups=None, samples=400, thresholds=None):
    groups = np.arange(len(scores)) if groups is None else groups
    resampling = Resampling(groups, defective, samples=samples, seed=0)
    return measure(ImageMetrics(scores, defective, thresholds), resampling, derived=False)[0]


def test_newcombe_equals_the_published_implementation():
    # SingleCaseES (R): NAP of (20 20 26 25 22 23) against (28 25 24 27 30 30 29) = 0.91667
    assert newcombe(0.9166666666666666, 6, 7) == pytest.approx((0.5973193600384168, 0.9859976893703788), abs=1e-9)


def test_wilson_equals_the_textbook_value():
    # 15 of 20: Newcombe, Statistics in Medicine 17 (1998) 857-872 gives this formula; worked by hand
    assert wilson(0.75, 20) == pytest.approx((0.5312988, 0.8881353), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_score_intervals_hold_their_value_and_stay_within_bounds(value):
    for low, high in (newcombe(value, 5, 9), wilson(value, 9)):
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.05


def test_every_group_is_drawn_whole_and_strata_keep_their_size():
    groups = np.array([1, 1, 2, 3, 3, 4])
    defective = np.array([True, False, True, False, False, False])
    weights = Resampling(groups, defective, samples=50, seed=1).weights
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert (weights[:, 3] + weights[:, 5] == 2).all()


def test_more_samples_begin_with_the_same():
    groups, defective = np.arange(9), np.arange(9) > 4
    few = Resampling(groups, defective, samples=20, seed=3)
    many = Resampling(groups, defective, samples=20, drawn=50, seed=3)
    assert many.weights.shape == (50, 9)
    assert np.array_equal(many.weights[:20], few.weights)
    scores = np.arange(9.0) % 4
    (one, sampled), (two, more) = (
        measure(ImageMetrics(scores, defective, None), r, derived=False) for r in (few, many)
    )
    assert one == two
    assert np.array_equal(sampled["auroc"], more["auroc"][:20])


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(0)
    defective = rng.random(60) < 0.6
    scores = rng.normal(defective, 1.0)
    assert measured(scores, defective) == measured(scores, defective)


def test_the_interval_has_the_width_the_theory_says():
    rng = np.random.default_rng(1)
    defective = np.repeat([False, True], [200, 200])
    scores = rng.normal(defective * 1.2, 1.0)
    auroc = measured(scores, defective, samples=1000)["auroc"]
    a, n = auroc["value"], 200
    variance = (a * (1 - a) + (n - 1) * (a / (2 - a) + 2 * a * a / (1 + a) - 2 * a * a)) / n**2  # Hanley, McNeil
    assert auroc["high"] - auroc["low"] == pytest.approx(2 * 1.96 * variance**0.5, rel=0.15)


def test_groups_widen_the_interval():
    rng = np.random.default_rng(2)
    defective = np.repeat([False, True], [100, 100])
    scores = np.repeat(rng.normal(defective[::5] * 1.0, 1.0), 5)
    apart = measured(scores, defective)["auroc"]
    together = measured(scores, defective, groups=np.arange(200) // 5)["auroc"]
    assert together["high"] - together["low"] > 1.7 * (apart["high"] - apart["low"])


def test_a_perfect_auroc_gets_the_interval_of_newcombe():
    defective = np.repeat([False, True], [20, 63])
    metrics = measured(defective.astype(float), defective, thresholds=np.full(83, 0.5))
    assert metrics["auroc"]["value"] == 1.0
    assert metrics["auroc"]["method"] == "newcombe"
    assert metrics["auroc"]["low"] == pytest.approx(0.934, abs=1e-3)
    assert metrics["recall"]["method"] == "wilson"
    assert metrics["recall"]["low"] == pytest.approx(wilson(1.0, 63)[0])
    assert metrics["overkill_rate"]["high"] == pytest.approx(wilson(0.0, 20)[1])


def test_an_uncertain_auroc_gets_the_bootstrap():
    defective = np.repeat([False, True], [20, 30])
    scores = np.random.default_rng(3).normal(defective * 1.0, 1.0)
    assert "method" not in measured(scores, defective)["auroc"]


class Mean:
    """Mean of the images' numbers, as a family."""

    names, whys, units = ("mean",), {}, {}

    def __init__(self, numbers):
        self.numbers = numbers

    def point(self):
        return {"mean": float(self.numbers.mean())}

    def values(self, weights):
        return {"mean": weights @ self.numbers / weights.sum(axis=1)}


def test_samples_equal_to_the_value_count_by_half_worked_by_hand():
    """Three below, four equal, three above: no bias, so the plain percentiles. Eight equal of ten, two above: .4."""
    assert bca_levels(np.array([1, 1, 1, 2, 2, 2, 2, 3, 3, 3.0]), 2.0, 0.0) == pytest.approx((2.5, 97.5), abs=1e-6)
    bias = norm.ppf(0.4)
    expected = [100 * norm.cdf(2 * bias + z) for z in (-1.959963984540054, 1.959963984540054)]
    assert bca_levels(np.array([2.0] * 8 + [3.0] * 2), 2.0, 0.0) == pytest.approx(expected)


class Offset(Mean):
    """Its samples lie .05 below its value, as those of coarse bins may."""

    def values(self, weights):
        return {"mean": super().values(weights)["mean"] - 0.05}


def test_samples_are_moved_by_what_coarse_bins_cost():
    numbers = np.random.default_rng(6).beta(4, 2, 40)
    resampling = Resampling(np.arange(40), np.ones(40, bool), samples=200, seed=0)
    (plain, sampled), (moved, of_offset) = (
        measure(kind(numbers), resampling, derived=False) for kind in (Mean, Offset)
    )
    assert of_offset["mean"] == pytest.approx(sampled["mean"])
    assert moved["mean"] == pytest.approx(plain["mean"])


def test_the_score_interval_of_an_auroc_within_folds_has_the_variance_of_the_mean_worked_by_hand():
    """Folds of 2·3, 4·5 and 0·9 pairs; the last has none. At an end (v - t)² is z² times the variance there."""
    low, high = newcombe(0.9, [2, 4, 0], [3, 5, 9])
    for t in (low, high):
        shared = (1 - t) / (2 - t) + t / (1 + t)
        variance = t * (1 - t) * (6 * (1 + 1.5 * shared) + 20 * (1 + 3.5 * shared)) / 26**2
        assert (0.9 - t) ** 2 == pytest.approx(1.959963984540054**2 * variance)
    assert newcombe(0.9, [7], [8]) == newcombe(0.9, 7, 8)


def test_a_perfect_auroc_within_folds_gets_newcombes_interval_of_its_folds():
    defective, folds = np.tile([False, True, True], 6), np.arange(18) // 6
    family = ImageMetrics(defective + 10.0 * folds, defective, None, folds=folds)
    found = measure(family, Resampling(np.arange(18), defective, samples=50, seed=0, folds=folds), derived=False)[0]
    assert (found["auroc"]["value"], found["auroc"]["method"]) == (1.0, "newcombe")
    assert found["auroc"]["low"] == newcombe(1.0, [2, 2, 2], [4, 4, 4])[0] < newcombe(1.0, 6, 12)[0]
    assert "method" not in found["auroc_pooled"]
    family = ImageMetrics(defective * 1.0, defective, None, folds=folds)
    found = measure(family, Resampling(np.arange(18), defective, samples=50, seed=0, folds=folds), derived=False)[0]
    assert found["auroc_pooled"]["low"] == newcombe(1.0, 6, 12)[0]


def test_bca_levels_are_those_of_scipy():
    numbers = np.random.default_rng(4).beta(8, 1, 40)
    theirs = bootstrap((numbers,), np.mean, method="BCa", n_resamples=2000, random_state=0)
    resampling = Resampling(np.arange(40), np.ones(40, bool), samples=10, seed=0)
    centre, acceleration = resampling.jackknife(Mean(numbers))["mean"]
    assert centre == pytest.approx(numbers.mean())
    ours = np.percentile(theirs.bootstrap_distribution, bca_levels(theirs.bootstrap_distribution, centre, acceleration))
    assert ours == pytest.approx(theirs.confidence_interval, abs=1e-9)


def test_a_skewed_distribution_gets_a_skewed_interval():
    """An AUROC near 1 may be much lower and hardly higher."""
    defective = np.repeat([False, True], [20, 63])
    scores = np.random.default_rng(5).normal(defective * 2.3, 1.0)
    auroc = measured(scores, defective, samples=2000)["auroc"]
    assert auroc["value"] - auroc["low"] > 1.5 * (auroc["high"] - auroc["value"])


def test_many_groups_are_left_out_in_blocks():
    groups, defective = np.arange(700), np.arange(700) < 450
    weights, strata = Resampling(groups, defective, samples=2, seed=0)._left_out
    assert weights.shape == (200, 700)
    assert ((weights == 0).sum(axis=0) == 1).all()
    assert weights[:, defective].sum(axis=1) == pytest.approx(np.full(200, 450))
    assert (weights[strata][:, ~defective] == 1).all()
