"""k nearest neighbours: the distance of an image's pooled pretrained features to those of good images.

    maskbridge train knn datasets/bottle runs/bottle-knn-0 --fold 0 --backbone mobilenet_v2

Nothing is trained: the features of the good training images are kept, and an image's score is its mean
distance to the k nearest of them, as in Bergman, Cohen and Hoshen, Deep Nearest Neighbor Anomaly Detection,
2020 (https://arxiv.org/abs/2002.10445). Image score only, no anomaly map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baselines._features import choose_backbone, load_backbone, pooled_features, restore_backbone
from baselines._torch import (
    load_checkpoint,
    parameter_count,
    require_at_least,
    require_training_images,
    save_checkpoint,
)
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.progress import say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SUPERVISED = False
PREDICT_OPTIONS = ("neighbours",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of k nearest neighbours."""

    backbone: str = "auto"
    """torchvision name of the network; auto: resnet18, or the one whose weights are at hand"""
    backbone_weights: str = "auto"
    """weights of the backbone: a file, auto (weights folder, cache, download), or none (random)"""
    image_size: int = 256
    """side of the square the images are resized to, in pixels"""
    neighbours: int = 3
    """number of nearest good images whose mean distance is the score"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_at_least(self, image_size=32, neighbours=1)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Keep the features of good images; writes them and the backbone to `model.safetensors`."""
    import torch

    require_training_images(data)
    name = choose_backbone(config.backbone, config.backbone_weights)
    backbone = load_backbone(name, config.backbone_weights, seed=context.seed)
    say(f"knn: backbone {name}, weights from {backbone.weights_from}")
    bank = pooled_features(backbone, data.dataset, data.train, config.image_size, context)
    tensors = {f"backbone.{key}": tensor for key, tensor in backbone.network.state_dict().items()}
    save_checkpoint(
        weights,
        {**tensors, "bank": torch.from_numpy(bank)},
        {
            "approach": "knn",
            "options": asdict(config),
            "backbone": name,
            "weights_from": backbone.weights_from,
        },
    )
    return Trained(
        parameters=parameter_count(backbone.network),
        weights_from=backbone.weights_from,
        facts={
            "backbone": name,
            "backbone_sha256": backbone.sha256,
            "bank_size": len(bank),
            "feature_dimensions": bank.shape[1],
        },
    )


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Score images, one by one, by their mean distance to the nearest good ones."""
    tensors, facts = load_checkpoint(weights)
    bank = tensors.pop("bank").numpy()
    backbone = restore_backbone(
        facts["backbone"],
        facts["weights_from"],
        {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()},
        weights,
    )
    for image_id in data.image_ids:
        feature = pooled_features(backbone, data.dataset, [image_id], config.image_size, context, cached=False)[0]
        yield Prediction(image_id=image_id, score=nearest_distance(feature, bank, config.neighbours))


def nearest_distance(feature: npt.NDArray[np.float32], bank: npt.NDArray[np.float32], neighbours: int) -> float:
    """Mean Euclidean distance to the nearest rows of a bank.

    Args:
        feature: D, float32.
        bank: N x D, float32, N at least 1.
        neighbours: How many; all of them where the bank has fewer.

    Returns:
        The distance, at least 0.
    """
    import numpy as np

    distances = np.sqrt(np.square(bank - feature).sum(axis=1))
    return float(np.sort(distances)[:neighbours].mean())
