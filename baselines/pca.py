"""PCA: how far an image's pooled pretrained features lie from the subspace that those of good images span.

    maskbridge train pca datasets/bottle runs/bottle-pca-0 --fold 0 --backbone mobilenet_v2

The principal components of the features of the good training images are kept that explain a share of their variance;
an image's score is the length of what they leave over: Shyu et al., A Novel Anomaly Detection Scheme Based on
Principal Component Classifier, 2003; on pretrained features Rippel et al., ICPR 2020
(https://arxiv.org/abs/2005.14140). Image score only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines._feature_model import Arrays
from baselines._pooled import PooledConfig, fit, score
from baselines._torch import require_at_least
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import OptionError

SUPERVISED = False


@dataclass(frozen=True, kw_only=True)
class Config(PooledConfig):
    """Options of PCA."""

    variance: float = 0.95
    """share of the variance that the components explain"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        require_at_least(self, variance=0)
        if not self.variance < 1:
            raise OptionError("--variance cannot be used", found=self.variance, expected="less than 1")


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Find the components; writes them and the backbone to `model.safetensors`."""
    return fit("pca", data, config, weights, context, lambda features: components(features, config.variance))


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Score images, one by one, by what the components leave over."""
    yield from score(data, config, weights, context, lambda x, model: left_over(x, model["mean"], model["components"]))


def components(features: npt.NDArray[np.float32], variance: float) -> Arrays:
    """Mean, D, and principal components, K x D, of features, N x D: as few as explain that share of the variance."""
    mean = features.mean(axis=0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(features - mean, full_matrices=False)
    explained = np.cumsum(lengths**2)
    needed = int(np.searchsorted(explained, variance * explained[-1])) + 1 if explained[-1] > 0 else 0
    return {"mean": mean, "components": directions[:needed]}


def left_over(
    feature: npt.NDArray[np.floating], mean: npt.NDArray[np.floating], directions: npt.NDArray[np.floating]
) -> float:
    """Distance to the subspace through the mean.

    Args:
        feature: D.
        mean: D.
        directions: Orthonormal rows, K x D.
    """
    away = feature - mean
    return float(np.linalg.norm(away - (away @ directions.T) @ directions))
