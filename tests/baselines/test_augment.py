from __future__ import annotations

import pytest
import torch

from baselines._augment import AugmentConfig, view
from maskbridge.errors import OptionError


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(6, 3, 32, 32)


def test_nothing_asked_for_leaves_the_images(images: torch.Tensor) -> None:
    assert view(images, AugmentConfig()) is images


def test_a_flip_mirrors_left_and_right_of_some(images: torch.Tensor) -> None:
    seen = view(images, AugmentConfig(flip=True))
    mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(seen, images, strict=True)]
    kept = [bool(torch.equal(a, b)) for a, b in zip(seen, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert any(kept)


@pytest.mark.parametrize("change", [{"rotation": 45.0}, {"crop": 0.5}, {"colour": 0.3}])
def test_each_change_keeps_shape_and_range_and_draws_anew_for_each_image(images: torch.Tensor, change) -> None:
    same = images[:1].repeat(4, 1, 1, 1)
    seen = view(same, AugmentConfig(**change))
    assert seen.shape == same.shape
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert all(not torch.equal(seen[0], other) for other in seen[1:])


def test_a_rotation_turns_in_no_black(images: torch.Tensor) -> None:
    assert view(torch.full((8, 3, 24, 24), 0.7), AugmentConfig(rotation=45.0)).min() == pytest.approx(0.7)


def test_the_seed_decides(images: torch.Tensor) -> None:
    config = AugmentConfig(flip=True, rotation=10, crop=0.8, colour=0.1)
    torch.manual_seed(3)
    first = view(images, config)
    torch.manual_seed(3)
    assert torch.equal(view(images, config), first)


@pytest.mark.parametrize("bad", [{"rotation": -1.0}, {"crop": 0.0}, {"crop": 1.5}, {"colour": -0.1}])
def test_impossible_options_are_refused(bad) -> None:
    with pytest.raises(OptionError, match="cannot be used"):
        AugmentConfig(**bad)


def test_a_crop_keeps_the_share_that_was_asked_for_and_its_shape() -> None:
    """Ramps over the width and over the height say what part of them is left."""
    torch.manual_seed(1)
    ramp = torch.linspace(0, 1, 64)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)])
    seen = view(image.expand(40, 3, 64, 64), AugmentConfig(crop=0.5))
    width, height = (seen[:, c].amax(dim=(1, 2)) - seen[:, c].amin(dim=(1, 2)) for c in (0, 1))
    assert (width * height).min() > 0.45
    assert (width * height).min() < 0.7
    torch.testing.assert_close(width, height, atol=0.02, rtol=0)
    assert (seen[:, 0, :, -1] > seen[:, 0, :, 0]).all(), "nothing is mirrored"
    assert (seen[:, 1, -1] > seen[:, 1, 0]).all()


def test_colours_change_by_the_share_that_was_asked_for_at_most() -> None:
    torch.manual_seed(1)
    seen = view(torch.full((60, 3, 8, 12), 0.5), AugmentConfig(colour=0.3)) / 0.5
    assert 0.699 < seen.min() < 0.8
    assert 1.2 < seen.max() < 1.301


def test_a_rotation_turns_by_no_more_than_its_degrees() -> None:
    torch.manual_seed(1)
    ramp = torch.linspace(0, 1, 64)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)])
    seen = view(image.expand(40, 3, 64, 64), AugmentConfig(rotation=20.0))[:, 0, 24:40, 24:40]
    down, right = seen[:, -1, 8] - seen[:, 0, 8], seen[:, 8, -1] - seen[:, 8, 0]
    degrees = torch.rad2deg(torch.atan2(down, right))
    assert 12 < degrees.max() < 21
    assert -21 < degrees.min() < -12
