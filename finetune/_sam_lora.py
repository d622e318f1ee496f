"""Low-rank adapters for SAM: y = W x + alpha/rank · B A x, where W stays as it is and only A and B are trained.

    sam.requires_grad_(False)
    parameters = add_adapters(sam, rank=4, targets=TARGETS)     # of image encoder and mask decoder
    ...                                                         # train them, and whatever else is to be trained
    merge_adapters(sam)                                         # plain layers and keys again

A begins random and B at zero, so that nothing changes at first.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from maskbridge.errors import OptionError

#: Linear layers of the attention: of the image encoder (qkv, proj) and of the mask decoder.
TARGETS = ("qkv", "proj", "q_proj", "k_proj", "v_proj", "out_proj")


class LowRank(nn.Module):
    """A frozen linear layer and what is added to it.

    Attributes:
        base: The layer, frozen.
        lora_a: rank x in, float.
        lora_b: out x rank, float.
        scale: alpha / rank.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        """Take over a layer; the new parameters have its device and type."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """The sum as one matrix, out x in, with gradients to the adapter."""
        return self.base.weight + (self.lora_b * self.scale) @ self.lora_a

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias, out."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """…x in -> …x out."""
        y: Tensor = self.base(x)
        return y.add_(F.linear(F.linear(x, self.lora_a), self.lora_b * self.scale))  # y is needed nowhere else


def add_adapters(sam: Sam, rank: int, targets: Sequence[str], alpha: float | None = None) -> list[nn.Parameter]:
    """Put adapters around linear layers of the image encoder and the mask decoder, in place.

    Args:
        sam: A model without adapters. Nothing but the layers themselves is frozen.
        rank: Rows of A.
        targets: Last names of the layers.
        alpha: Numerator of the scale; the rank if None.

    Returns:
        A and B of each layer, in the order of the model.

    Raises:
        OptionError: When the rank is below 1, the encoder has no attention, or there is no layer of a name.
        ValueError: When the model has adapters already.
    """
    if rank < 1:
        raise OptionError("the rank of adapters is too small", found=rank, expected="1 or more")
    if any(_adapters(sam)):
        raise ValueError("the model has adapters already")
    encoder = {name for _, name, _ in _linear_layers(sam.image_encoder)}
    if not encoder & set(TARGETS):
        raise OptionError(
            "the image encoder has no attention layers to put adapters around",
            found=type(sam.image_encoder).__name__,
            remedy="use a ViT such as --arch vit_b, or --train full",
        )
    layers = [*_linear_layers(sam.image_encoder), *_linear_layers(sam.mask_decoder)]
    # layers of a list have numbers for names
    known = sorted({name for _, name, _ in layers if not name.isdecimal()})
    unknown = [target for target in targets if target not in known]
    if unknown or not targets:
        found = ", ".join(unknown) or "no name"
        raise OptionError("no layer for adapters has this name", found=found, expected=f"some of {', '.join(known)}")
    parameters = []
    for parent, name, layer in layers:
        if name in targets:
            adapter = LowRank(layer, rank, rank if alpha is None else alpha)
            setattr(parent, name, adapter)
            parameters += [adapter.lora_a, adapter.lora_b]
    return parameters


def merge_adapters(sam: Sam) -> None:
    """Add the adapters to their layers and put these back, in place; they stay frozen. Without adapters: nothing."""
    for parent, name, adapter in list(_adapters(sam)):
        with torch.no_grad():
            adapter.base.weight.copy_(adapter.weight)
        setattr(parent, name, adapter.base)


def adapter_state(sam: Sam) -> dict[str, Tensor]:
    """A and B alone, by their names in `state_dict`; `load_state_dict(..., strict=False)` takes them.

    A model whose decoder or neck is trained as well needs these too.
    """
    state: dict[str, Tensor] = sam.state_dict()
    return {name: tensor for name, tensor in state.items() if name.endswith((".lora_a", ".lora_b"))}


def _linear_layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Parent, last name and layer."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child


def _adapters(module: nn.Module) -> Iterator[tuple[nn.Module, str, LowRank]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, LowRank):
                yield parent, name, child
