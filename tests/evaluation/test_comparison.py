from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from evaluation.comparison import (
    Comparison,
    _judged,
    compare,
    compare_all,
    comparison_text,
    holm,
    p_value,
    samples_needed,
)
from evaluation.metrics import evaluate
from maskbridge.approach import Prediction


def run_of(folder, dataset, new_run, scores, **info):
    return new_run(folder, dataset, [Prediction(image_id=i, score=float(s)) for i, s in scores.items()], **info)


def noisy(dataset, ids, noise, seed):
    rng = np.random.default_rng(seed)
    return {i: (not dataset.image_by_id[i].is_good) + noise * rng.normal() for i in ids}


@pytest.fixture
def evaluated(dataset, new_run, tmp_path):
    def make(name, scores, **info):
        run = run_of(tmp_path / name, dataset, new_run, scores, **info)
        return evaluate(run, dataset, "test", samples=200, drawn=600)

    return make


def test_the_difference_is_that_of_the_values_and_turns_with_the_order(dataset, ids, evaluated):
    one, other = (evaluated(name, noisy(dataset, ids, 1.0, seed)) for seed, name in enumerate("ab"))
    there, back = compare(one, other, "image", "auroc"), compare(other, one, "image", "auroc")
    labels = [not dataset.image_by_id[i].is_good for i in ids]
    values = [roc_auc_score(labels, [each.view.scores().value[i] for i in ids]) for each in (one, other)]
    assert there.difference == pytest.approx(values[0] - values[1])
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p == there.p
    assert there.low <= there.difference <= there.high


def test_a_run_far_better_beats_the_other_and_the_sentence_says_so(dataset, ids, evaluated):
    good, bad = evaluated("good", noisy(dataset, ids, 0.2, 0)), evaluated("bad", noisy(dataset, ids, 9.0, 1))
    for pair in ((good, bad), (bad, good)):
        found = compare(*pair, "image", "auroc")
        assert found.winner == "good"
        assert found.p < 0.05
        assert found.sentence.startswith("good beats bad: image AUROC ")


def test_where_less_is_better_the_smaller_rate_wins(dataset, ids, evaluated):
    strict = {i: 1.0 for i in ids}
    mild = {i: float(not dataset.image_by_id[i].is_good) for i in ids}
    found = compare(evaluated("strict", strict), evaluated("mild", mild), "image", "overkill_rate")
    assert found.difference == 1.0
    assert (found.method, found.winner) == ("mover", "mild")
    assert found.p < 0.05
    assert found.low > 0
    found = compare(
        evaluated("half", {i: float(i % 2) for i in ids}), evaluated("right", mild), "image", "overkill_rate"
    )
    assert found.difference > 0
    assert found.winner == "right"


def test_equal_runs_are_not_distinguishable_and_the_interval_is_not_nothing(dataset, ids, evaluated):
    perfect = {i: float(not dataset.image_by_id[i].is_good) for i in ids}
    found = compare(evaluated("a", perfect), evaluated("b", perfect), "image", "auroc")
    assert (found.difference, found.p, found.winner, found.method) == (0.0, 1.0, None, "mover")
    assert found.low < -0.05
    assert found.high > 0.05
    assert "a and b are not distinguishable on 30 images" in found.sentence


def test_what_is_hard_for_both_cancels_out(dataset, ids, evaluated):
    """Two runs that differ by a constant order little are told apart better than two independent ones."""
    base = noisy(dataset, ids, 1.0, 3)
    near = {i: s + 0.05 * np.random.default_rng(i).normal() for i, s in base.items()}
    one, close, far = evaluated("a", base), evaluated("b", near), evaluated("c", noisy(dataset, ids, 1.0, 4))
    paired, apart = (compare(one, other, "image", "auroc") for other in (close, far))
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_a_metric_that_one_run_lacks_is_told_with_its_reason(dataset, ids, evaluated):
    one, other = (evaluated(name, noisy(dataset, ids, 1.0, 0)) for name in "ab")
    found = compare(one, other, "pixel", "auroc")
    assert found == Comparison(family="pixel", metric="auroc", one="a", other="b", pairs=0, sentence=found.sentence)
    assert "cannot be compared on pixel AUROC (a: the run has neither maps" in found.sentence


