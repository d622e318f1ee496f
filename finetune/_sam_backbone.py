"""SAM's image encoder on a pretrained torchvision network.

encoder = BackboneEncoder("mobilenet_v2", img_size=384)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torchvision import models

from maskbridge.errors import OptionError

#: Channels of an image embedding, in every SAM.
EMBEDDING_CHANNELS = 256
#: Stride of the embedding.
PATCH = 16
_EXPECTED = "a torchvision classifier such as mobilenet_v2 or resnet18"
#: What follows the feature layers of a torchvision classifier.
_HEADS = ("avgpool", "fc", "classifier", "head", "heads")


class BackboneEncoder(nn.Module):
    """SAM's image encoder on a torchvision network.

    Stride 8 is folded into stride 16 (each 2x2 block becomes channels), so that no detail is lost, and joined
    with stride 16; a neck of SAM's form brings both to 256 channels.

    Args:
        backbone: Name of a torchvision classifier whose layers form one sequence.
        img_size: Side of the square input, pixels.
    """

    def __init__(self, backbone: str, img_size: int) -> None:
        """Build it with random weights."""
        super().__init__()
        self.img_size = img_size
        stages = _stages(backbone)
        self._fine, coarse, channels = _strides(stages, backbone)
        self.stages = stages[: coarse + 1]
        self.neck = _neck(channels)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Features at stride 16 of normalised images: Bx3xSxS, float -> BxCx(S/16)x(S/16)."""
        fine = x
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index == self._fine:
                fine = x
        return torch.cat([nn.functional.pixel_unshuffle(fine, 2), x], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image embeddings of normalised images: Bx3xSxS, float -> Bx256x(S/16)x(S/16)."""
        return cast(torch.Tensor, self.neck(self.trunk(x)))


def _neck(channels: int) -> nn.Sequential:
    """A neck of SAM's form, taken from an encoder that has nothing else."""
    form = ImageEncoderViT(depth=0, embed_dim=channels, img_size=PATCH, out_chans=EMBEDDING_CHANNELS)
    return cast(nn.Sequential, form.neck)


def _stages(backbone: str) -> nn.Sequential:
    if backbone not in models.list_models(module=models):  # detectors fetch weights of their own
        raise OptionError("--backbone is not known", found=backbone, expected=_EXPECTED)
    network = models.get_model(backbone, weights=None)
    if isinstance(getattr(network, "features", None), nn.Sequential):
        return cast(nn.Sequential, network.features)
    layers = {name: layer for name, layer in network.named_children() if name not in _HEADS}
    return nn.Sequential(OrderedDict(layers))


def _strides(stages: nn.Sequential, backbone: str) -> tuple[int, int, int]:
    """Index of the last stage at stride 8, of the last at stride 16, channels of the trunk's output."""
    height, width = 64, 96  # unequal, so that neither can be taken for channels
    x = torch.zeros(1, 3, height, width)
    last: dict[int, tuple[int, int]] = {}
    stages.eval()
    with torch.no_grad():
        for index, stage in enumerate(stages):
            try:
                x = stage(x)
            except (RuntimeError, AssertionError, TypeError, ValueError) as error:
                raise OptionError("--backbone is no chain of layers", found=backbone, expected=_EXPECTED) from error
            stride = height // x.shape[2] if x.ndim == 4 else 0
            if x.ndim == 4 and x.shape[2] < height // PATCH:
                break
            if not stride or x.shape[2:] != (height // stride, width // stride):
                found = f"{backbone}: {' x '.join(map(str, x.shape[1:]))} of {height} x {width} pixels"
                raise OptionError("--backbone has other maps than channels first", found=found, expected=_EXPECTED)
            last[stride] = (index, x.shape[1])
    if not {8, 16} <= set(last):
        raise OptionError("--backbone has no strides 8 and 16", found=f"{backbone}: {sorted(last)}")
    return last[8][0], last[16][0], 4 * last[8][1] + last[16][1]
