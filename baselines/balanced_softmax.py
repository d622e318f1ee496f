"""Balanced softmax: a linear classifier of defect types on pretrained features that makes up for rare types.

    maskbridge train balanced-softmax datasets/bottle runs/bottle-balanced-softmax-0 --fold 0 --backbone mobilenet_v2

The loss of Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020
(https://arxiv.org/abs/2007.10740): cross-entropy of the logits plus the logarithms of the types' counts, which are left
away at prediction. The paper's meta-sampler learns how to draw batches; the head is convex and sees all images in each
step of L-BFGS, so that there is nothing to draw. It learns good images and all defect types of the training part
(supervised); gives each image a type, and 1 - p(good) as its score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from baselines._feature_model import Arrays, keep, reopen, spread, start, tell_if_alike
from baselines._features import features, pooled
from baselines._pooled import PooledConfig
from baselines._torch import require_at_least, require_choices
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.dataset import GOOD
from maskbridge.errors import MaskbridgeError

SUPERVISED = True
PRESETS: dict[str, dict[str, Any]] = {"balanced": {}, "cross-entropy": {"loss": "cross-entropy"}}

#: Rounds of L-BFGS at most; it ends before where the loss no longer falls.
_ROUNDS = 500


@dataclass(frozen=True, kw_only=True)
class Config(PooledConfig):
    """Options of the classifier."""

    loss: Literal["balanced-softmax", "cross-entropy"] = "balanced-softmax"
    """with or without the logarithms of the types' counts"""
    penalty: float = 1e-2
    """L2 penalty on the weights of standardised features"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        require_at_least(self, penalty=1e-9)
        require_choices(self)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Fit the head; writes it and the backbone to `model.safetensors`."""
    names, of_image = _types(data)
    backbone = start("balanced-softmax", data, config, context)
    rows = features(backbone, data.dataset, data.train, config.image_size, context)
    matrix = np.stack([pooled(row, config.stages) for row in rows])
    tell_if_alike("balanced-softmax", matrix)
    model = fit_head(matrix, of_image, len(names), balanced=config.loss == "balanced-softmax", penalty=config.penalty)
    ids = {category["name"]: category["id"] for category in data.dataset.categories}
    classes = np.array([ids.get(name, 0) for name in names], np.int64)
    counts = np.bincount(of_image, minlength=len(names))
    facts = {
        "feature_dimensions": matrix.shape[1],
        "images_by_type": dict(zip(names, counts.tolist(), strict=True)),
        "not_learned": sorted(set(ids) - set(names)),
    }
    return keep(weights, "balanced-softmax", config, backbone, {**model, "classes": classes}, facts)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Give each image its likeliest type, and 1 - p(good) as its score."""
    backbone, model = reopen(weights)
    names = {0: GOOD} | {category["id"]: category["name"] for category in data.dataset.categories}
    for row in features(backbone, data.dataset, data.image_ids, config.image_size, context, batch=1):
        shares = probabilities(pooled(row, config.stages), model)
        yield Prediction(
            image_id=row.image_id,
            score=float(shares[1:].sum()),
            type=names[int(model["classes"][int(shares.argmax())])],
        )


def check(data: TrainData, config: Config) -> None:
    """Refuse a fold with nothing to tell apart.

    Raises:
        MaskbridgeError: When there is no good image, or no defective one.
    """
    _types(data)


def fit_head(
    matrix: npt.NDArray[np.float32], types: npt.NDArray[np.int64], count: int, *, balanced: bool, penalty: float
) -> dict[str, npt.NDArray[Any]]:
    """Weights of a linear classifier of standardised features.

    Args:
        matrix: Features, N x D.
        types: Type of each, N, 0 to `count` - 1; each occurs.
        count: Number of types, K.
        balanced: Add the logarithms of the types' counts to the logits of training.
        penalty: Half of the weights' squared sum is taken that many times.

    Returns:
        `mean` and `scale`, D; `slopes`, K x D, and `offsets`, K, float64.
    """
    import torch

    mean, scale = matrix.mean(axis=0, dtype=np.float64), spread(matrix)
    scale = np.where(scale > 0, scale, 1.0)
    x = torch.from_numpy((matrix - mean) / scale)
    y = torch.from_numpy(types)
    prior = torch.bincount(y, minlength=count).double().log() if balanced else torch.zeros(count, dtype=torch.float64)
    slopes = torch.zeros(count, x.shape[1], dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slopes, offsets], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ slopes.T + offsets + prior, y)
        value = value + penalty / 2 * slopes.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = {"slopes": slopes.detach().numpy(), "offsets": offsets.detach().numpy()}
    return {"mean": mean, "scale": scale, **found}


def probabilities(feature: npt.NDArray[np.floating], model: Arrays) -> npt.NDArray[np.float64]:
    """Share of each type for a feature, D: K, summing to 1."""
    logits = model["slopes"] @ ((feature - model["mean"]) / model["scale"]) + model["offsets"]
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def _types(data: TrainData) -> tuple[Sequence[str], npt.NDArray[np.int64]]:
    """Types of the training part, good first, and the number of each image's.

    Raises:
        MaskbridgeError: When there is no good image, or no defective one.
    """
    kinds = [data.dataset.image_by_id[image_id].defect_type for image_id in data.train]
    names = [GOOD, *sorted(set(kinds) - {GOOD})]
    if GOOD not in kinds or len(names) < 2:
        raise MaskbridgeError(
            f"fold {data.fold} has nothing to tell apart in its training part",
            where=data.dataset.path,
            found=", ".join(sorted(set(kinds))) or "no image",
            expected="good images and at least one defect type",
        )
    return names, np.array([names.index(kind) for kind in kinds], np.int64)
