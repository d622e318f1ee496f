"""k nearest neighbours: the distance of an image's pooled pretrained features to those of good images.

    maskbridge train knn datasets/bottle runs/bottle-knn-0 --fold 0 --backbone mobilenet_v2

Nothing is trained: the features of the good training images are kept, and an image's score is its mean
distance to the k nearest of them, as in Bergman, Cohen and Hoshen, Deep Nearest Neighbor Anomaly Detection,
2020 (https://arxiv.org/abs/2002.10445). Image score only, no anomaly map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines._pooled import PooledConfig, fit, score
from baselines._torch import require_at_least
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained

SUPERVISED = False
PREDICT_OPTIONS = ("neighbours",)


@dataclass(frozen=True, kw_only=True)
class Config(PooledConfig):
    """Options of k nearest neighbours."""

    neighbours: int = 3
    """number of nearest good images whose mean distance is the score"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        require_at_least(self, neighbours=1)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Keep the features of good images; writes them and the backbone to `model.safetensors`."""
    return fit("knn", data, config, weights, context, lambda features: {"bank": features})


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Score images, one by one, by their mean distance to the nearest good ones."""
    yield from score(
        data, config, weights, context, lambda x, model: nearest_distance(x, model["bank"], config.neighbours)
    )


def nearest_distance(feature: npt.NDArray[np.floating], bank: npt.NDArray[np.floating], neighbours: int) -> float:
    """Mean Euclidean distance to the nearest rows of a bank.

    Args:
        feature: D, float32.
        bank: N x D, float32, N at least 1.
        neighbours: How many; all of them where the bank has fewer.

    Returns:
        The distance, at least 0.
    """
    distances = np.sqrt(np.square(bank - feature).sum(axis=1))
    return float(np.sort(distances)[:neighbours].mean())
