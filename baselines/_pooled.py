"""What the baselines on pooled features share: one pass of the backbone, and scores one by one.

    class Config(PooledConfig): ...
    def train(data, config, weights, context):
        return fit("knn", data, config, weights, context, lambda features: {"bank": features})
    def predict(data, config, weights, context):
        return score(data, config, weights, context, lambda feature, model: ...)

An approach is two functions: what it learns of the features of good images, N x D, and the score of a feature, D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines._feature_model import Arrays, BackboneConfig, keep, reopen, start, tell_if_alike
from baselines._features import features, pooled
from baselines._torch import require_at_least
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained


@dataclass(frozen=True, kw_only=True)
class PooledConfig(BackboneConfig):
    """Options of pooled features."""

    stages: int = 1
    """number of the last feature maps that are averaged over the image and joined"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        require_at_least(self, stages=1)


def fit(
    approach: str,
    data: TrainData,
    config: PooledConfig,
    weights: Path,
    context: Context,
    learn: Callable[[npt.NDArray[np.float32]], Arrays],
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
    backbone = start(approach, data, config, context)
    rows = features(backbone, data.dataset, data.train, config.image_size, context)
    matrix = np.stack([pooled(row, config.stages) for row in rows])
    tell_if_alike(approach, matrix)
    return keep(weights, approach, config, backbone, learn(matrix), {"feature_dimensions": matrix.shape[1]})


def score(
    data: PredictData,
    config: PooledConfig,
    weights: Path,
    context: Context,
    distance: Callable[[npt.NDArray[np.float32], Arrays], float],
) -> Iterator[Prediction]:
    """Score images, one by one.

    Args:
        data: The images.
        config: Options.
        weights: Folder of the checkpoint.
        context: Device, progress.
        distance: Score of a feature, D, by what was kept.
    """
    backbone, model = reopen(weights)
    for row in features(backbone, data.dataset, data.image_ids, config.image_size, context, batch=1):
        yield Prediction(image_id=row.image_id, score=float(distance(pooled(row, config.stages), model)))
