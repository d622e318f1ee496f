from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from baselines import autoencoder, deep_svdd
from baselines._backbones import load_backbone
from baselines._encoder import EncoderConfig, blank_encoder, normalised, start_encoder
from baselines._loop import _synchronised
from maskbridge.errors import OptionError, WeightsError

NAME = "shufflenet_v2_x0_5"


def test_no_backbone_is_no_encoder() -> None:
    assert start_encoder("deep-svdd", EncoderConfig(), 64, 0) is None
    assert blank_encoder(None) is None


@pytest.mark.parametrize("module", [deep_svdd, autoencoder])
def test_weights_without_a_backbone_are_refused(module) -> None:
    with pytest.raises(OptionError, match=r"--backbone-weights is of no network; found resnet18\.pth"):
        module.Config(backbone_weights="resnet18.pth")


def test_the_encoder_is_told_and_can_be_trained(capsys) -> None:
    backbone = start_encoder("deep-svdd", EncoderConfig(backbone=NAME, backbone_weights="none"), 64, 0)
    assert backbone is not None
    assert all(parameter.requires_grad for parameter in backbone.network.parameters())
    assert capsys.readouterr().err == f"deep-svdd: encoder {NAME}, weights from none\n"


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = load_backbone(NAME, "none", seed=0).network.state_dict()
    state["conv1.0.weight"] = state["conv1.0.weight"] * float("nan")
    safetensors.torch.save_file(state, tmp_path / f"{NAME}.safetensors")
    config = EncoderConfig(backbone=NAME, backbone_weights=str(tmp_path / f"{NAME}.safetensors"))
    with pytest.raises(WeightsError, match=r"has values that are not finite; found conv1\.0\.weight"):
        start_encoder("autoencoder", config, 64, 0)


def test_images_are_normalised_by_the_networks_own_numbers() -> None:
    backbone = load_backbone(NAME, "none", seed=0)
    images = torch.tensor(backbone.mean).view(1, 3, 1, 1).expand(2, 3, 4, 6)
    torch.testing.assert_close(normalised(images, backbone), torch.zeros(2, 3, 4, 6))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", NAME])
def test_a_network_for_several_gpus_computes_the_same(name: str) -> None:
    """timm's batch normalisation holds the activation, which PyTorch's own conversion drops."""
    network = load_backbone(name, "none", seed=0).network
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(images)
        fabric = SimpleNamespace(world_size=2, device=torch.device("cuda"))
        found = _synchronised(network, fabric).eval()(images)  # type: ignore[arg-type]
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in network.modules())
    torch.testing.assert_close(found, expected)