def test_p_is_twice_the_smaller_tail_with_one_more_of_each_worked_by_hand():
    # 10 samples, one of them not above 0: 2 (1 + 1) / (10 + 1)
    assert p_value(np.array([-0.1, *[0.2] * 9])) == pytest.approx(4 / 11)
    assert p_value(np.array([0.1, *[-0.2] * 9])) == pytest.approx(4 / 11)
    assert p_value(np.full(19, 0.3)) == pytest.approx(2 / 20)  # the smallest there can be
    assert p_value(np.array([0.0, 0.0, 0.5])) == 1.0  # those at 0 count on both sides


def test_mover_takes_the_limbs_that_face_each_other_worked_by_hand(evaluated, ids):
    """.9 [.6, .94] less .5 [.47, .9]: down by √(.3² + .4²) = .5, up by √(.04² + .03²) = .05."""
    one, other = (evaluated(name, dict.fromkeys(ids, 0.0)) for name in "ab")
    for each, value, low, high in ((one, 0.9, 0.6, 0.94), (other, 0.5, 0.47, 0.9)):
        each.metrics["image"]["recall"] = {"value": value, "low": low, "high": high}
        each.sampled["image"]["recall"] = np.full(600, value)
    found, back = compare(one, other, "image", "recall"), compare(other, one, "image", "recall")
    assert (found.difference, found.low, found.high) == pytest.approx((0.4, -0.1, 0.45))
    assert (back.difference, back.low, back.high) == pytest.approx((-0.4, -0.45, 0.1))
    # half a width of .5 towards zero is 1.96 standard deviations
    assert found.p == back.p == pytest.approx(2 * norm.cdf(-1.959963984540054 * 0.4 / 0.5))
    assert found.method == "mover"
    assert "difference .400 [-.100, .450]°" in found.sentence
    assert "[-.100, .450]°" in comparison_text(one, other, [found])
    assert "° all bootstrap samples agree" in comparison_text(one, other, [found])


def test_holm_worked_by_hand():
    # sorted .01 .02 .03 .04: 4 x .01, 3 x .02, 2 x .03, 1 x .04, never falling
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.01, None]) == [0.01, None]
    assert holm([]) == []


def test_every_pair_is_corrected_for_the_number_of_pairs(dataset, ids, evaluated):
    runs = [evaluated(str(n), noisy(dataset, ids, 0.5 + n, n)) for n in range(4)]
    pairs = compare_all(runs, "image", "auroc")
    assert [(pair.one, pair.other) for pair in pairs] == [
        ("0", "1"), ("0", "2"), ("0", "3"), ("1", "2"), ("1", "3"), ("2", "3"),
    ]  # fmt: skip
    assert [pair.p_holm for pair in pairs] == holm([pair.p for pair in pairs])
    assert "corrected for 6 pairs" in pairs[0].sentence


def test_only_what_survives_holms_correction_beats(dataset, ids, evaluated):
    one, other = (evaluated(name, noisy(dataset, ids, 1.0, seed)) for seed, name in enumerate("ab"))
    raw = replace(compare(one, other, "image", "auroc"), difference=0.1, p=0.02, pairs=6)
    lost = _judged(replace(raw, p_holm=0.12, winner=None), one, other)
    assert lost.winner is None
    assert "not distinguishable" in lost.sentence
    assert "p = .020, .120 corrected for 6 pairs" in lost.sentence
    assert _judged(replace(raw, p_holm=0.04, winner=None), one, other).winner == "a"


def test_there_are_samples_enough_to_pass_holms_strictest_test():
    for runs in (2, 5, 12, 30):
        pairs = runs * (runs - 1) / 2
        assert pairs * 2 / (samples_needed(runs) + 1) < 0.05 / 1.9


@pytest.mark.slow
def test_where_there_is_no_difference_one_is_seldom_found(dataset, ids, evaluated):
    """Two runs of the same quality on fresh images, 200 times: about 5 % are called different."""
    called = 0
    for number in range(200):
        one, other = (
            evaluated(f"{name}{number}", noisy(dataset, ids, 1.0, (number, place))) for place, name in enumerate("ab")
        )
        called += compare(one, other, "image", "auroc").winner is not None
    assert called / 200 < 0.12
