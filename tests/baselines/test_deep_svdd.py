from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from baselines import deep_svdd
from baselines._anomalies import maker
from baselines._torch import load_checkpoint, load_images, to_tensor
from maskbridge.dataset import Dataset
from maskbridge.errors import OptionError

CPU = torch.device("cpu")
CONFIG = deep_svdd.Config(image_size=32, channels=4, embedding=16, epochs=2, batch_size=8)


def test_no_part_of_the_network_has_a_bias_or_a_bound() -> None:
    network = deep_svdd.build_network(deep_svdd.Config())
    assert all(getattr(module, "bias", None) is None for module in network.modules())
    activations = {type(m) for m in network.modules()} - {
        torch.nn.Sequential,
        torch.nn.Conv2d,
        torch.nn.Linear,
    }
    assert activations == {torch.nn.BatchNorm2d, torch.nn.LeakyReLU, torch.nn.MaxPool2d, torch.nn.Flatten}
    assert not any(m.affine for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_centre_is_the_mean_of_the_untrained_outputs_and_training_leaves_it_there(
    work: SimpleNamespace, dataset: Dataset, context, tmp_path
) -> None:
    torch.manual_seed(context.seed)
    network = deep_svdd.build_network(CONFIG).eval()
    images = load_images(dataset, dataset.split("official").train, 32, context)
    with torch.inference_mode():
        mean = network(deep_svdd.contrast_normalised(to_tensor(images, CPU))).mean(dim=0)
    expected = deep_svdd.fix_centre(mean[None])
    for epochs in (1, 3):
        work.train(deep_svdd, dataclasses.replace(CONFIG, epochs=epochs), tmp_path / str(epochs))
        tensors, _ = load_checkpoint(tmp_path / str(epochs))
        torch.testing.assert_close(tensors["centre"], expected)


def test_entries_of_the_centre_near_zero_are_pushed_away_keeping_their_sign() -> None:
    outputs = torch.tensor([[0.5, 0.02, -0.02, 0.0, -2.0], [0.7, 0.04, -0.04, 0.0, -4.0]])
    torch.testing.assert_close(deep_svdd.fix_centre(outputs), torch.tensor([0.6, 0.1, -0.1, 0.1, -3.0]))


def test_training_brings_good_images_closer_to_the_centre(work: SimpleNamespace) -> None:
    losses = work.train(deep_svdd, dataclasses.replace(CONFIG, epochs=5)).facts["loss_by_epoch"]
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 2


def test_the_score_is_the_squared_distance_to_the_centre_and_there_is_no_map(
    work: SimpleNamespace, dataset: Dataset, context
) -> None:
    work.train(deep_svdd, CONFIG)
    tensors, _ = load_checkpoint(work.folder)
    centre = tensors.pop("centre").numpy()
    network = deep_svdd.build_network(CONFIG).eval()
    network.load_state_dict({name.removeprefix("network."): t for name, t in tensors.items()})
    [prediction] = work.predictions(deep_svdd, CONFIG, image_ids=(27,))
    with torch.inference_mode():
        output = network(deep_svdd.contrast_normalised(to_tensor(load_images(dataset, [27], 32, context), CPU)))
    assert prediction.score == pytest.approx(float(((output[0].numpy() - centre) ** 2).sum()), rel=1e-4)
    assert prediction.map is None


def test_contrast_normalisation_gives_zero_mean_and_unit_mean_absolute_value() -> None:
    images = np.random.default_rng(0).integers(0, 200, (2, 16, 24, 3), dtype=np.uint8)
    tensor = deep_svdd.contrast_normalised(to_tensor(images, CPU))
    assert tensor.shape == (2, 3, 16, 24)
    torch.testing.assert_close(tensor.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(tensor.abs().mean(dim=(1, 2, 3)), torch.ones(2))


def test_an_image_of_one_colour_is_normalised_to_zero() -> None:
    assert not deep_svdd.contrast_normalised(to_tensor(np.full((1, 8, 16, 3), 77, np.uint8), CPU)).abs().max() > 1e-3


@pytest.mark.parametrize("point", [(0.0, 0.0, 0.0), (0.1, -0.2, 0.3)])
def test_embeddings_of_one_point_have_collapsed(point: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    untrained, noise, centre = torch.randn(30, 3), torch.randn(30, 3), torch.tensor([0.1, -0.2, 0.3])
    assert deep_svdd.has_collapsed(untrained, torch.tensor(point) + 1e-4 * noise, centre)
    assert not deep_svdd.has_collapsed(untrained, centre + 0.05 * noise, centre)
    assert not deep_svdd.has_collapsed(untrained, untrained, centre)


def test_collapse_is_said(work: SimpleNamespace, capsys) -> None:
    """A decay this strong leaves nothing of the weights."""
    config = dataclasses.replace(CONFIG, weight_decay=1e4, learning_rate=3e-3, epochs=40)
    assert work.train(deep_svdd, config).facts["collapsed"] is True
    assert capsys.readouterr().err.startswith("deep-svdd has collapsed: all images have the same embedding")


def test_a_training_that_has_not_collapsed_says_nothing(work: SimpleNamespace, capsys) -> None:
    assert work.train(deep_svdd, CONFIG).facts["collapsed"] is False
    assert capsys.readouterr().err == ""


def test_the_weights_come_from_nowhere(work: SimpleNamespace) -> None:
    trained = work.train(deep_svdd, CONFIG)
    assert trained.weights_from == "none"
    assert trained.parameters == sum(p.numel() for p in deep_svdd.build_network(CONFIG).parameters())


PRETRAINED = {"backbone": "shufflenet_v2_x0_5", "backbone_weights": "none", "image_size": 64, "epochs": 1}


@pytest.mark.parametrize("preset", sorted(deep_svdd.PRESETS))
def test_every_preset_trains_and_scores_every_image(preset: str, work: SimpleNamespace) -> None:
    settings = dict(deep_svdd.PRESETS[preset])
    settings |= PRETRAINED if "backbone" in settings else {"image_size": 32, "channels": 4, "epochs": 1}
    config = deep_svdd.Config(**settings, embedding=16)
    facts = work.train(deep_svdd, config).facts
    assert facts["backbone"] == (PRETRAINED["backbone"] if "backbone" in settings else None)
    scores = [prediction.score for prediction in work.predictions(deep_svdd, config)]
    assert len(scores) == 10
    assert min(scores) >= 0


def test_no_bias_or_normalisation_of_a_pretrained_encoder_is_trained() -> None:
    from baselines._backbones import load_backbone

    for name in ("shufflenet_v2_x0_5", "vgg11"):
        backbone = load_backbone(name, "none", seed=0)
        backbone.network.requires_grad_(True)
        network = deep_svdd.build_network(deep_svdd.Config(**{**PRETRAINED, "backbone": name}), backbone)
        free = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
        assert "embedding.weight" in free
        assert len(free) > 5
        assert not any(key.endswith("bias") for key in free)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_training_moves_the_encoder_and_leaves_its_statistics(work: SimpleNamespace, tmp_path) -> None:
    config = deep_svdd.Config(**PRETRAINED, learning_rate=1e-2, embedding=16)
    tensors = []
    for epochs in (1, 3):
        work.train(deep_svdd, dataclasses.replace(config, epochs=epochs), tmp_path / str(epochs))
        tensors.append(load_checkpoint(tmp_path / str(epochs))[0])
    changed = {key for key in tensors[0] if not torch.equal(tensors[0][key], tensors[1][key])}
    assert any("encoder" in key for key in changed)
    assert not any("running" in key or key.endswith("bias") for key in changed)


def test_the_mahalanobis_score_is_the_distance_to_the_embeddings_of_training(
    work: SimpleNamespace, dataset: Dataset, context
) -> None:
    from baselines.gaussian import fit_gaussian, mahalanobis

    config = dataclasses.replace(CONFIG, score="mahalanobis")
    work.train(deep_svdd, config)
    tensors, _ = load_checkpoint(work.folder)
    network = deep_svdd.build_network(config)
    network.load_state_dict({k.removeprefix("network."): t for k, t in tensors.items() if k.startswith("network.")})
    split = dataset.split("official")
    with torch.inference_mode():
        train, test = (
            network.eval()(
                deep_svdd.contrast_normalised(to_tensor(load_images(dataset, ids, 32, context), CPU))
            ).numpy()
            for ids in (split.train, split.test)
        )
    fitted = fit_gaussian(train)
    scores = [prediction.score for prediction in work.predictions(deep_svdd, config)]
    expected = [mahalanobis(row, fitted["mean"], fitted["precision"]) for row in test]
    np.testing.assert_allclose(scores, expected, rtol=1e-3)


@pytest.mark.parametrize("method", ["cutpaste", "perlin"])
def test_made_anomalies_are_pushed_away_from_the_centre(
    method: str, work: SimpleNamespace, dataset: Dataset, context, tmp_path
) -> None:
    images = load_images(dataset, dataset.split("official").train, 32, context)
    rng, make = np.random.default_rng(0), maker(method, images, None, None)  # type: ignore[arg-type]
    made = to_tensor(np.stack([make(image, rng)[0] for image in images]), CPU)
    config = dataclasses.replace(CONFIG, epochs=8, learning_rate=1e-3)
    far = []
    for name, anomalies in (("plain", "none"), ("apart", method)):
        changed = dataclasses.replace(config, anomalies=anomalies, anomaly_weight=100.0)
        work.train(deep_svdd, changed, tmp_path / name)
        tensors, _ = load_checkpoint(tmp_path / name)
        centre, network = tensors.pop("centre"), deep_svdd.build_network(config).eval()
        network.load_state_dict({key.removeprefix("network."): tensor for key, tensor in tensors.items()})
        with torch.inference_mode():
            embedded = network(deep_svdd.contrast_normalised(made))
        far.append(float((embedded - centre).square().sum(dim=1).mean()))
    assert far[1] > 2 * far[0]


def test_an_unknown_way_of_making_anomalies_is_refused() -> None:
    with pytest.raises(OptionError, match="--anomalies is unknown; found paint; expected none, gan, cutpaste, perlin"):
        deep_svdd.Config(anomalies="paint")  # type: ignore[arg-type]
