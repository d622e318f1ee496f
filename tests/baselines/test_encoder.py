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


@pytest.mark.parametrize("module", [deep_svdd, autoencoder], ids=["deep_svdd", "autoencoder"])
def test_a_pretrained_encoder_sees_normalised_images_in_training_and_in_prediction(
    module, work: SimpleNamespace, monkeypatch
) -> None:
    seen: list[torch.Tensor] = []

    def watched(make):
        def start(*arguments):
            backbone = make(*arguments)
            backbone.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
            return backbone

        return start

    monkeypatch.setattr(module, "start_encoder", watched(start_encoder))
    monkeypatch.setattr(module, "blank_encoder", watched(blank_encoder))
    config = module.Config(backbone=NAME, backbone_weights="none", image_size=64, epochs=1, batch_size=8)

    def images() -> list[torch.Tensor]:
        """What was seen, as grey levels; the networks are also tried on an image of zeros to see their sizes."""
        mean, deviation = (
            torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        return [255 * (each * deviation + mean) for each in seen if each.any()]

    work.train(module, config)
    assert sum(len(each) for each in images()) >= 20
    trained = len(seen)
    work.predictions(module, config)
    assert len(seen) >= trained + 10
    for grey in images():
        assert grey.min() > -0.01
        assert grey.max() < 255.01
        assert grey.mean() > 60
        torch.testing.assert_close(grey, grey.round(), atol=1e-3, rtol=0)
