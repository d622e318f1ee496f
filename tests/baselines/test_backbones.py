"""Networks by name, their weights, and their feature maps by stride."""

from __future__ import annotations

import io
import urllib.error
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from torchvision import models

from baselines import _backbones
from baselines._backbones import choose_backbone, load_backbone, restore_backbone
from maskbridge.errors import OptionError, WeightsError
from maskbridge.weights import stated_download

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
    torch.manual_seed(8)
    torch.save(timm.create_model("resnet10t").state_dict(), weights / "resnet10t-1234.pth")
    backbone = load_backbone("resnet10t", "auto", seed=0)
    assert backbone.weights_from == "resnet10t-1234.pth"
    assert backbone.sha256 != load_backbone("resnet10t", "none", seed=0).sha256


@pytest.mark.parametrize(
    ("name", "file_name"),
    [("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth"), ("resnet10t", "resnet10t_176_c3-f3215ab1.pth")],
)
def test_a_download_is_checked_by_the_digits_in_its_name_said_and_kept(
    name: str, file_name: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    asked: list[str] = []

    def fetch(address: str, digits: str, folder: Path) -> Path:
        asked.append(digits)
        folder.mkdir(parents=True)
        network = models.get_model(name, weights=None) if name in models.list_models() else timm.create_model(name)
        torch.save(network.state_dict(), folder / address.rsplit("/", 1)[-1])
        return folder / address.rsplit("/", 1)[-1]

    monkeypatch.setattr("maskbridge.weights.fetch", fetch)
    first, again = (load_backbone(name, "auto", seed=0) for _ in range(2))
    assert first.weights_from == again.weights_from == file_name
    assert first.sha256 == again.sha256
    assert asked == [file_name[-12:-4]]
    said = capsys.readouterr().err
    assert said.startswith("fetching https://")
    assert said.endswith("checked by 8 of the 64 digits of its SHA-256, all that its publisher states\n")


def test_a_download_with_another_hash_is_thrown_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Answer(io.BytesIO):
        headers: ClassVar[dict[str, str]] = {}

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer(b"something else"))
    with pytest.raises(WeightsError, match=r"another SHA-256 .*expected 047dcff4; put mobilenet_v3_small\*\.pth into"):
        load_backbone(NAME, "auto", seed=0)
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_network_of_torchvision_states_eight_digits_or_more() -> None:
    for name in _backbones._torchvision_names():
        assert stated_download(models.get_model_weights(name).DEFAULT.url) is not None, name


def test_without_a_download_the_error_says_who_has_the_weights() -> None:
    found = r"\(https://huggingface\.co/timm/mobilenetv4_conv_small\.[a-z0-9_]+ has one for timm\)"
    with pytest.raises(WeightsError, match=rf"weights not found.*put .*--backbone-weights none {found}$"):
        load_backbone("mobilenetv4_conv_small", "auto", seed=0)


def test_images_are_normalised_for_the_network_before_it_sees_them() -> None:
    """The first map by hand: the first convolution of the network, on (image - mean) / deviation, R, G, B."""
    backbone = load_backbone("resnet18", "none", seed=0)
    first = dict(backbone.network.named_modules())["conv1"]
    image = torch.rand(1, 3, 32, 64)
    expected = torch.empty(1, 3, 32, 64)
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected[:, channel] = (image[:, channel] - mean) / deviation
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone.maps(image)
    torch.testing.assert_close(seen[0], expected)


