"""The same numbers as anomalib and torchmetrics, where those are right: on shares in [0, 1] at full resolution.

Where they are not, a test pins down what they do, so that a reader of two tables knows why they differ: anomalib loses
a defect that fills its image, and outside [0, 1] torchmetrics sends scores through a sigmoid, which saturates.
"""

import numpy as np
import pytest

from evaluation.image_metrics import ImageMetrics
from evaluation.pixel_metrics import PixelMetrics
from maskbridge.approach import Prediction
from maskbridge.derive import PredictionView

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def classification():
    return pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")


def tensor(array):
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.fixture
def shares(new_dataset, new_run, masks, tmp_path):
    """Maps of shares, smooth and tied, on some of the masks: what we make of them, and the same as tensors."""

    def make(masks):
        rng = np.random.default_rng(0)
        maps = [np.round(1 / (1 + np.exp(-rng.normal(mask * 1.5, 1.0))), 3).astype(np.float32) for mask in masks]
        dataset = new_dataset(tmp_path / "tiles", masks)
        predictions = [Prediction(image_id=number, map=m) for number, m in enumerate(maps, start=1)]
        view = PredictionView(new_run(tmp_path / "run", dataset, predictions), dataset, "test")
        pair = tensor(np.stack(maps)), tensor(np.stack(masks))
        return PixelMetrics(view, view.maps().value).point(), pair

    return make


@pytest.fixture
def anomalib_aupro():
    module = pytest.importorskip("anomalib.metrics.aupro", reason="anomalib is not installed")

    def aupro(pair, limit):
        metric = module._AUPRO(fpr_limit=limit)
        metric.update(*pair)
        return float(metric.compute())

    return aupro


@pytest.mark.parametrize(("limit", "name"), [(0.3, "aupro_30"), (0.05, "aupro_05")])
def test_aupro_is_that_of_anomalib(shares, masks, anomalib_aupro, limit, name):
    point, pair = shares([mask for mask, _ in masks if not mask.all()])
    assert point[name] == pytest.approx(anomalib_aupro(pair, limit), abs=1e-6)


def test_anomalib_loses_a_defect_that_fills_its_image_and_we_do_not(shares, masks, anomalib_aupro):
    point, pair = shares([masks[6][0], masks[-1][0]])
    assert masks[6][0].all()
    assert anomalib_aupro(pair, 0.3) == 0.0
    assert point["aupro_30"] > 0.5


def test_pixel_auroc_ap_and_iou_are_those_of_torchmetrics(shares, masks, classification):
    point, pair = shares([mask for mask, _ in masks])
    scores, masks = pair[0].flatten(), pair[1].flatten().int()
    assert point["auroc"] == pytest.approx(float(classification.binary_auroc(scores, masks)), abs=1e-5)
    assert point["ap"] == pytest.approx(float(classification.binary_average_precision(scores, masks)), abs=1e-5)
    called = (scores >= 0.5).int()
    assert point["iou"] == pytest.approx(float(classification.binary_jaccard_index(called, masks)), abs=1e-6)


def test_image_metrics_are_those_of_torchmetrics(classification):
    rng = np.random.default_rng(1)
    defective = rng.random(200) < 0.6
    scores = np.round(np.clip(rng.normal(defective * 0.4 + 0.3, 0.2), 0, 1), 2)
    point = ImageMetrics(scores, defective, np.full(200, 0.5)).point()
    pair = tensor(scores), tensor(defective).int()
    for name, reference in (
        ("auroc", classification.binary_auroc),
        ("ap", classification.binary_average_precision),
    ):
        assert point[name] == pytest.approx(float(reference(*pair)), abs=1e-6)
    called = (pair[0] >= 0.5).int(), pair[1]
    for name, reference in (
        ("accuracy", classification.binary_accuracy),
        ("precision", classification.binary_precision),
        ("recall", classification.binary_recall),
    ):
        assert point[name] == pytest.approx(float(reference(*called)), abs=1e-6)


def test_torchmetrics_saturates_where_scores_are_no_shares_and_we_do_not(classification):
    defective = np.repeat([False, True], 50)
    scores = 1000 + np.arange(100.0)
    assert ImageMetrics(scores, defective, None).point()["auroc"] == 1.0
    theirs = classification.binary_auroc(tensor(scores).float(), tensor(defective).int())
    assert float(theirs) == 0.5
