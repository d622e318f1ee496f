import cv2
import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation.pixel_metrics import PixelMetrics
from maskbridge.approach import Prediction
from maskbridge.derive import PredictionView
from maskbridge.errors import MaskbridgeError


def maps_like(kind, masks, rng):
    noise = [rng.normal(mask * 1.0, 1.0).astype(np.float32) for mask in masks]
    if kind == "heavy-tailed":
        return [np.exp(8 * each).astype(np.float32) for each in noise]
    if kind == "tied":
        return [np.round(each) for each in noise]
    if kind == "constant":
        return [np.full_like(each, 0.25) for each in noise]
    if kind == "two-valued":
        return [np.where(each > 0.7, np.float32(0.8), np.float32(0.2)) for each in noise]
    if kind == "saturated":  # most scores crowd, in each fold elsewhere, within some of the smallest steps of float32
        folds = [-0.21 - 0.02 * (number % 5) for number in range(len(noise))]
        return [np.where(n < 1, f + n * 2e-7, n).astype(np.float32) for n, f in zip(noise, folds, strict=True)]
    if kind == "offset":
        return [(1000 + each).astype(np.float32) for each in noise]
    return noise


def family_of(dataset, new_run, folder, maps, **info):
    predictions = [Prediction(image_id=image.id, map=m) for image, m in zip(dataset.images, maps, strict=True)]
    view = PredictionView(new_run(folder, dataset, predictions, **info), dataset, "test")
    return PixelMetrics(view, view.maps().value)


@pytest.mark.parametrize("kind", ["smooth", "heavy-tailed", "tied", "two-valued", "constant", "offset", "saturated"])
@pytest.mark.parametrize("exact", [True, False], ids=["few pixels", "as if many"])
def test_equal_to_sorting_every_pixel(kind, exact, new_dataset, new_run, tmp_path, masks, monkeypatch, exact_aupro):
    """To rounding where there are few pixels; the bins that more of them are counted in cost little."""
    if not exact:
        monkeypatch.setattr("maskbridge.pixel_counts.EXACT_PIXELS", 0)
    masks = [np.kron(mask, np.ones((4, 4), np.uint8)) for mask, _ in masks[4:24]]
    dataset = new_dataset(tmp_path / "d", masks)
    maps = maps_like(kind, masks, np.random.default_rng(7))
    point = family_of(dataset, new_run, tmp_path / "run", maps).point()
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([each.ravel() for each in maps])
    assert point["aupro_30"] == pytest.approx(exact_aupro(maps, masks, 0.30), abs=1e-12 if exact else 1e-6)
    assert point["aupro_05"] == pytest.approx(exact_aupro(maps, masks, 0.05), abs=1e-12 if exact else 1e-6)
    assert point["auroc"] == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12 if exact else 1e-6)
    assert point["ap"] == pytest.approx(reference.average_precision_score(labels, scores), abs=1e-12 if exact else 1e-5)
    precision, recall, _ = reference.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert point["f1_max"] == pytest.approx(f1.max(), abs=1e-12 if exact else 1e-5)
    called = scores >= 0.5
    assert point["iou"] == pytest.approx(reference.jaccard_score(labels, called))


def test_maps_of_a_few_pixels_cost_nothing_worked_by_hand(new_dataset, new_run, tmp_path):
    """Scores that differ in the last bit alone are told apart; 1 of 2 pixels above all good ones, then one below."""
    mask = np.array([[1, 0, 0], [1, 0, 0]], np.uint8)
    steps = np.float32(0.1) + np.arange(6, dtype=np.float32) * np.float32(2**-27)
    assert len(set(steps.tolist())) == 6
    maps = [steps[[5, 0, 1, 3, 2, 4]].reshape(2, 3)]
    point = family_of(new_dataset(tmp_path / "d", [mask]), new_run, tmp_path / "run", maps).point()
    assert point["auroc"] == pytest.approx((4 + 3) / 8)
    assert point["ap"] == pytest.approx((1 + 2 / 3) / 2)