#: Networks of timm that are read, a few of each way of building one; then what is refused, and why.
READ = (
    "caformer_s18", "convmixer_768_32", "convnext_atto", "darknet17", "davit_tiny", "densenet121", "dla34",
    "edgenext_xx_small", "efficientvit_m0", "fastvit_t8", "focalnet_tiny_srf", "hgnetv2_b0", "lcnetv2_base",
    "maxvit_nano_rw_256", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobilevitv2_050", "poolformer_s12",
    "pvt_v2_b0", "regnetx_002", "repvit_m0_9", "resnet10t", "resnet50_mlp", "rexnet_100", "selecsls42", "shvit_s1",
    "starnet_s1", "swiftformer_xs", "tf_efficientnet_lite0", "tiny_vit_5m_224",
)  # fmt: skip
REFUSED = {
    "vit_small_patch16_dinov3": "its output is no feature map",
    "vit_base_patch16_siglip_256": "its output is no feature map",
    "hiera_small_abswin_256": "its output is no feature map",
    "mvitv2_tiny": "its output is no feature map",
    "twins_svt_small": "its output is no feature map",
    "xcit_nano_12_p8_224": "its output is no feature map",
    "naflexvit_base_patch16_gap": "its output is no feature map",
    "efficientvim_m1": "its output is no feature map",
    "swinv2_tiny_window8_256": "64 channels at stride 4, where timm states 96",
    "mambaout_femto": "64 channels at stride 4, where timm states 48",
    "sam2_hiera_tiny": "64 channels at stride 4, where timm states 96",
    "lowformer_b0": "8 channels at stride 32, where timm states 256 or 1600",
    "ghostnet_050": "56 channels at stride 16, where timm states 40",
    "inception_v3": "96 channels at stride 8, where timm states 288",
    "nasnetalarge": "84 channels at stride 4, where timm states 168",
    "vit_tiny_patch16_224": "it takes no image of 256 x 256 pixels",
    "swin_tiny_patch4_window7_224": "it takes no image of 256 x 256 pixels",
    "hiera_tiny_224": "it takes no image of 256 x 256 pixels",
    "coatnet_nano_rw_224": "it takes no image of 256 x 256 pixels",
    "mixer_s16_224": "it takes no image of 256 x 256 pixels",
    "coat_mini": "it cannot do without its head and pooling",
    "efficientvit_b0": "it cannot do without its head and pooling",
    "inception_next_atto": "it cannot do without its head and pooling",
}


def shapes_only(name: str, image_size: int = 256) -> tuple[torch.nn.Module, dict[int, str]]:
    """A network without values, and its taps."""
    with torch.device("meta"):
        network, _, _ = _backbones._build(name)
        return network, _backbones._taps(name, network.eval(), image_size)


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_would_be_read_wrongly_is_refused_before_its_weights_are_looked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_backbones, "find_backbone", lambda *_, **__: pytest.fail("its weights were looked for"))
    with (
        torch.device("meta"),
        pytest.raises(OptionError, match=f"^cannot be used as a backbone; found {name}: {REFUSED[name]}; expected "),
    ):
        load_backbone(name, "auto", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_maps_are_those_that_timm_gives_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside timm's own lists of features, and its pooled ones for the last map; and no network asks for anything."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was asked for"))
    network, taps = shapes_only(name)
    seen: dict[int, torch.Size] = {}
    for stride, tap in taps.items():
        network.get_submodule(tap).register_forward_hook(
            lambda _, __, output, stride=stride: seen.__setitem__(stride, output.shape)
        )
    with torch.device("meta"), torch.inference_mode():
        image = torch.zeros(2, 3, 256, 256)
        network(image)
        pooled = timm.create_model(name, num_classes=0).eval()(image).shape[1]
        every = tuple(range(len(network.feature_info)))
        given = timm.create_model(name, features_only=True, out_indices=every).eval()
        expected = {s: each.shape for s, each in zip(given.feature_info.reduction(), given(image), strict=True)}
    assert max(taps) in expected
    for stride, shape in seen.items():
        assert shape[0] == 2
        assert shape[1] in ([expected[stride][1], pooled] if stride == max(taps) else [expected[stride][1]])
        assert shape[2:] == expected[stride][2:]


@pytest.mark.parametrize("name", ["maxvit_nano_rw_256", "botnet26t_256"])
def test_a_network_for_one_size_is_refused_at_others(name: str) -> None:
    assert max(shapes_only(name)[1]) == 32
    with pytest.raises(OptionError, match=f"found {name}: it takes no image of 224 x 224 pixels"):
        shapes_only(name, 224)


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf",
        "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "vgg11", "wide_resnet50_2",
    ],
)  # fmt: skip
def test_every_family_of_torchvision_has_its_channels_first(name: str) -> None:
    """On an image that is not square, where height and width cannot be taken for channels."""
    backbone = load_backbone(name, "none", seed=0)
    assert max(backbone.taps) == 32
    assert name.startswith(_backbones.FAMILIES)
    maps = backbone.maps(torch.zeros(1, 3, 64, 96))
    assert {stride: each.shape[2:] for stride, each in maps.items()} == {s: (64 // s, 96 // s) for s in backbone.taps}


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

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(WeightsError, match=f"{NAME} weights not found.*offline.*--backbone-weights none"):
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
