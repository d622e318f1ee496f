from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torchvision import models

from baselines import _features, knn
from baselines._backbones import load_backbone
from baselines._features import features, pooled
from baselines._torch import read_square, to_tensor
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError

NAME = "mobilenet_v3_small"


def pooled_matrix(backbone, dataset, image_ids, size, context, *, stages):
    return np.stack([pooled(each, stages) for each in features(backbone, dataset, image_ids, size, context)])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def test_a_cache_hit_is_identical_and_reads_no_image(dataset: Dataset, context, monkeypatch) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    first = pooled_matrix(backbone, dataset, (3, 1, 2), 64, context, stages=1)
    monkeypatch.setattr(_features, "read_square", lambda *_: pytest.fail("an image was read"))
    np.testing.assert_array_equal(pooled_matrix(backbone, dataset, (1, 2, 3), 64, context, stages=1), first[[1, 2, 0]])


def test_the_cache_keeps_sizes_and_weights_apart(dataset: Dataset, context) -> None:
    one, two = (load_backbone(NAME, "none", seed=seed) for seed in (0, 1))
    features = [pooled_matrix(b, dataset, (1,), size, context, stages=1) for b in (one, two) for size in (32, 64)]
    assert len({f.tobytes() for f in features}) == 4


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_cache_entry_is_computed_again(
    damage: str, dataset: Dataset, context, tmp_path: Path, monkeypatch
) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    first = pooled_matrix(backbone, dataset, (1,), 64, context, stages=1)
    [entry] = (tmp_path / "cache" / "features").rglob("*.npz")
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    entry.write_bytes({"truncated": whole[:middle], "one bit": flipped, "empty": b""}[damage])
    np.testing.assert_array_equal(pooled_matrix(backbone, dataset, (1,), 64, context, stages=1), first)
    monkeypatch.setattr(_features, "read_square", lambda *_: pytest.fail("an image was read"))
    np.testing.assert_array_equal(pooled_matrix(backbone, dataset, (1,), 64, context, stages=1), first)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, each: each * np.nan if name == "pooled-16" else each,
        lambda name, each: each + np.inf if name == "map-8" else each,
        lambda name, each: each[:1] if each.ndim == 1 else each,
        lambda name, each: each[:0] if each.ndim else each,
        lambda name, each: each.astype(np.float64),
        lambda name, each: each.reshape(-1)[:, None] if each.ndim == 1 else each,
        lambda name, each: np.float64("nan") if name == "seconds" else each,
        lambda name, each: None if name == "pooled-32" else each,
        lambda name, each: None if name == "map-8" else each,
    ],
    ids=["nan", "infinity", "fewer channels", "empty", "other numbers", "other axes", "no time", "no mean", "no map"],
)
def test_a_cache_entry_of_another_form_is_computed_again(change, dataset: Dataset, context, tmp_path: Path) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    ask = lambda: list(features(backbone, dataset, (1, 2, 3), 64, context, strides=(8,)))  # noqa: E731
    first = ask()
    for entry in (tmp_path / "cache" / "features").rglob("*.npz"):
        if entry.name.startswith(dataset.image_by_id[1].sha256):
            continue
        with np.load(entry) as archive:
            changed = {name: change(name, archive[name]) for name in archive.files}
        np.savez(entry, **{name: each for name, each in changed.items() if each is not None})
    for one, two in zip(first, ask(), strict=True):
        assert all(np.array_equal(one.pooled[stride], two.pooled[stride]) for stride in backbone.taps)
        assert np.array_equal(one.maps[8], two.maps[8])


@pytest.mark.parametrize("stages", [1, 2, 9])
def test_pooled_features_are_the_means_of_the_last_maps(stages: int, dataset: Dataset, context) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    [feature] = features(backbone, dataset, (4,), 64, context, strides=tuple(backbone.taps))
    maps = [feature.maps[stride].astype(np.float32) for stride in sorted(backbone.taps)[-stages:]]
    expected = np.concatenate([each.mean(axis=(1, 2)) for each in maps])
    [found] = pooled_matrix(backbone, dataset, (4,), 64, context, stages=stages)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)  # maps are kept in half precision


