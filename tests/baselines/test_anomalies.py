from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from baselines import _anomalies, _gan
from baselines._anomalies import maker, perlin, visible_change
from baselines._loop import LoopConfig, in_processes
from maskbridge.approach import Context
from maskbridge.errors import MaskbridgeError

HEIGHT, WIDTH = 90, 140


@pytest.fixture
def photo() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grey = 120 + 90 * np.sin(x / 9.0) * np.cos(y / 14.0)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("method", ["cutpaste", "perlin"])
def test_what_changed_lies_in_the_mask_and_nothing_outside_it_has(method: str, photo: np.ndarray) -> None:
    make = maker(method, photo[None], None, None)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    masks = []
    for _ in range(12):
        changed, mask = make(photo, rng)
        assert changed.shape == photo.shape
        assert changed.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        np.testing.assert_array_equal(changed[mask == 0], photo[mask == 0])
        assert cv2.absdiff(changed, photo).max() > 12
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        assert stats[1:, cv2.CC_STAT_AREA].min() >= mask.size / 2000
        masks.append(mask)
    assert len({mask.tobytes() for mask in masks}) == len(masks)


@pytest.mark.parametrize("method", ["cutpaste", "perlin"])
def test_the_random_numbers_decide(method: str, photo: np.ndarray) -> None:
    make = maker(method, photo[None], None, None)  # type: ignore[arg-type]
    one, two = (make(photo, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.parametrize(
    ("method", "size_hw"),
    [
        *itertools.product(["cut_and_paste", "blend_along_noise"], [(8, 5), (33, 700)]),
        ("blend_along_noise", (1, 3)),  # there is no piece of one row to cut
    ],
)
def test_images_of_any_size_are_changed_in_place_of_themselves(method: str, size_hw) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
    for seed in range(10):
        assert getattr(_anomalies, method)(image, np.random.default_rng(seed)).shape == image.shape


def test_faint_changes_and_specks_are_undone(photo: np.ndarray) -> None:
    changed = photo.astype(np.int64)
    changed[10:30, 10:40] += 12
    changed[50, 60] += 80
    changed[60:80, 100:120] -= 13
    some, mask = visible_change(photo, np.clip(changed, 0, 255).astype(np.uint8))
    assert mask.sum() == mask[60:80, 100:120].sum() == 400
    np.testing.assert_array_equal(some[:55], photo[:55])


def test_an_image_that_no_change_can_be_seen_on_is_told() -> None:
    image = np.full((60, 80, 3), 90, np.uint8)
    make = maker("cutpaste", image[None], None, None)  # type: ignore[arg-type]
    still = np.random.default_rng(0)

    class NoChange:
        def __getattr__(self, name):
            return getattr(still, name)

        def uniform(self, low, high, *size):
            return {(0.9, 1.1): 1.0, (-25.5, 25.5): 0.0}.get((low, high), still.uniform(low, high, *size))

    with pytest.raises(MaskbridgeError, match="no visible anomaly came of"):
        make(image, NoChange())  # type: ignore[arg-type]


def test_perlin_noise_is_zero_at_the_corners_of_cells_and_smooth_between() -> None:
    noise = perlin((64, 128), (4, 4), np.random.default_rng(2))
    assert noise.shape == (64, 128)
    assert np.abs(noise[15:17:, 31:33]).max() < 0.15
    assert np.abs(np.diff(noise, axis=0)).max() < 0.25
    assert np.abs(noise).max() <= 1.01
    assert noise.std() > 0.1


def change_by_gan(fabric, images: np.ndarray, photo: np.ndarray, seeds, *, config: LoopConfig, context: Context):
    change = _gan.perturbed_latents(images, fabric, context, steps=30)
    return [change(photo, np.random.default_rng(seed)) for seed in seeds]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_small_gan_changes_images_of_any_size(photo: np.ndarray, tmp_path: Path, devices: int) -> None:
    (tmp_path / "work").mkdir()
    context = Context(device="cpu", seed=1, work=tmp_path / "work")
    images = np.stack([np.roll(photo[:, :90], 3 * shift, axis=1) for shift in range(10)])
    config = LoopConfig(devices=devices)
    one, two, again = in_processes(change_by_gan, images, photo, [0, 1, 0], config=config, context=context)
    assert one.shape == photo.shape
    assert not np.array_equal(one, photo)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, again)


def test_a_difference_is_laid_over_where_it_is_greatest_alone(photo: np.ndarray) -> None:
    difference = np.zeros((64, 64, 3), np.float32)
    difference[10:20, 40:50] = 60
    difference[50:54, 5:9] = 30
    apart = cv2.absdiff(_gan.lay_over(photo, difference), photo).max(axis=2)
    assert apart[int(15 / 64 * HEIGHT), int(45 / 64 * WIDTH)] > 40
    assert apart[int(45 / 64 * HEIGHT) :].max() == 0


def test_the_gans_networks_have_the_shapes_they_say() -> None:
    import torch

    images = _gan.build_generator()(torch.zeros(2, _gan.LATENT, 1, 1))
    assert images.shape == (2, 3, 64, 64)
    assert _gan.build_discriminator()(images).shape == (2,)


def gan_losses(images: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What discriminator and generator are trained by."""
    import torch

    players = []
    monkeypatch.setattr(_gan, "optimise", lambda fabric, found, *_: players.extend(found))
    fabric = SimpleNamespace(device=torch.device("cpu"), global_rank=0)
    context = Context(device="cpu", seed=1, work=tmp_path)
    _gan.perturbed_latents(images, fabric, context)  # type: ignore[arg-type]
    return [player.losses for player in players]


@pytest.mark.parametrize(
    ("grey", "made", "hinge"), [(255, -0.5, 0.5), (0, -0.5, 2.5), (255, 1.5, 2.5), (51, -2.0, 1.6)]
)
def test_the_losses_of_the_gan_by_hand(grey: int, made: float, hinge: float, monkeypatch, tmp_path: Path) -> None:
    """max(0, 1 - D(real)) + max(0, 1 + D(made)) and -D(made), with the mean of an image, [-1, 1], for D."""
    import torch

    tell_apart, deceive = gan_losses(np.full((4, 40, 60, 3), grey, np.uint8), monkeypatch, tmp_path)
    networks = [lambda images: images.mean(dim=(1, 2, 3)), lambda latents: torch.full((len(latents), 3, 64, 64), made)]
    rows = torch.tensor([0, 2, 3])
    torch.testing.assert_close(tell_apart(networks, rows), torch.full((3,), hinge))
    torch.testing.assert_close(deceive(networks, rows), torch.full((3,), -made))


def learn_two_colours(fabric, images: np.ndarray, *, config: LoopConfig, context: Context):
    return _gan.perturbed_latents(images, fabric, context, steps=60)


def test_a_gan_of_two_colours_tells_them_from_noise_and_makes_them(tmp_path: Path, monkeypatch) -> None:
    import torch

    built = []
    for name in ("build_generator", "build_discriminator"):
        build = getattr(_gan, name)
        monkeypatch.setattr(_gan, name, lambda build=build: built.append(build()) or built[-1])
    monkeypatch.setattr(_gan, "WIDTH", 8)
    (tmp_path / "work").mkdir()
    colours = np.array([[230, 40, 60], [250, 70, 30]], np.uint8)
    images = np.repeat(colours, 16, axis=0)[:, None, None] * np.ones((1, 64, 64, 1), np.uint8)
    context = Context(device="cpu", seed=1, work=tmp_path / "work")
    in_processes(learn_two_colours, images, config=LoopConfig(), context=context)
    generator, discriminator = (network.eval() for network in built)
    torch.manual_seed(0)
    with torch.no_grad():
        real = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        told = [float(discriminator(each).mean()) for each in (real, torch.rand(32, 3, 64, 64) * 2 - 1)]
        made = generator(torch.randn(32, _gan.LATENT, 1, 1)).mean(dim=(0, 2, 3))
    assert told[0] > 0.5
    assert told[1] < -0.5
    assert made[0] > made[1] + 0.2
    assert made[0] > made[2] + 0.2
