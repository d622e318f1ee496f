"""One-class SVM: how far an image's pooled pretrained features lie outside the region of those of good images.

    maskbridge train ocsvm datasets/bottle runs/bottle-ocsvm-0 --fold 0 --backbone mobilenet_v2

Schoelkopf et al., Estimating the Support of a High-Dimensional Distribution, Neural Computation 13(7), 2001
(https://doi.org/10.1162/089976601750264965), by scikit-learn (libsvm), with a Gaussian kernel on features that are
standardised first. Image score only: minus the decision value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines._feature_model import Arrays, spread
from baselines._pooled import PooledConfig, fit, score
from baselines._torch import require_at_least
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import OptionError

SUPERVISED = False


@dataclass(frozen=True, kw_only=True)
class Config(PooledConfig):
    """Options of the one-class SVM."""

    nu: float = 0.1
    """share of the good training images that may lie outside, at most"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        require_at_least(self, nu=1e-6)
        if not self.nu <= 1:
            raise OptionError("--nu cannot be used", found=self.nu, expected="at most 1")


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Fit the machine; writes its support vectors and the backbone to `model.safetensors`."""
    return fit("ocsvm", data, config, weights, context, lambda features: support(features, config.nu))


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Score images, one by one, by minus the decision value."""
    yield from score(data, config, weights, context, outside)


def support(features: npt.NDArray[np.float32], nu: float) -> Arrays:
    """A one-class SVM of features, N x D.

    Returns:
        `mean` and `scale`, D; support `vectors`, S x D, standardised, and their `weights`, S; `offset` and `gamma`, 1.
    """
    from sklearn.svm import OneClassSVM

    mean, scale = features.mean(axis=0, dtype=np.float64), spread(features)
    scale = np.where(scale > 0, scale, 1.0)
    standard = (features - mean) / scale
    variance = float(standard.var()) if spread(features).any() else 1.0
    gamma = 1 / (standard.shape[1] * variance)
    machine = OneClassSVM(nu=nu, gamma=gamma).fit(standard)
    return {
        "mean": mean,
        "scale": scale,
        "vectors": machine.support_vectors_,
        "weights": machine.dual_coef_[0],
        "offset": machine.intercept_,
        "gamma": np.array([gamma]),
    }


def outside(feature: npt.NDArray[np.floating], model: Arrays) -> float:
    """Minus the decision value of a feature, D; above 0 outside."""
    standard = (feature - model["mean"]) / model["scale"]
    kernel = np.exp(-model["gamma"] * np.square(model["vectors"] - standard).sum(axis=1))
    return -float(model["weights"] @ kernel + model["offset"][0])
