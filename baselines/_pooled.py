"""What the baselines on pooled features share: the backbone's options, its pass over the images, the checkpoint.

    class Config(PooledConfig): ...
    def train(data, config, weights, context):
        return fit("knn", data, config, weights, context, lambda features: {"bank": features})
    def predict(data, config, weights, context):
        yield from score(data, config, weights, context, lambda feature, model: ...)

An approach is two functions: what it keeps of the features of good images, N x D, and the score of a feature, D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines._torch import require_at_least, require_training_images, save_checkpoint
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.progress import say

#: What is smaller than this part of the largest feature may be the order of a sum.
ROUNDING = 1e-5

Tensors = Mapping[str, npt.NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True)
class PooledConfig:
    """Options of the backbone."""

    backbone: str = "auto"
    """torchvision or timm name of the network; auto: resnet18, or the torchvision one whose weights are at hand"""
    backbone_weights: str = "auto"
    """weights of the backbone: a file, auto (weights folder, cache, download), or none (random)"""
    image_size: int = 256
    """side of the square the images are resized to, in pixels"""
    stages: int = 1
    """number of the last feature maps that are averaged over the image and joined"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_at_least(self, image_size=32, stages=1)


def fit(
    approach: str,
    data: TrainData,
    config: PooledConfig,
    weights: Path,
    context: Context,
    learn: Callable[[npt.NDArray[np.float32]], Tensors],
) -> Trained:
    """Learn from the features of good images; writes that and the backbone to `model.safetensors`.

    Args:
        approach: Its name.
        data: The good images.
        config: Options.
        weights: Folder of the checkpoint.
        context: Device, seed, progress.
        learn: What is kept of the features, N x D.
    """
    import torch

    from baselines._backbones import choose_backbone, load_backbone
    from baselines._features import pooled_matrix
    from baselines._torch import parameter_count

    require_training_images(data)
    name = choose_backbone(config.backbone, config.backbone_weights)
    backbone = load_backbone(name, config.backbone_weights, seed=context.seed)
    say(f"{approach}: backbone {name}, weights from {backbone.weights_from}")
    matrix = pooled_matrix(backbone, data.dataset, data.train, config.image_size, context, stages=config.stages)
    if len(matrix) > 1 and not spread(matrix).any():
        say(f"{approach}: the features of all {len(matrix)} training images are the same")
    model = learn(matrix)
    kept = {f"model.{key}": torch.from_numpy(np.ascontiguousarray(value)) for key, value in model.items()}
    network = {f"backbone.{key}": tensor for key, tensor in backbone.network.state_dict().items()}
    facts = {"approach": approach, "options": asdict(config), "backbone": name, "weights_from": backbone.weights_from}
    save_checkpoint(weights, {**network, **kept}, facts)
    return Trained(
        parameters=parameter_count(backbone.network),
        weights_from=backbone.weights_from,
        facts={
            "backbone": name,
            "backbone_sha256": backbone.sha256,
            "feature_dimensions": matrix.shape[1],
            "kept_values": int(sum(value.size for value in model.values())),
        },
    )


def spread(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Standard deviation of each column of features, N x D; 0 where there is nothing but rounding."""
    deviation = features.std(axis=0, dtype=np.float64)
    return np.where(deviation > ROUNDING * np.abs(features).max(), deviation, 0.0)


def score(
    data: PredictData,
    config: PooledConfig,
    weights: Path,
    context: Context,
    distance: Callable[[npt.NDArray[np.float32], Tensors], float],
) -> Iterator[Prediction]:
    """Score images, one by one.

    Args:
        data: The images.
        config: Options.
        weights: Folder of the checkpoint.
        context: Device, progress.
        distance: Score of a feature, D, by what was kept.
    """
    from baselines._backbones import restore_backbone
    from baselines._features import features, joined
    from baselines._torch import load_checkpoint

    tensors, facts = load_checkpoint(weights)
    model = {key.removeprefix("model."): t.numpy() for key, t in tensors.items() if key.startswith("model.")}
    network = {key.removeprefix("backbone."): t for key, t in tensors.items() if key.startswith("backbone.")}
    backbone = restore_backbone(facts["backbone"], facts["weights_from"], network, weights)
    for feature in features(backbone, data.dataset, data.image_ids, config.image_size, context, batch=1):
        yield Prediction(image_id=feature.image_id, score=float(distance(joined(feature, config.stages), model)))
