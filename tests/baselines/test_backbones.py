"""Networks by name, their weights, and their feature maps by stride."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from torchvision import models

from baselines._backbones import choose_backbone, load_backbone, restore_backbone
from maskbridge.errors import OptionError, WeightsError

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
    with pytest.raises(OptionError, match=r"unknown backbone; found resnet81; expected .*resnet"):
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


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet18", {2: "relu", 4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}),
        ("mobilenet_v2", {2: "features.1", 4: "features.3", 8: "features.6", 16: "features.13", 32: "features.18"}),
        ("tf_efficientnet_lite0", {2: "blocks.0", 4: "blocks.1", 8: "blocks.2", 16: "blocks.4", 32: "classifier"}),
        ("convnext_atto", {4: "stages.0", 8: "stages.1", 16: "stages.2", 32: "head"}),
    ],
)
def test_maps_are_the_last_ones_of_each_stride(name: str, taps: dict[int, str]) -> None:
    backbone = load_backbone(name, "none", seed=0)
    assert dict(backbone.taps) == taps
    maps = backbone.maps(torch.rand(2, 3, 64, 96))
    assert {stride: each.shape[2:] for stride, each in maps.items()} == {s: (64 // s, 96 // s) for s in taps}
    kept = maps[8].clone()
    backbone.maps(torch.rand(2, 3, 64, 96))
    assert torch.equal(kept, maps[8])  # a map is not worked on any further


def test_a_timm_network_sees_images_as_it_was_trained_to() -> None:
    assert load_backbone("tf_efficientnet_lite0", "none", seed=0).mean == (0.5, 0.5, 0.5)
    assert load_backbone("resnet18d", "none", seed=0).mean == (0.485, 0.456, 0.406)


def test_a_timm_network_takes_the_weights_of_the_whole_one(weights: Path) -> None:
    import timm

    torch.manual_seed(8)
    torch.save(timm.create_model("resnet10t").state_dict(), weights / "resnet10t-1234.pth")
    backbone = load_backbone("resnet10t", "auto", seed=0)
    assert backbone.weights_from == "resnet10t-1234.pth"
    assert backbone.sha256 != load_backbone("resnet10t", "none", seed=0).sha256


def test_timms_download_is_checked(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked = []

    def download(address: str, *, model_dir: str, **options: object) -> None:
        asked.append((address, options["check_hash"]))
        Path(model_dir).mkdir(parents=True)
        torch.save(timm.create_model("resnet10t").state_dict(), Path(model_dir) / address.rsplit("/", 1)[-1])

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    backbone = load_backbone("resnet10t", "auto", seed=0)
    [(address, checked)] = asked
    assert backbone.weights_from == address.rsplit("/", 1)[-1]
    assert checked is True


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_network_without_feature_maps_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"found {name}; expected"):
        load_backbone(name, "none", seed=0)


def test_weights_of_another_backbone_do_not_fit(weights: Path) -> None:
    torch.save(models.get_model("shufflenet_v2_x0_5", weights=None).state_dict(), weights / "other.pth")
    with pytest.raises(
        WeightsError, match=r"other\.pth: the weights do not fit the network; found 0 of [0-9]+ tensors that fit; no "
    ):
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
    with pytest.raises(WeightsError, match="is not a state dict; found a dict of epoch, model"):
        load_backbone(NAME, "auto", seed=0)


def test_weights_that_can_be_had_nowhere_are_an_error_not_random(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("offline")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=f"{NAME} weights not found.*offline.*--backbone-weights none"):
        load_backbone(NAME, "auto", seed=0)


def test_a_download_is_checked_and_kept_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, object]] = []

    def download(url: str, *, model_dir: str, **options: object) -> None:
        asked.append(options)
        Path(model_dir).mkdir(parents=True)
        torch.save(models.get_model(NAME, weights=None).state_dict(), Path(model_dir) / url.rsplit("/", 1)[-1])

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    first, again = (load_backbone(NAME, "auto", seed=0) for _ in range(2))
    assert first.weights_from == again.weights_from == "mobilenet_v3_small-047dcff4.pth"
    assert first.sha256 == again.sha256
    assert [options["check_hash"] for options in asked] == [True]


def test_a_download_with_another_hash_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    with pytest.raises(WeightsError, match="invalid hash value"):
        load_backbone(NAME, "auto", seed=0)


@pytest.mark.parametrize("name", ["/etc/passwd", "hf-hub:someone/something", "local-dir:/etc", "../x"])
def test_a_checkpoint_cannot_name_a_network_to_fetch(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"unknown backbone; found {name}"):
        restore_backbone(name, "somewhere", {}, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"\x80\x02}q\0(", b"C\x05abc", b"PK\x03\x04", b"\x8a\xff"])
def test_weights_that_are_none_are_one_line_however_they_fail(weights: Path, content: bytes) -> None:
    (weights / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pth: (cannot be read as weights|is not a state dict)"):
        load_backbone(NAME, str(weights / "a.pth"), seed=0)
