"""A pretrained backbone that is trained on: its options, and its start.

backbone = start_encoder("deep-svdd", config, 224, context.seed)    # None: the approach's own small network
normalised(images, backbone)                                        # N x 3 x S x S, [0, 1] -> what it takes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baselines._backbones import Backbone, choose_backbone, load_backbone
from maskbridge.errors import OptionError, WeightsError
from maskbridge.progress import say_once
from maskbridge.weights import AUTO, NONE, local_backbone

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Options of a pretrained encoder."""

    backbone: str = "none"
    """torchvision or timm name of a pretrained encoder; auto: resnet18, or the torchvision one whose weights are at
    hand; none: the small network of the paper, from scratch"""
    backbone_weights: str = "auto"
    """weights the encoder starts from: a file, auto (weights folder, cache, else a download checked
    by the 8 digits of its SHA-256 that its publisher states), or none (random)"""

    def __post_init__(self) -> None:
        """Refuse weights of no network."""
        if self.backbone == NONE and self.backbone_weights not in (AUTO, NONE):
            raise OptionError(
                "--backbone-weights is of no network", found=self.backbone_weights, expected="--backbone NAME beside it"
            )

    def start_files(self) -> list[Path]:
        """The file of the encoder."""
        if self.backbone == NONE:
            return []
        return local_backbone(choose_backbone(self.backbone, self.backbone_weights), self.backbone_weights)


def start_encoder(approach: str, config: EncoderConfig, image_size: int, seed: int) -> Backbone | None:
    """The backbone as it is before training, its parameters free; told on standard error.

    Args:
        approach: Its name.
        config: Options.
        image_size: Side of the images that it will be given, in pixels.
        seed: Seed of random initialisation.

    Raises:
        MaskbridgeError: When it cannot be had.
    """
    if config.backbone == NONE:
        return None
    name = choose_backbone(config.backbone, config.backbone_weights)
    backbone = load_backbone(name, config.backbone_weights, seed=seed, image_size=image_size)
    say_once(f"{approach}: encoder {name}, weights from {backbone.weights_from}")
    broken = [key for key, tensor in backbone.network.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError("has values that are not finite", where=backbone.weights_from, found=broken[0])
    backbone.network.requires_grad_(True)
    return backbone


def blank_encoder(name: str | None) -> Backbone | None:
    """The same network with any weights, for those of a checkpoint."""
    return None if name is None else load_backbone(name, NONE, seed=0)


def normalised(images: torch.Tensor, backbone: Backbone) -> torch.Tensor:
    """Images as the backbone takes them: N x 3 x S x S, float32, [0, 1] -> the same shape."""
    import torch

    mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in (backbone.mean, backbone.std))
    return (images - mean) / std
