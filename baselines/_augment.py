"""Random views of training images: flip, rotation, crop and colour, one draw for each image.

    view(images, config)                    # N x 3 x S x S, float32, [0, 1] -> the same

By torchvision's transforms (https://docs.pytorch.org/vision/stable/transforms.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines._torch import require_at_least
from maskbridge.errors import OptionError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Options of random views."""

    flip: bool = False
    """mirror every second training image left to right"""
    rotation: float = 0.0
    """largest rotation of a training image, in degrees"""
    crop: float = 1.0
    """least share of an image's area that a random crop keeps; 1 for none"""
    colour: float = 0.0
    """largest relative change of brightness, contrast and saturation"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_at_least(self, rotation=0, colour=0, crop=1e-3)
        if not self.crop <= 1:
            raise OptionError("--crop cannot be used", found=self.crop, expected="at most 1")


def view(images: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    """A random view of each image.

    Args:
        images: N x 3 x S x S, float32, [0, 1].
        config: What may be drawn; nothing: the images themselves.

    Returns:
        The same shape and range; what a rotation turns in from outside is mirrored.
    """
    import torch
    from torchvision.transforms import InterpolationMode, v2

    side = images.shape[-1]
    pad = int(0.25 * side) if config.rotation else 0
    steps: list[torch.nn.Module] = [v2.RandomHorizontalFlip()] if config.flip else []
    if pad:
        steps += [
            v2.Pad(pad, padding_mode="reflect"),
            v2.RandomRotation(config.rotation, InterpolationMode.BILINEAR),
            v2.CenterCrop(side),
        ]
    if config.crop < 1:
        steps.append(v2.RandomResizedCrop(side, scale=(config.crop, 1.0), ratio=(1.0, 1.0), antialias=True))
    if config.colour:
        steps.append(v2.ColorJitter(config.colour, config.colour, config.colour))
    if not steps:
        return images
    whole = v2.Compose(steps)
    return torch.stack([whole(image) for image in images]).clamp(0, 1)