def test_maps_come_from_the_cache_as_they_were_computed(dataset: Dataset, context, monkeypatch) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    ask = lambda strides: list(features(backbone, dataset, (1, 2), 64, context, strides=strides))  # noqa: E731
    first = ask((8, 16))
    monkeypatch.setattr(_features, "read_square", lambda *_: pytest.fail("an image was read"))
    for one, two in zip(first, ask((8, 16)), strict=True):
        assert {stride: each.shape for stride, each in one.maps.items()} == {8: (24, 8, 8), 16: (48, 4, 4)}
        assert all(np.array_equal(one.maps[stride], two.maps[stride]) for stride in (8, 16))


def test_what_the_cache_spares_counts_as_spent(dataset: Dataset, context) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    first = list(features(backbone, dataset, (1, 2, 3), 64, context))
    assert context.spared == []
    list(features(backbone, dataset, (1, 2), 64, context))
    assert context.spared == [each.seconds for each in first[:2]]
    assert min(context.spared) > 0


def test_an_image_that_changed_has_other_features(dataset: Dataset, context, tmp_path: Path) -> None:
    dataset = Dataset.open(shutil.copytree(dataset.path, tmp_path / "stripes"))
    backbone = load_backbone(NAME, "none", seed=0)
    before = pooled_matrix(backbone, dataset, (1,), 64, context, stages=1)
    cv2.imwrite(str(dataset.image_path(1)), np.full((48, 80, 3), 200, np.uint8))
    assert not np.array_equal(pooled_matrix(backbone, dataset, (1,), 64, context, stages=1), before)


def test_a_cache_that_cannot_be_written_is_said_once_and_does_no_harm(
    dataset: Dataset, context, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "a file"))
    features = pooled_matrix(load_backbone(NAME, "none", seed=0), dataset, (1, 2), 64, context, stages=1)
    assert features.shape == (2, 576)
    assert capsys.readouterr().err.count("features are not kept") == 1


def test_features_that_are_not_finite_name_the_image(dataset: Dataset, context, weights: Path) -> None:
    network = models.get_model(NAME, weights=None)
    torch.nn.init.constant_(network.features[0][0].weight, float("nan"))
    torch.save(network.state_dict(), weights / f"{NAME}.pth")
    backbone = load_backbone(NAME, "auto", seed=0)
    with pytest.raises(MaskbridgeError, match=r"001\.png: its features are not finite; found NaN or infinity"):
        pooled_matrix(backbone, dataset, (1, 2), 64, context, stages=1)


def test_prediction_needs_the_checkpoint_alone(work: SimpleNamespace, weights: Path, auroc) -> None:
    torch.save(models.get_model(NAME, weights=None).features.state_dict(), weights / f"{NAME}.pth")
    config = knn.Config(image_size=64)
    assert work.train(knn, config).weights_from == f"{NAME}.pth"
    (weights / f"{NAME}.pth").unlink()
    assert auroc(work.predictions(knn, config)) > 0.9


def test_an_image_is_read_in_red_green_and_blue(dataset: Dataset, context, tmp_path: Path) -> None:
    """Red on the left, blue on the right, as OpenCV writes them the other way round; and so a backbone sees them."""
    dataset = Dataset.open(shutil.copytree(dataset.path, tmp_path / "colours"))
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:, :40], picture[:, 40:] = (10, 20, 230), (200, 40, 5)
    cv2.imwrite(str(dataset.image_path(1)), picture)
    square = read_square(dataset, 1, 32)
    assert square.shape == (32, 32, 3)
    assert (square[:, :16] == (230, 20, 10)).all()
    assert (square[:, 16:] == (5, 40, 200)).all()
    tensor = to_tensor(square[None], torch.device("cpu"))
    torch.testing.assert_close(tensor[0, :, 3, 4] * 255, torch.tensor([230.0, 20.0, 10.0]))
    backbone = load_backbone(NAME, "none", seed=0)
    [feature] = features(backbone, dataset, (1,), 32, context)
    expected = backbone.maps(torch.from_numpy(square.transpose(2, 0, 1)[None] / np.float32(255)))
    np.testing.assert_allclose(feature.pooled[32], expected[32].mean(dim=(2, 3))[0], rtol=1e-4, atol=1e-5)
