from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from baselines import balanced_softmax
from baselines.balanced_softmax import fit_head, probabilities
from maskbridge.approach import PredictData, TrainData
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError

CONFIG = balanced_softmax.Config(backbone="shufflenet_v2_x0_5", backbone_weights="none", image_size=64)


@pytest.fixture
def rare() -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping types of 300, 20 and 8 points, 5 dimensions."""
    rng = np.random.default_rng(0)
    counts = (300, 20, 8)
    points = [
        rng.normal(size=(n, 5)) + shift * np.eye(5)[k]
        for k, (n, shift) in enumerate(zip(counts, (0, 2, 2), strict=True))
    ]
    return np.concatenate(points).astype(np.float32), np.repeat(np.arange(3), counts)


def test_plain_cross_entropy_is_scikit_learns_logistic_regression(rare) -> None:
    points, types = rare
    model = fit_head(points, types, 3, balanced=False, penalty=0.05)
    standard = (points - model["mean"]) / model["scale"]
    theirs = LogisticRegression(C=1 / (0.05 * len(points)), tol=1e-10, max_iter=5000).fit(standard, types)
    found = np.stack([probabilities(point, model) for point in points])
    np.testing.assert_allclose(found, theirs.predict_proba(standard), atol=1e-4)


def test_the_balanced_loss_is_that_of_the_paper_at_its_minimum(rare) -> None:
    """-log(n_y exp(l_y) / sum n_j exp(l_j)): its gradient vanishes there."""
    points, types = rare
    model = fit_head(points, types, 3, balanced=True, penalty=0.05)
    x = torch.from_numpy((points - model["mean"]) / model["scale"])
    slopes, offsets = (torch.tensor(model[name], requires_grad=True) for name in ("slopes", "offsets"))
    weighted = torch.tensor([300.0, 20.0, 8.0]).double() * (x @ slopes.T + offsets).exp()
    share = weighted[torch.arange(len(x)), torch.from_numpy(types)] / weighted.sum(dim=1)
    loss = -share.log().mean() + 0.05 / 2 * slopes.square().sum()
    loss.backward()
    assert slopes.grad.abs().max() < 1e-4
    assert offsets.grad.abs().max() < 1e-4


def test_a_defect_image_without_a_mask_is_of_its_type(plates) -> None:
    dataset = Dataset.open(plates)
    train = dataset.split(0).train
    before = balanced_softmax._types(TrainData(dataset=dataset, train=train, val=(), fold=0))
    bare = dataclasses.replace(dataset, annotations=())
    names, types = balanced_softmax._types(TrainData(dataset=bare, train=train, val=(), fold=0))
    assert (names, types.tolist()) == (before[0], before[1].tolist())


def test_rare_types_are_found_more_often_with_the_balanced_loss(rare) -> None:
    points, types = rare
    recalls = []
    for balanced in (False, True):
        model = fit_head(points, types, 3, balanced=balanced, penalty=0.05)
        called = np.array([probabilities(point, model).argmax() for point in points])
        recalls.append([np.mean(called[types == kind] == kind) for kind in range(3)])
    assert recalls[1][1] > recalls[0][1]
    assert recalls[1][2] > recalls[0][2]
    assert np.mean(recalls[1]) > np.mean(recalls[0]) + 0.1


def test_each_image_has_a_type_and_the_score_is_one_minus_the_share_of_good(
    work: SimpleNamespace, dataset: Dataset
) -> None:
    ids = tuple(range(1, 31))
    trained = work.train(balanced_softmax, CONFIG, train=ids)
    assert trained.facts["images_by_type"] == {"good": 26, "chip": 4}
    assert trained.facts["not_learned"] == []
    for prediction in work.predictions(balanced_softmax, CONFIG, image_ids=ids):
        assert prediction.type == ("chip" if prediction.score > 0.5 else "good")
        assert 0 <= prediction.score <= 1
        assert prediction.map is None


def test_features_without_variance_leave_the_counts_alone(work: SimpleNamespace) -> None:
    model = fit_head(np.ones((10, 4), np.float32), np.repeat([0, 1], [8, 2]), 2, balanced=False, penalty=0.1)
    np.testing.assert_allclose(probabilities(np.ones(4), model), [0.8, 0.2], atol=1e-4)


@pytest.mark.parametrize(("ids", "found"), [((1, 2, 3), "good"), ((27, 28), "chip"), ((), "no image")])
def test_a_training_part_with_nothing_to_tell_apart_is_refused_before_any_work(dataset: Dataset, ids, found) -> None:
    data = TrainData(dataset=dataset, train=ids, val=(), fold=0)
    with pytest.raises(MaskbridgeError, match="fold 0 has nothing to tell apart") as error:
        balanced_softmax.check(data, dataclasses.replace(CONFIG))
    assert found in str(error.value)


def test_types_are_called_by_the_names_of_the_dataset_whatever_their_order(
    dataset: Dataset, context, tmp_path: Path
) -> None:
    """Categories stand as stain, crack; types are learned as good, crack, stain."""
    folder = shutil.copytree(dataset.path, tmp_path / "two types")
    text = (folder / "annotations.json").read_text()
    coco = json.loads(text)
    coco["categories"] = [
        {"id": n, "name": name, "supercategory": "stripes"} for n, name in ((1, "stain"), (2, "crack"))
    ]
    kinds = {27: "crack", 28: "stain", 29: "crack", 30: "stain"}
    for image in coco["images"]:
        if image["id"] in kinds:
            image["origin"] = f"test/{kinds[image['id']]}"
    for annotation in coco["annotations"]:
        annotation["category_id"] = 1 if kinds[annotation["image_id"]] == "stain" else 2
    (folder / "annotations.json").write_text(json.dumps(coco))
    changed, ids = Dataset.open(folder), (1, 2, 3, 27, 28, 29, 30)
    config = dataclasses.replace(CONFIG, penalty=1e-6)
    data = TrainData(dataset=changed, train=ids, val=(), fold="official")
    trained = balanced_softmax.train(data, config, tmp_path / "run", context)
    assert trained.facts["images_by_type"] == {"good": 3, "crack": 2, "stain": 2}
    asked = PredictData(dataset=changed, image_ids=ids, fold="official", part="test")
    told = {p.image_id: p.type for p in balanced_softmax.predict(asked, config, tmp_path / "run", context)}
    assert told == {1: "good", 2: "good", 3: "good", **kinds}
