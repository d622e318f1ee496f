from __future__ import annotations

import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import models

from baselines import _features, knn
from baselines._features import choose_backbone, load_backbone, pooled_features
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError, OptionError, WeightsError

NAME = "mobilenet_v3_small"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def test_auto_is_resnet18_where_nothing_is_at_hand() -> None:
    assert choose_backbone("auto", "auto") == "resnet18"
    assert choose_backbone("auto", "none") == "resnet18"


def test_auto_takes_the_backbone_whose_weights_are_at_hand(weights: Path) -> None:
    (weights / "mobilenet_v2_features.pth").touch()
    (weights / "sam_vit_b.pth").touch()
    assert choose_backbone("auto", "auto") == "mobilenet_v2"


def test_auto_prefers_resnet18_to_other_weights_at_hand(weights: Path) -> None:
    (weights / "mobilenet_v2_features.pth").touch()
    (weights / "resnet18-f37072fd.pth").touch()
    assert choose_backbone("auto", "auto") == "resnet18"


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("wide_resnet50_2-9.pth", "wide_resnet50_2"),
        ("tf_efficientnet_b4.pth", "efficientnet_b4"),
        ("mine.pt", "resnet18"),
    ],
)
def test_auto_goes_by_the_name_of_a_given_file(file_name: str, name: str) -> None:
    assert choose_backbone("auto", f"some/where/{file_name}") == name


def test_an_unknown_backbone_is_refused_and_the_nearest_are_named() -> None:
    with pytest.raises(OptionError, match=r"unknown backbone; found resnet81; expected .*resnet18"):
        choose_backbone("resnet81", "auto")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_features_of_every_family_are_those_before_the_classifier(name: str) -> None:
    backbone = load_backbone(name, "none", seed=5)
    torch.manual_seed(5)
    network = models.get_model(name, weights=None).eval()
    head = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    network.get_submodule(head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 64, 96)
    network(image)
    torch.testing.assert_close(backbone.network(image).mean(dim=(2, 3)), seen[0])


@pytest.mark.parametrize("kind", ["whole", "features", "safetensors"])
def test_weights_of_the_whole_network_and_of_its_features_alone_load_alike(kind: str, weights: Path) -> None:
    torch.manual_seed(8)
    network = models.get_model(NAME, weights=None)
    if kind == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(network.state_dict(), weights / f"{NAME}.safetensors")
    else:
        torch.save((network.features if kind == "features" else network).state_dict(), weights / f"{NAME}_test.pth")
    backbone = load_backbone(NAME, "auto", seed=0)
    assert backbone.weights_from.startswith(NAME)
    assert backbone.sha256 == load_backbone(NAME, "none", seed=8).sha256
    assert backbone.sha256 != load_backbone(NAME, "none", seed=9).sha256


def test_weights_of_another_backbone_do_not_fit(weights: Path) -> None:
    torch.save(models.get_model("shufflenet_v2_x0_5", weights=None).state_dict(), weights / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: the weights do not fit the network"):
        load_backbone(NAME, str(weights / "other.pth"), seed=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_weights_is_refused(suffix: str, weights: Path) -> None:
    path = weights / f"{NAME}{suffix}"
    path.write_bytes(b"not a state dict")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_backbone(NAME, "auto", seed=0)


def test_a_file_with_code_in_it_is_refused(weights: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), weights / f"{NAME}.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_backbone(NAME, "auto", seed=0)


def test_a_checkpoint_of_other_things_is_refused(weights: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, weights / f"{NAME}.pth")
    with pytest.raises(WeightsError, match="is not a state dict"):
        load_backbone(NAME, "auto", seed=0)


def test_weights_that_can_be_had_nowhere_are_an_error_not_random(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("offline")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=f"{NAME} weights not found.*offline.*--backbone-weights none"):
        load_backbone(NAME, "auto", seed=0)


def test_a_download_is_checked_and_kept_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, object]] = []

    def download(url: str, *, model_dir: str, **options: object) -> None:
        asked.append(options)
        Path(model_dir).mkdir(parents=True)
        torch.save(models.get_model(NAME, weights=None).state_dict(), Path(model_dir) / url.rsplit("/", 1)[-1])

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    first, again = (load_backbone(NAME, "auto", seed=0) for _ in range(2))
    assert first.weights_from == again.weights_from == "mobilenet_v3_small-047dcff4.pth"
    assert first.sha256 == again.sha256
    assert [options["check_hash"] for options in asked] == [True]


def test_a_download_with_another_hash_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(WeightsError, match="invalid hash value"):
        load_backbone(NAME, "auto", seed=0)


def test_a_cache_hit_is_identical_and_reads_no_image(dataset: Dataset, context, monkeypatch) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    first = pooled_features(backbone, dataset, (3, 1, 2), 64, context)
    monkeypatch.setattr(_features, "read_square", lambda *_: pytest.fail("an image was read"))
    np.testing.assert_array_equal(pooled_features(backbone, dataset, (1, 2, 3), 64, context), first[[1, 2, 0]])


def test_the_cache_keeps_sizes_and_weights_apart(dataset: Dataset, context) -> None:
    one, two = (load_backbone(NAME, "none", seed=seed) for seed in (0, 1))
    features = [pooled_features(b, dataset, (1,), size, context) for b in (one, two) for size in (32, 64)]
    assert len({f.tobytes() for f in features}) == 4


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_cache_entry_is_computed_again(damage: str, dataset: Dataset, context, tmp_path: Path) -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    first = pooled_features(backbone, dataset, (1,), 64, context)
    [entry] = (tmp_path / "cache" / "features").rglob("*.npz")
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    entry.write_bytes({"truncated": whole[:middle], "one bit": flipped, "empty": b""}[damage])
    np.testing.assert_array_equal(pooled_features(backbone, dataset, (1,), 64, context), first)
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_said_once_and_does_no_harm(
    dataset: Dataset, context, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "a file"))
    features = pooled_features(load_backbone(NAME, "none", seed=0), dataset, (1, 2), 64, context)
    assert features.shape == (2, 576)
    assert capsys.readouterr().err.count("features are not kept") == 1


def test_features_that_are_not_finite_name_the_image(dataset: Dataset, context, weights: Path) -> None:
    network = models.get_model(NAME, weights=None)
    torch.nn.init.constant_(network.features[0][0].weight, float("nan"))
    torch.save(network.state_dict(), weights / f"{NAME}.pth")
    backbone = load_backbone(NAME, "auto", seed=0)
    with pytest.raises(MaskbridgeError, match=r"001\.png: its features are not finite; found NaN or infinity"):
        pooled_features(backbone, dataset, (1, 2), 64, context)


def test_prediction_needs_the_checkpoint_alone(work: SimpleNamespace, weights: Path, auroc) -> None:
    torch.save(models.get_model(NAME, weights=None).features.state_dict(), weights / f"{NAME}.pth")
    config = knn.Config(image_size=64)
    assert work.train(knn, config).weights_from == f"{NAME}.pth"
    (weights / f"{NAME}.pth").unlink()
    assert auroc(work.predictions(knn, config)) > 0.9