def test_a_pixel_at_the_threshold_is_called(new_dataset, new_run, tmp_path):
    mask = np.array([[1, 1, 0, 0]], np.uint8)
    cut = {"official": {"pixel": {"value": 0.7, "rule": "given"}}}  # .7 in float32 is below .7 in float64
    maps = [np.array([[0.7, 0.6, 0.7, 0.1]], np.float32)]
    point = family_of(new_dataset(tmp_path / "d", [mask]), new_run, tmp_path / "run", maps, thresholds=cut).point()
    assert point["iou"] == pytest.approx(1 / 3)


def test_coarse_bins_stay_close_to_the_fine_ones(dataset, new_run, tmp_path):
    masks = [dataset.mask(image.id) for image in dataset.images]
    for kind in ("smooth", "heavy-tailed", "tied", "constant"):
        family = family_of(dataset, new_run, tmp_path / kind, maps_like(kind, masks, np.random.default_rng(8)))
        coarse = {name: value[0] for name, value in family.values(np.ones((1, len(masks)))).items()}
        assert coarse == pytest.approx(family.point(), abs=3e-3)


def test_weights_count_images_several_times(dataset, new_dataset, new_run, tmp_path):
    masks = [dataset.mask(i) for i in (1, 4, 8, 19)]
    rng = np.random.default_rng(9)
    maps = [np.round(rng.normal(mask * 1.0, 1.0), 1).astype(np.float32) for mask in masks]
    family = family_of(new_dataset(tmp_path / "a", masks), new_run, tmp_path / "run a", maps)
    copies = [0, 0, 1, 3, 3, 3]
    copied = family_of(
        new_dataset(tmp_path / "b", [masks[i] for i in copies]),
        new_run,
        tmp_path / "run b",
        [maps[i] for i in copies],
    )
    values = {name: value[0] for name, value in family.values(np.array([[2, 1, 0, 3]])).items()}
    assert values == pytest.approx(copied.point(), abs=1e-9)


def test_maps_are_enlarged_to_the_image(dataset, new_run, tmp_path):
    rng = np.random.default_rng(10)
    small = [rng.random((12, 9)).astype(np.float32) for _ in dataset.images]
    size = (dataset.images[0].width, dataset.images[0].height)
    large = [cv2.resize(each, size, interpolation=cv2.INTER_LINEAR) for each in small]
    one = family_of(dataset, new_run, tmp_path / "small", small).point()
    two = family_of(dataset, new_run, tmp_path / "large", large).point()
    assert one == pytest.approx(two, abs=1e-5)


def test_a_map_of_one_pixel_is_constant(dataset, new_run, tmp_path):
    maps = [np.full((1, 1), 0.7, np.float32) for _ in dataset.images]
    point = family_of(dataset, new_run, tmp_path / "run", maps).point()
    assert point["auroc"] == 0.5
    assert point["aupro_30"] == pytest.approx(0.15)


def test_the_corner_case_images_have_whys(new_dataset, new_run, tmp_path):
    good, full = np.zeros((5, 8), np.uint8), np.ones((5, 8), np.uint8)
    rng = np.random.default_rng(11)
    maps = [rng.random((5, 8)).astype(np.float32)] * 2
    none = family_of(new_dataset(tmp_path / "a", [good, good]), new_run, tmp_path / "none", maps)
    assert set(none.whys) == set(none.names)
    every = family_of(new_dataset(tmp_path / "b", [full, full]), new_run, tmp_path / "every", maps)
    assert set(every.whys) == {"auroc", "aupro_30", "aupro_05"}


def test_without_a_pixel_threshold_there_is_no_iou(dataset, new_run, tmp_path):
    thresholds = {"official": {"pixel": {"value": None, "why": "val had no defect"}}}
    maps = [np.ones((4, 6), np.float32) for _ in dataset.images]
    family = family_of(dataset, new_run, tmp_path / "run", maps, thresholds=thresholds)
    assert "val had no defect" in family.whys["iou"]


def test_nan_is_refused_with_the_image_named(dataset, new_run, tmp_path):
    maps = [np.ones((4, 6), np.float32) for _ in dataset.images]
    run = new_run(tmp_path / "run", dataset, [Prediction(image_id=i, map=m) for i, m in enumerate(maps, start=1)])
    maps[2][1, 1] = np.nan
    view = PredictionView(run, dataset, "test")
    with pytest.raises(MaskbridgeError, match="image 3"):
        PixelMetrics(view, lambda image_id: maps[image_id - 1])
