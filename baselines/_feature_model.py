"""A model on features: a pretrained backbone that stays as it is, and what was learned of its features.

backbone = start("knn", data, config, context)
return keep(weights, "knn", config, backbone, {"bank": features})       # -> Trained
backbone, model = reopen(weights)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines._backbones import Backbone, choose_backbone, load_backbone, restore_backbone
from baselines._torch import (
    Tensors,
    load_checkpoint,
    parameter_count,
    require_at_least,
    require_training_images,
    save_checkpoint,
)
from maskbridge.approach import Context, TrainData, Trained
from maskbridge.errors import WeightsError
from maskbridge.progress import say, say_once
from maskbridge.weights import local_backbone

#: What is smaller than this part of the largest feature may be the order of a sum.
ROUNDING = 1e-5
#: What was learned, by name.
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Options of the backbone."""

    backbone: str = "auto"
    """torchvision or timm name of the network; auto: resnet18, or the torchvision one whose weights are at hand"""
    backbone_weights: str = "auto"
    """weights of the backbone: a file, auto (weights folder, cache, else a download checked
    by the 8 digits of its SHA-256 that its publisher states), or none (random)"""
    image_size: int = 256
    """side of the square the images are resized to, in pixels"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_at_least(self, image_size=32)

    def start_files(self) -> list[Path]:
        """The file of the backbone."""
        return local_backbone(choose_backbone(self.backbone, self.backbone_weights), self.backbone_weights)


def start(approach: str, data: TrainData, config: BackboneConfig, context: Context) -> Backbone:
    """The backbone, told on standard error.

    Raises:
        MaskbridgeError: When there is no good image to learn from, or the backbone cannot be had.
    """
    require_training_images(data)
    name = choose_backbone(config.backbone, config.backbone_weights)
    backbone = load_backbone(name, config.backbone_weights, seed=context.seed, image_size=config.image_size)
    say_once(f"{approach}: backbone {name}, weights from {backbone.weights_from}")
    return backbone


def keep(
    weights: Path,
    approach: str,
    config: BackboneConfig,
    backbone: Backbone,
    model: Arrays,
    facts: Mapping[str, Any] | None = None,
) -> Trained:
    """Write backbone and model to `model.safetensors`, and say what run.json shall keep."""
    import torch

    learned = {f"model.{key}": torch.from_numpy(np.ascontiguousarray(value)) for key, value in model.items()}
    network = {f"backbone.{key}": tensor for key, tensor in backbone.network.state_dict().items()}
    header = {
        "approach": approach,
        "options": asdict(config),
        "backbone": backbone.name,
        "weights_from": backbone.weights_from,
    }
    save_checkpoint(weights, {**network, **learned}, header)
    return Trained(
        parameters=parameter_count(backbone.network),
        weights_from=backbone.weights_from,
        facts={
            "backbone": backbone.name,
            "backbone_sha256": backbone.sha256,
            "learned_values": int(sum(value.size for value in model.values())),
            **(facts or {}),
        },
    )


def reopen(weights: Path) -> tuple[Backbone, dict[str, npt.NDArray[Any]]]:
    """Backbone and model of a checkpoint.

    Raises:
        WeightsError: When it is missing, damaged or of another origin.
    """
    tensors, header = load_checkpoint(weights)
    parts: dict[str, dict[str, Any]] = {"model": {}, "backbone": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = tensor
    known = header.get("backbone")
    if known is None:
        raise WeightsError("is no checkpoint of a backbone and a model", where=weights, remedy="train again")
    backbone = restore_backbone(known, header.get("weights_from", "unknown"), parts["backbone"], weights)
    return backbone, Tensors(weights, {key: tensor.numpy() for key, tensor in parts["model"].items()})


def tell_if_alike(approach: str, matrix: npt.NDArray[np.float32]) -> bool:
    """Whether features, N x D, do not vary, which is said on standard error."""
    alike = len(matrix) > 1 and not spread(matrix).any()
    if alike:
        say(f"{approach}: the features of all {len(matrix)} training images are the same")
    return alike


def spread(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Standard deviation of each column of features, N x D; 0 where there is nothing but rounding."""
    deviation = matrix.std(axis=0, dtype=np.float64)
    return np.where(deviation > ROUNDING * np.abs(matrix).max(), deviation, 0.0)
