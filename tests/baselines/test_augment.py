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
