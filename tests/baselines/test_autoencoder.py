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
