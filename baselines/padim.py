"""PaDiM: how unlikely the patch at each place of an image is, given the patches of good images at that place.

    maskbridge train padim datasets/bottle runs/bottle-padim-0 --fold 0 --backbone mobilenet_v2

One Gaussian for each place, of some features drawn at random from three stages of a pretrained backbone; the anomaly
map is the Mahalanobis distance, its largest value the score: Defard et al., PaDiM, ICPR 2021
(https://arxiv.org/abs/2011.08785). It takes images that show the same thing at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from baselines._feature_model import Arrays
from baselines._patches import PatchConfig, fit, numpy, score
from baselines._torch import require_at_least
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained

if TYPE_CHECKING:
    import torch

SUPERVISED = False
PREDICT_OPTIONS = ("blur",)

#: Added to the diagonal of every covariance, as in the paper.
REGULARISATION = 0.01
#: Places whose covariances are worked on at once.
_PLACES = 256


@dataclass(frozen=True, kw_only=True)
class Config(PatchConfig):
    """Options of PaDiM."""

    strides: tuple[str, ...] = ("4", "8", "16")
    """stride of a feature map of the backbone that is used, in pixels; give it again for each"""
    dimensions: int = 100
    """features that are drawn at random; all of them where there are not more"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        require_at_least(self, dimensions=1)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Fit the Gaussians; writes them and the backbone to `model.safetensors`."""
    return fit("padim", data, config, weights, context, partial(_gaussians, config, context.seed), local=False)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Give each image its anomaly map and score."""
    yield from score(data, config, weights, context, _measure, local=False)


def _gaussians(config: Config, seed: int, images: Iterator[torch.Tensor], count: int) -> Arrays:
    """Of each of P places.

    Returns:
        `chosen`, D; `means`, P x D; `factors`, P x D x D, float32: with F the lower triangular factor of a place,
        ||F (x - mean)|| is the Mahalanobis distance of x.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows: list[torch.Tensor] = []
    chosen = torch.empty(0, dtype=torch.int64)
    for image in images:
        patches = image.reshape(-1, image.shape[-1])
        if not rows:
            wanted = min(config.dimensions, patches.shape[1])
            chosen = torch.randperm(patches.shape[1], generator=generator)[:wanted].sort().values
        rows.append(patches[:, chosen.to(patches.device)].half())
    means, factors = [], []
    for start in range(0, len(rows[0]), _PLACES):
        x = torch.stack([row[start : start + _PLACES] for row in rows]).double()  # N x places x D
        mean = x.mean(dim=0)
        away = (x - mean).transpose(0, 1)
        covariance = away.transpose(1, 2) @ away / max(count - 1, 1)
        covariance += REGULARISATION * torch.eye(x.shape[2], device=x.device, dtype=x.dtype)
        lower = torch.linalg.cholesky(covariance)
        identity = torch.eye(x.shape[2], device=x.device, dtype=x.dtype).expand_as(lower)
        factors.append(torch.linalg.solve_triangular(lower, identity, upper=False).float())
        means.append(mean.float())
    return {**numpy({"means": torch.cat(means), "factors": torch.cat(factors)}), "chosen": chosen.numpy()}


def _measure(model: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], tuple[torch.Tensor, float | None]]:
    means, factors, chosen = model["means"], model["factors"], model["chosen"]

    def distances(patches: torch.Tensor) -> tuple[torch.Tensor, None]:
        away = patches.reshape(-1, patches.shape[-1])[:, chosen] - means
        return (factors @ away[:, :, None])[:, :, 0].norm(dim=1).reshape(patches.shape[:2]), None

    return distances
