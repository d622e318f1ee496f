"""PatchCore: how far the patches of an image are from the nearest ones of good images.

    maskbridge train patchcore datasets/bottle runs/bottle-patchcore-0 --fold 0 --backbone mobilenet_v2

Patch features of two middle stages of a pretrained backbone are kept for the good training images, thinned out to a
coreset by greedy k-center on a random projection; the anomaly map is the distance to the nearest one kept, the image
score the largest distance, weighed by how lonely its nearest one is: Roth et al., Towards Total Recall in Industrial
Anomaly Detection, CVPR 2022 (https://arxiv.org/abs/2106.08265).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from baselines._coreset import k_center, project
from baselines._feature_model import Arrays
from baselines._patches import PatchConfig, fit, numpy, score
from baselines._torch import require_at_least
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import OptionError
from maskbridge.progress import say

if TYPE_CHECKING:
    import torch

SUPERVISED = False
PREDICT_OPTIONS = ("blur", "neighbours")

#: Patches that a coreset is chosen from at most; of more, as many are drawn at random, the same number of each image.
MOST_PATCHES = 1_000_000
#: The default coreset: this share of the patches, or this many, whichever is more.
SHARE, LEAST = 0.01, 8000
#: Rows of the bank that distances are computed to at once.
_BANK_ROWS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Config(PatchConfig):
    """Options of PatchCore."""

    coreset: str = "auto"
    """patches that are kept: a share (0.01), a number (8000), or auto: 1 %, but at least 8000"""
    neighbours: int = 9
    """nearest patches kept that weigh the image score; 1 for the plain largest distance"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        require_at_least(self, neighbours=1)
        coreset_size(self.coreset, 1)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Fill the memory bank; writes it and the backbone to `model.safetensors`."""
    return fit("patchcore", data, config, weights, context, partial(_fill, config, context.seed), local=True)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Give each image its anomaly map and score."""
    yield from score(data, config, weights, context, partial(_measure, config.neighbours), local=True)


def coreset_size(option: str, patches: int) -> int:
    """Number of patches to keep.

    Args:
        option: `--coreset`.
        patches: How many there are.

    Raises:
        OptionError: When it is neither a share nor a number.
    """
    if option == "auto":
        return min(max(math.ceil(SHARE * patches), LEAST), patches)
    try:
        value = float(option)
    except ValueError:
        value = math.nan
    if not (0 < value < 1 or (value >= 1 and value.is_integer())):
        raise OptionError("--coreset cannot be used", found=option, expected="auto, a share below 1, or a number")
    return min(math.ceil(value * patches) if value < 1 else int(value), patches)


def nearest(patches: torch.Tensor, bank: torch.Tensor, neighbours: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances to the nearest rows of a bank, ascending, and which these are.

    Args:
        patches: P x D, float32.
        bank: M x D, float32.
        neighbours: How many, K; not more than M.

    Returns:
        P x K, float32; P x K, int64.
    """
    import torch

    squares, rows = [], []
    for start in range(0, len(bank), _BANK_ROWS):
        some = bank[start : start + _BANK_ROWS]
        between = torch.addmm(some.square().sum(dim=1), patches, some.T, alpha=-2)
        values, index = between.topk(min(neighbours, len(some)), dim=1, largest=False)
        squares.append(values)
        rows.append(index + start)
    best = torch.cat(squares, dim=1).topk(neighbours, dim=1, largest=False)
    chosen = torch.cat(rows, dim=1).gather(1, best.indices)
    exact = (patches[:, None] - bank[chosen]).square().sum(dim=2).sqrt()  # small distances do not survive the product
    order = exact.argsort(dim=1)
    return exact.gather(1, order), chosen.gather(1, order)


def _fill(config: Config, seed: int, images: Iterator[torch.Tensor], count: int) -> Arrays:
    """The memory bank, M x D, float32."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    kept: list[torch.Tensor] = []
    thinned = False
    for image in images:
        patches = image.reshape(-1, image.shape[-1])
        most = max(1, MOST_PATCHES // count)
        if len(patches) > most:
            thinned = True
            patches = patches[torch.randperm(len(patches), generator=generator)[:most].to(patches.device)]
        kept.append(patches.half())
    bank = torch.cat(kept)
    if thinned:
        say(f"patchcore: a random {len(bank)} patches, as many of each image, stand for all")
    chosen = k_center(project(bank, seed=seed), coreset_size(config.coreset, len(bank)), seed=seed)
    return numpy({"bank": bank[chosen].float()})


def _measure(
    neighbours: int, model: dict[str, torch.Tensor]
) -> Callable[[torch.Tensor], tuple[torch.Tensor, float | None]]:
    bank = model["bank"]
    count = min(neighbours, len(bank))

    def distances(patches: torch.Tensor) -> tuple[torch.Tensor, float]:
        flat = patches.reshape(-1, patches.shape[-1])
        found, rows = nearest(flat, bank)
        away = found[:, 0]
        worst = int(away.argmax())
        weight = 1.0
        if count > 1:  # the paper's equation 7: lonely patches of good images are no ground to call a patch normal
            _, around = nearest(bank[rows[worst]], bank, count)
            to_all = (bank[around[0]] - flat[worst]).square().sum(dim=1).sqrt()
            weight = float(1 - (to_all - away[worst]).exp().sum().reciprocal())
        return away.reshape(patches.shape[:2]), weight * float(away[worst])

    return distances
