"""Defect images without a mask: their type is known, which of their pixels are good is not."""

import numpy as np
import pytest

from evaluation.leaderboard import evaluate_runs
from evaluation.metrics import evaluate
from evaluation.pixel_metrics import PixelMetrics
from maskbridge.approach import Detection, Prediction

JUDGED_BY_PIXELS = ("pixel", "instance", "instance_by_type", "mask", "detection_rate_by_type")


@pytest.fixture
def evaluations(masks, new_dataset, new_run, truth, tmp_path):
    """Evaluations with and without such an image, whose map, boxes and masks are all alarms."""
    found = {}
    for name, items in (("without", masks), ("with", [*masks, (np.zeros((24, 36), np.uint8), "crack")])):
        dataset = new_dataset(tmp_path / name, items)
        ids = [image.id for image in dataset.images]
        predictions = list(truth(dataset, ids))
        if name == "with":
            [lost] = dataset.without_mask
            whole = Detection(
                box_ltwh=(0, 0, 36, 24), score=1.5, category_id=1, segmentation=dataset.annotations[0]["segmentation"]
            )
            noise = np.random.default_rng(0).uniform(0, 9, (24, 36)).astype(np.float32)
            predictions[-1] = Prediction(image_id=lost, score=0.0, map=noise, detections=[whole] * 3)
        run = new_run(tmp_path / f"{name}-run", dataset, predictions)
        found[name] = evaluate(run, dataset, "test", samples=20)
    return found


@pytest.fixture
def metrics(evaluations):
    return {name: evaluation.metrics for name, evaluation in evaluations.items()}


@pytest.mark.parametrize("family", JUDGED_BY_PIXELS)
def test_no_figure_of_pixels_and_boxes_counts_it(metrics, family):
    values = [{name: each["value"] for name, each in metrics[how][family].items()} for how in ("with", "without")]
    assert values[0] == values[1]


def test_the_coarse_bins_of_intervals_and_folds_leave_it_out_too(evaluations):
    values = []
    for name in ("with", "without"):
        view = evaluations[name].view
        family = PixelMetrics(view, view.maps().value)
        values.append({key: each.tolist() for key, each in family.values(np.ones((1, len(view.image_ids)))).items()})
    for key, value in values[1].items():
        np.testing.assert_allclose(values[0][key], value, atol=1e-3, err_msg=key)
    assert values[1]["auroc"] == [1]


def test_figures_of_images_count_it_as_a_defect(metrics):
    counts = metrics["without"]["images"]
    assert metrics["with"]["images"] == {**counts, "defective": counts["defective"] + 1, "without_mask": 1}
    assert metrics["without"]["image"]["auroc"]["value"] == 1
    assert metrics["with"]["image"]["auroc"]["value"] < 1, "its score is that of a good image"


def test_the_leaderboard_says_how_many_there_are(evaluations):
    run = evaluations["with"].run
    text = evaluate_runs([run.path], dataset=evaluations["with"].dataset.path, samples=20).markdown()
    assert "12 good and 19 defective images, 1 of these without a mask: judged as images alone. In brackets" in text
