import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskbridge.approach import Detection, Prediction
from maskbridge.errors import RunError
from maskbridge.fold_ranks import FoldRanks, Rank, mapped
from maskbridge.predictions import Run, write_predictions

finite = st.floats(allow_nan=False, allow_infinity=False)
THRESHOLDS = {kind: {"value": 0.5, "rule": "given"} for kind in ("image", "pixel", "detection")}


@pytest.fixture
def folds(tiles, tmp_path):
    """Runs of the three folds; `say(fold)` makes a prediction of an image of `val`."""

    def make(say) -> list[Run]:
        runs = []
        for fold in range(3):
            info = {"approach": "made-up", "options": {}, "fold": fold, "thresholds": {str(fold): THRESHOLDS}}
            hashes = {"annotations_sha256": tiles.annotations_sha256, "splits_sha256": tiles.splits_sha256}
            run = Run(tmp_path / "all" / f"fold{fold}", {**info, "dataset": {"path": str(tiles.path), **hashes}})
            write_predictions(run.path, "val", (say(fold)(i) for i in tiles.split(fold).val))
            runs.append(run.save())
        return runs

    return make


def test_a_rank_worked_by_hand():
    """Of 2, 4, 4, 10: lower ones and half of the equal ones, then straight lines; beyond them 3/4 for every 8."""
    rank = Rank.among([4.0, 2.0, 10.0, 4.0])
    np.testing.assert_allclose(rank([2, 4, 10]), [0.125, 0.5, 0.875], rtol=1e-15)
    np.testing.assert_allclose(rank([3, 7]), [0.3125, 0.6875], rtol=1e-15)
    np.testing.assert_allclose(rank([0, 12, 18]), [-0.0625, 1.0625, 1.625], rtol=1e-15)
    assert rank.to_json() == {"values": 4, "distinct": 3, "low": 2.0, "high": 10.0}


def test_values_that_occur_several_times_count_as_often():
    assert (
        Rank.among([2, 4, 10], [1, 2, 1])([1, 4, 5, 11]).tolist() == Rank.among([2, 4, 4, 10])([1, 4, 5, 11]).tolist()
    )


def test_one_distinct_value_gives_no_slope_and_no_value_nothing_and_both_are_told():
    shifted, nothing = Rank.among([3.0, 3.0]), Rank.among([])
    assert shifted([3.0, 7.0, -1.0]).tolist() == [0.5, 4.5, -3.5]
    assert nothing([3.0, 7.0]).tolist() == [3.0, 7.0]
    assert shifted.to_json()["note"] == "all values of val are equal: only shifted"
    assert nothing.to_json() == {"values": 0, "distinct": 0, "note": "val has no such value: left as they are"}


@given(st.lists(finite, max_size=8), st.lists(finite, min_size=2, max_size=8))
def test_an_order_is_never_turned_around_and_every_rank_is_finite(val, values):
    ranks = Rank.among(val)([*values, *val])
    assert np.isfinite(ranks).all()
    assert (np.diff(ranks[np.argsort([*values, *val], kind="stable")]) >= 0).all()


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=8), st.integers(-3000, 3000))
def test_a_higher_value_has_a_higher_rank_inside_and_outside_of_val(val, value):
    low, high = Rank.among([v / 7 for v in val])([value / 7, (value + 1) / 7])
    assert low < high


def test_values_of_several_folds_are_mapped_each_by_its_own():
    ranks = {"0": Rank.among([0.0, 1.0]), "1": Rank.among([10.0, 30.0])}
    assert mapped(ranks, ["1", "0", "1"], [20.0, 0.5, 30.0]).tolist() == [0.5, 0.5, 0.75]
    assert mapped(None, ["1", "0"], [20.0, 0.5]).tolist() == [20.0, 0.5]


def test_scores_pixels_and_confidences_are_ranked_each_among_their_own_kind_of_val(folds, tiles):
    def say(fold):
        return lambda i: Prediction(
            image_id=i,
            score=10.0**fold * i,
            map=np.full((3, 4), fold + i % 2, np.float32),
            detections=[Detection(box_ltwh=(1, 1, 5, 4), score=(i + fold) / 100)] * (1 + i % 3),
        )

    ranks = FoldRanks(folds(say), tiles)
    for fold in range(3):
        val = tiles.split(fold).val
        expected = {
            "image": [10.0**fold * i for i in val],
            "pixel": [fold + i % 2 for i in val],
            "detection": [(i + fold) / 100 for i in val for _ in range(1 + i % 3)],
        }
        for kind, values in expected.items():
            found = ranks[kind][str(fold)]
            points = np.linspace(min(values) - 1, max(values) + 1, 50)
            np.testing.assert_allclose(found(points), Rank.among(values)(points), rtol=1e-12)
        assert ranks["pixel"][str(fold)].count == len(val) * 48 * 64


