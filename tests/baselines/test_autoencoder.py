from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from baselines import autoencoder
from baselines._maps import smooth
from maskbridge.dataset import Dataset

CONFIG = autoencoder.Config(image_size=32, channels=8, bottleneck=8, epochs=2, batch_size=8)


@pytest.mark.parametrize("size", [16, 48, 128])
def test_the_output_has_the_size_of_the_input_and_lies_between_0_and_1(size: int) -> None:
    network = autoencoder.build_network(autoencoder.Config(image_size=size, channels=4, bottleneck=4))
    output = network(torch.rand(2, 3, size, size))
    assert output.shape == (2, 3, size, size)
    assert output.min() >= 0
    assert output.max() <= 1


def test_the_bottleneck_is_smaller_than_the_image() -> None:
    config = autoencoder.Config()
    assert config.bottleneck * (config.image_size // 16) ** 2 < 3 * config.image_size**2 / 10


def test_the_map_covers_the_image_and_is_highest_at_the_defect(work: SimpleNamespace, dataset: Dataset) -> None:
    config = dataclasses.replace(CONFIG, epochs=30, learning_rate=3e-3)
    work.train(autoencoder, config)
    for prediction in work.predictions(autoencoder, config, image_ids=(27, 28, 29, 30)):
        assert prediction.map.shape == (32, 32)
        assert prediction.map.dtype == np.float32
        height, width = dataset.image_by_id[prediction.image_id].size_hw
        row, column = np.unravel_index(prediction.map.argmax(), prediction.map.shape)
        y, x = (int((row + 0.5) * height / 32), int((column + 0.5) * width / 32))
        assert dataset.mask(prediction.image_id)[y, x] == 1


def test_the_score_is_the_largest_value_of_the_map(work: SimpleNamespace) -> None:
    work.train(autoencoder, CONFIG)
    for prediction in work.predictions(autoencoder, CONFIG):
        assert prediction.score == prediction.map.max()


def test_the_loss_of_held_out_good_images_is_reported_beside_that_of_training(work: SimpleNamespace) -> None:
    facts = work.train(autoencoder, CONFIG, val=(21, 22, 27)).facts
    assert facts["held_out_good_images"] == 2
    assert 0 < facts["train_loss"] < facts["loss_by_epoch"][0]
    assert facts["held_out_loss"] == pytest.approx(facts["train_loss"], rel=0.5)


def test_without_held_out_good_images_their_loss_is_none(work: SimpleNamespace) -> None:
    facts = work.train(autoencoder, CONFIG, val=(27,)).facts
    assert facts["held_out_loss"] is None
    assert facts["held_out_good_images"] == 0


def test_a_different_blur_needs_no_new_training(work: SimpleNamespace) -> None:
    work.train(autoencoder, CONFIG)
    [sharp] = work.predictions(autoencoder, dataclasses.replace(CONFIG, blur=0.0), image_ids=(27,))
    [blurred] = work.predictions(autoencoder, CONFIG, image_ids=(27,))
    np.testing.assert_allclose(blurred.map, smooth(sharp.map, CONFIG.blur), rtol=1e-5)
    assert "blur" in autoencoder.PREDICT_OPTIONS


def test_smoothing_keeps_a_constant_map_as_it_is() -> None:
    constant = np.full((12, 20), 0.25, np.float32)
    np.testing.assert_allclose(smooth(constant, 3.0), constant, rtol=1e-6)


def test_smoothing_keeps_the_mean_so_that_a_maps_mean_is_the_loss_of_its_image() -> None:
    rough = np.random.default_rng(0).random((40, 56), np.float32)
    assert smooth(rough, 5.0).mean() == pytest.approx(rough.mean(), rel=1e-4)


PRETRAINED = {"backbone": "shufflenet_v2_x0_5", "backbone_weights": "none"}


@pytest.mark.parametrize("preset", sorted(autoencoder.PRESETS))
def test_every_preset_redraws_images(preset: str, work: SimpleNamespace) -> None:
    settings = dict(autoencoder.PRESETS[preset])
    settings |= PRETRAINED if "backbone" in settings else {}
    small = {"image_size": 64, "channels": 8, "bottleneck": 8, "epochs": 2}
    config = autoencoder.Config(**settings, **small)
    trained = work.train(autoencoder, config)
    assert trained.facts["backbone"] == settings.get("backbone")
    assert trained.facts["train_loss"] > 0
    [prediction] = work.predictions(autoencoder, config, image_ids=(27,))
    assert prediction.map.shape == (64, 64)


def test_an_encoder_that_does_not_fit_is_told() -> None:
    from maskbridge.errors import OptionError

    with pytest.raises(OptionError, match="multiple of 32"):
        autoencoder.Config(backbone="resnet18", image_size=80)


def test_the_ssim_map_is_that_of_another_implementation() -> None:
    """Wang et al. 2004 with OpenCV's Gaussian window, away from the frame."""
    import cv2

    rng = np.random.default_rng(3)
    one = cv2.GaussianBlur(rng.random((3, 60, 44)).astype(np.float32).transpose(1, 2, 0), (0, 0), 1.0)
    two = np.clip(one + rng.normal(0, 0.05, one.shape), 0, 1).astype(np.float32)

    def window(x):
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    mean1, mean2 = window(one), window(two)
    var1, var2 = window(one * one) - mean1**2, window(two * two) - mean2**2
    both = window(one * two) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mean1 * mean2 + c1) * (2 * both + c2) / ((mean1**2 + mean2**2 + c1) * (var1 + var2 + c2))
    expected = 1 - ssim.mean(axis=2)
    a, b = (torch.from_numpy(x.transpose(2, 0, 1)[None]) for x in (one, two))
    found = autoencoder.residual(a, b, "ssim")[0].numpy()
    assert found.shape == (60, 44)
    np.testing.assert_allclose(found[6:-6, 6:-6], expected[6:-6, 6:-6], atol=2e-4)


def test_ssim_learns_too_and_its_map_is_of_one_minus_ssim(work: SimpleNamespace) -> None:
    config = dataclasses.replace(CONFIG, loss="ssim", epochs=6, blur=0.0)
    facts = work.train(autoencoder, config).facts
    assert facts["loss_by_epoch"][-1] < facts["loss_by_epoch"][0]
    [prediction] = work.predictions(autoencoder, config, image_ids=(27,))
    assert prediction.map.min() >= 0
    assert prediction.map.max() <= 2
