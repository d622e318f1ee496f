"""What the baselines on patch features share: one pass of the backbone, anomaly maps, scores.

An approach is two functions: what it learns of the patches of good images, N x h x w x D, and how far the patches of an
image, h x w x D, are from that. A patch is one place of the finest map, with the coarser maps of that place beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from baselines._feature_model import Arrays, BackboneConfig, keep, reopen, start, tell_if_alike
from baselines._features import Features, features
from baselines._maps import enlarge, smooth
from baselines._torch import Tensors, choose_device, require_at_least
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import OptionError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PatchConfig(BackboneConfig):
    """Options of patch features."""

    strides: tuple[str, ...] = ("8", "16")
    """stride of a feature map of the backbone that is used, in pixels; give it again for each"""
    blur: float = 4.0
    """standard deviation of the Gaussian that smooths the anomaly map, in pixels of the resized image; 0 for none"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        object.__setattr__(self, "strides", tuple(self.strides))
        require_at_least(self, blur=0)
        if not self.strides or not all(stride.isdecimal() for stride in self.strides):
            raise OptionError("--strides cannot be used", found=", ".join(self.strides), expected="numbers")

    @property
    def strides_used(self) -> tuple[int, ...]:
        """The strides, ascending."""
        return tuple(sorted({int(stride) for stride in self.strides}))


def fit(
    approach: str,
    data: TrainData,
    config: PatchConfig,
    weights: Path,
    context: Context,
    learn: Callable[[Iterator[torch.Tensor], int], Arrays],
    *,
    local: bool,
) -> Trained:
    """Learn from the patches of good images; writes that and the backbone to `model.safetensors`.

    Args:
        approach: Its name.
        data: The good images.
        config: Options.
        weights: Folder of the checkpoint.
        context: Device, seed, progress.
        learn: What is kept of the patches: of each image h x w x D, float32, on the device; and the number of images.
        local: Whether a patch is averaged with its neighbours.

    Raises:
        OptionError: When the backbone has no map of a stride.
    """
    backbone = start(approach, data, config, context)
    _require_strides(config, tuple(backbone.taps), backbone.name)
    device = choose_device(context.device)
    rows = features(backbone, data.dataset, data.train, config.image_size, context, strides=config.strides_used)
    pooled: list[npt.NDArray[np.float32]] = []

    def patches() -> Iterator[torch.Tensor]:
        for row in rows:
            pooled.append(np.concatenate([*row.pooled.values()]))
            yield embed(row, device, local=local)

    model = learn(patches(), len(data.train))
    tell_if_alike(approach, np.stack(pooled))
    return keep(weights, approach, config, backbone, model)


def score(
    data: PredictData,
    config: PatchConfig,
    weights: Path,
    context: Context,
    measure: Callable[[dict[str, torch.Tensor]], Callable[[torch.Tensor], tuple[torch.Tensor, float | None]]],
    *,
    local: bool,
) -> Iterator[Prediction]:
    """Give each image, one by one, an anomaly map of image_size x image_size, and a score.

    Args:
        data: The images.
        config: Options.
        weights: Folder of the checkpoint.
        context: Device, progress.
        measure: Of what was kept, on the device, makes what measures patches, h x w x D: their distances, h x w, and
            the image's score; None: the largest value of the map.
        local: As in `fit`.
    """
    import torch

    backbone, model = reopen(weights)
    device = choose_device(context.device)
    distances = measure(Tensors(weights, {key: torch.from_numpy(value).to(device) for key, value in model.items()}))
    size, strides = config.image_size, config.strides_used
    for row in features(backbone, data.dataset, data.image_ids, size, context, strides=strides, batch=1):
        with torch.inference_mode():
            low, image_score = distances(embed(row, device, local=local))
        anomaly = smooth(enlarge(low.cpu().numpy(), size), config.blur)
        yield Prediction(
            image_id=row.image_id, score=float(anomaly.max()) if image_score is None else image_score, map=anomaly
        )


def embed(row: Features, device: torch.device, *, local: bool) -> torch.Tensor:
    """Patches of an image, h x w x D, float32: its maps side by side, at the resolution of the finest one.

    Args:
        row: The image's features; its maps ascend by stride.
        device: Where to put them.
        local: Average each map over 3 x 3 places first and interpolate the coarser ones, as PatchCore does; PaDiM
            takes them as they are.
    """
    import torch
    from torch.nn import functional as F

    maps = [torch.from_numpy(each).to(device).float()[None] for _, each in sorted(row.maps.items())]
    if local:
        maps = [F.avg_pool2d(each, kernel_size=3, stride=1, padding=1) for each in maps]
    size = maps[0].shape[-2:]
    alike = [maps[0], *(F.interpolate(each, size=size, mode="bilinear" if local else "nearest") for each in maps[1:])]
    return torch.cat(alike, dim=1)[0].permute(1, 2, 0)


def numpy(tensors: dict[str, torch.Tensor]) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors as arrays."""
    return {key: tensor.cpu().numpy() for key, tensor in tensors.items()}


def _require_strides(config: PatchConfig, there: tuple[int, ...], name: str) -> None:
    missing = [str(stride) for stride in config.strides_used if stride not in there]
    if missing:
        raise OptionError(
            f"{name} has no feature map of this stride",
            found=f"--strides {missing[0]}",
            expected=", ".join(map(str, there)),
        )