@pytest.mark.parametrize("gives", ["maps", "detections"])
def test_what_follows_from_other_predictions_is_ranked_among_what_follows_in_val(folds, tiles, gives):
    def say(fold):
        def predict(i):
            anomaly_map = np.full((48, 64), 0.1 + fold, np.float32)
            anomaly_map[3:9, 5:20] = 1 + fold + i / 100
            detections = [Detection(box_ltwh=(5, 3, 15, 6), score=1 + fold + i / 100)]
            maps = gives == "maps"
            return Prediction(image_id=i, map=anomaly_map if maps else None, detections=None if maps else detections)

        return predict

    ranks = FoldRanks(folds(say), tiles)
    for fold in range(3):
        highest = [1 + fold + i / 100 for i in tiles.split(fold).val]
        assert ranks["image"][str(fold)](highest) == pytest.approx(Rank.among(highest)(highest), abs=1e-5)
        assert ranks["detection"][str(fold)].count == len(highest) or gives == "maps"
        low = 0.1 + fold if gives == "maps" else 0.0
        assert ranks["pixel"][str(fold)](np.float32(low)) == pytest.approx((48 * 64 - 90) / (48 * 64) / 2)


def test_a_run_that_was_merged_by_another_rule_is_taken_as_it_is(folds, tiles, tmp_path):
    runs = folds(lambda fold: lambda i: Prediction(image_id=i, score=float(i)))
    rule = FoldRanks(runs, tiles).to_json()["rule"]
    for told in (None, "x", {}, {"rule": "(x - mean) / sd over the fold's val"}):
        assert FoldRanks.of(Run(tmp_path / "all", {"mapping": told, "folds": ["fold0"]}), tiles) is None
    names = {**runs[0].info, "fold": "all", "mapping": {"rule": rule}, "folds": ["fold0", "fold1", "fold2"]}
    assert set(FoldRanks.of(Run(tmp_path / "all", names), tiles)["image"]) == {"0", "1", "2"}
    for told in (None, []):
        with pytest.raises(RunError, match="names none of them"):
            FoldRanks.of(Run(tmp_path / "all", {**names, "folds": told}), tiles)
    with pytest.raises(RunError, match="fold7: is not a finished run"):
        FoldRanks.of(Run(tmp_path / "all", {**names, "folds": ["fold7"]}), tiles)


@pytest.mark.parametrize("told", [["fold1"], ["fold0", "fold1", "fold1"], ["fold0", "fold1", "fold2", "fold0"]])
def test_values_are_mapped_only_where_every_fold_is_there_once(folds, tiles, tmp_path, told):
    runs = folds(lambda fold: lambda i: Prediction(image_id=i, score=float(i)))
    info = {**runs[0].info, "fold": "all", "mapping": FoldRanks(runs, tiles).to_json(), "folds": told}
    with pytest.raises(RunError, match=r"is not of each fold once; found folds .*; expected \[0, 1, 2\]"):
        FoldRanks.of(Run(tmp_path / "all", info), tiles)


@pytest.mark.parametrize("change", [{"fold": 0}, {"fold": "all"}, {"approach": "other"}, {"dataset": "other"}], ids=str)
def test_a_fold_of_another_fold_approach_or_dataset_is_refused(folds, tiles, tmp_path, change):
    runs = folds(lambda fold: lambda i: Prediction(image_id=i, score=float(i)))
    names = [f"fold{fold}" for fold in range(3)]
    info = {**runs[0].info, "fold": "all", "mapping": FoldRanks(runs, tiles).to_json(), "folds": names}
    if "dataset" in change:
        change = {"dataset": {**info["dataset"], "splits_sha256": "0" * 64}}
    runs[1].save(**change)
    with pytest.raises(RunError, match=r"is not of each fold once|fold1: is (of another approach|on another dataset)"):
        FoldRanks.of(Run(tmp_path / "all", info), tiles)
