import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from maskbridge.errors import MaskbridgeError
from maskbridge.pixel_counts import PixelCounts, resized

SIZE = (31, 47)


def a_mask():
    mask = np.zeros(SIZE, np.uint8)
    mask[3:7, 5:15] = 1  # 40 pixels
    mask[7, 15] = 1  # touches it at a corner
    mask[20, 2:32] = 1  # 30 pixels
    return mask


def test_each_pixel_falls_into_the_bin_that_holds_its_score():
    rng = np.random.default_rng(0)
    for scale in (1e-20, 1.0, 1e30):
        anomaly_map = (rng.standard_cauchy(SIZE) * scale).astype(np.float32)
        counts = PixelCounts([anomaly_map])
        counts.add(anomaly_map, a_mask(), where="it")
        bins = counts.bins(anomaly_map)
        assert (counts.lower[bins] <= anomaly_map.ravel()).all()
        assert (anomaly_map.ravel() <= counts.upper[bins]).all()
        assert np.array_equal(counts.good + counts.defective, np.bincount(bins, minlength=len(counts.good)))


@given(st_numpy.arrays(np.float32, (3, 5), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_bins_keep_the_order_of_any_scores(anomaly_map):
    bins = PixelCounts([anomaly_map]).bins(anomaly_map)
    order = np.argsort(anomaly_map.ravel(), kind="stable")
    assert (np.diff(bins[order]) >= 0).all()


def test_there_are_no_more_bins_than_promised_and_their_edges_ascend():
    for preview in ([], [np.linspace(-3, 7, 1000).reshape(10, 100)], [np.zeros((2, 3))]):
        counts = PixelCounts(preview)
        assert len(counts.good) <= 1_048_576
        assert (np.diff(counts.lower) >= 0).all()


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0], ids=["around zero", "far above", "far below"])
def test_scores_that_crowd_are_told_apart(offset):
    rng = np.random.default_rng(1)
    anomaly_map = (offset + rng.random(SIZE)).astype(np.float32)
    anomaly_map[0, 0] = 0.0  # a stray value must not spoil the rest
    bins = PixelCounts([anomaly_map]).bins(anomaly_map)
    assert len(np.unique(bins)) >= 0.98 * len(np.unique(anomaly_map))


def test_good_and_defective_pixels_are_counted_apart():
    mask = a_mask()
    counts = PixelCounts()
    counts.add(np.where(mask, 2.0, 1.0), mask, where="it")
    counts.add(np.full((4, 6), 1.0), np.zeros((4, 6), np.uint8), where="another")
    filled = np.flatnonzero(counts.good + counts.defective)
    assert counts.good[filled].tolist() == [SIZE[0] * SIZE[1] - 71 + 24, 0]
    assert counts.defective[filled].tolist() == [0, 71]
    assert counts.regions[filled] == pytest.approx([0, 2])
    assert counts.region_count == 2
    assert counts.lower[filled].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("size_hw", "exact"), [((999, 1001), True), ((1000, 1000), False)])
def test_fewer_than_a_million_pixels_have_a_bin_for_each_distinct_score(size_hw, exact):
    maps = {1: np.array([[0.25, 0.5]], np.float32), 2: np.array([[0.5, -0.0, 0.0]], np.float32)}
    sizes = {1: (1, 2), 2: (1, 3)} if exact else {1: (1, 2), 2: size_hw}
    counts = PixelCounts.laid_out(maps.__getitem__, sizes)
    assert (counts.lower.tolist() == [0.0, 0.25, 0.5]) is exact
    assert (len(counts.good) > 65_535) is not exact
    constant = PixelCounts.laid_out(lambda _: np.full((2, 3), 0.25, np.float32), {1: size_hw})
    assert (len(constant.good) == 1) is exact


def test_counts_of_each_distinct_score_are_those_of_the_pixels():
    rng = np.random.default_rng(4)
    maps = {i: np.round(rng.normal(size=SIZE), 1).astype(np.float32) for i in (1, 2)}
    counts = PixelCounts.laid_out(maps.__getitem__, dict.fromkeys(maps, SIZE))
    part = counts.empty()
    for i in maps:
        part.add(maps[i], a_mask(), where="it")
    counts += part
    scores, masks = np.concatenate([each.ravel() for each in maps.values()]), np.tile(a_mask().ravel(), 2)
    values = np.unique(scores)
    assert np.array_equal(counts.lower, values)
    assert counts.good.tolist() == [np.sum((scores == v) & (masks == 0)) for v in values]
    assert counts.defective.tolist() == [np.sum((scores == v) & (masks > 0)) for v in values]
    assert counts.regions.sum() == pytest.approx(4)
    assert values[counts.bins(maps[2])].tolist() == (maps[2].ravel() + 0).tolist()


def test_both_zeros_are_one():
    bins = PixelCounts().bins(np.array([[0.0, -0.0]], np.float32))
    assert bins[0] == bins[1]


def test_maps_are_resized_bilinearly_to_height_and_width():
    small = np.random.default_rng(2).random((5, 7)).astype(np.float32)
    assert np.array_equal(resized(small, SIZE, where="it"), cv2.resize(small, (SIZE[1], SIZE[0])))


def test_a_constant_map_stays_constant():
    assert len(np.unique(resized(np.full((3, 2), 0.7, np.float32), SIZE, where="it"))) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_the_image_named(value):
    anomaly_map = np.ones((4, 6), np.float32)
    anomaly_map[1, 2] = value
    with pytest.raises(MaskbridgeError, match="image 17"):
        PixelCounts([anomaly_map]).add(anomaly_map, np.zeros((4, 6), np.uint8), where="image 17")


def test_the_percentile_is_a_score_that_enough_pixels_do_not_exceed():
    anomaly_map = np.random.default_rng(3).gamma(2.0, 1.0, (100, 120)).astype(np.float32)
    counts = PixelCounts([anomaly_map])
    counts.add(anomaly_map, np.zeros(anomaly_map.shape, np.uint8), where="it")
    for percent in (50.0, 99.9, 100.0):
        found = counts.percentile(percent)
        assert found == pytest.approx(np.percentile(anomaly_map, percent, method="higher"), rel=1e-3)
        assert (anomaly_map <= found).mean() >= percent / 100
