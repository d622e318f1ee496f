"""Gaussian: the Mahalanobis distance of an image's pooled pretrained features to those of good images.

    maskbridge train gaussian datasets/bottle runs/bottle-gaussian-0 --fold 0 --backbone mobilenet_v2

One Gaussian is fitted to the features of the good training images, its covariance shrunk after Ledoit and Wolf, since
there are fewer images than dimensions: Rippel, Mertens and Merhof, Modeling the Distribution of Normal Data in
Pre-Trained Deep Features for Anomaly Detection, ICPR 2020 (https://arxiv.org/abs/2005.14140). Image score only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines._feature_model import Arrays, spread
from baselines._pooled import PooledConfig, fit, score
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained

SUPERVISED = False


@dataclass(frozen=True, kw_only=True)
class Config(PooledConfig):
    """Options of the Gaussian."""


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Fit the Gaussian; writes it and the backbone to `model.safetensors`."""
    return fit("gaussian", data, config, weights, context, fit_gaussian)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Score images, one by one, by their Mahalanobis distance."""
    yield from score(data, config, weights, context, lambda x, model: mahalanobis(x, model["mean"], model["precision"]))


def fit_gaussian(features: npt.NDArray[np.float32]) -> Arrays:
    """Mean, D, and inverse covariance, D x D, of features, N x D; the identity where features do not vary."""
    from sklearn.covariance import LedoitWolf

    mean = features.mean(axis=0, dtype=np.float64)
    if not spread(features).any():
        return {"mean": mean, "precision": np.eye(features.shape[1])}
    return {"mean": mean, "precision": LedoitWolf().fit(features.astype(np.float64)).precision_}


def mahalanobis(
    feature: npt.NDArray[np.floating], mean: npt.NDArray[np.floating], precision: npt.NDArray[np.floating]
) -> float:
    """Mahalanobis distance.

    Args:
        feature: D.
        mean: D.
        precision: Inverse covariance, D x D.

    Returns:
        The distance, at least 0.
    """
    away = feature - mean
    return float(np.sqrt(max(away @ precision @ away, 0.0)))
