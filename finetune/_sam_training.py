"""Train SAM's mask decoder, and the neck where there is one, to find defects without a prompt.

The loss is SAM's: 20 x focal + dice on the low-resolution logits, and the squared error of the predicted IoU.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from finetune._sam_embeddings import Embeddings, low_resolution_target
from finetune._sam_model import Model
from maskbridge.approach import Context
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError
from maskbridge.files import write_bytes

FOCAL_WEIGHT, FOCAL_GAMMA = 20.0, 2.0
#: The state for `resume` is written after an epoch if this long has passed since the last time.
SAVE_SECONDS = 20.0
#: Share of the steps over which the learning rate rises.
_WARM_UP = 0.1


@dataclass(frozen=True)
class Batch:
    """Images of one step: features BxCxhxw, and targets and weights BxLxL in [0, 1]."""

    features: torch.Tensor
    target: torch.Tensor
    inside: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to train.

    Attributes:
        epochs: Passes over the defective images.
        lr: Learning rate of AdamW at its height.
        weight_decay: Its weight decay.
        batch: Images in one step.
        goods: Good images in an epoch.
        patience: Epochs without a better validation score after which training stops.
    """

    epochs: int
    lr: float
    weight_decay: float
    batch: int
    goods: int
    patience: int


@dataclass
class Progress:
    """Where training stands: what a continued training needs beside parameters and optimizer."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    best: list[torch.Tensor] = field(default_factory=list)
    history: list[list[float]] = field(default_factory=list)


class Examples:
    """Features and low-resolution targets of a dataset's images."""

    def __init__(self, dataset: Dataset, model: Model, embeddings: Embeddings) -> None:
        """Targets are made when first asked for and kept."""
        self._dataset, self._model, self._embeddings = dataset, model, embeddings
        self._targets: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def batch(self, image_ids: Sequence[int]) -> Batch:
        """Put images into one batch."""
        x = self._embeddings.batch(self._dataset, image_ids)
        low = 4 * x.shape[-1]
        pairs = [self._target(image_id, low) for image_id in image_ids]
        target, inside = (torch.stack(part).to(x.device) for part in zip(*pairs, strict=True))
        return Batch(x, target, inside)

    def _target(self, image_id: int, low: int) -> tuple[torch.Tensor, torch.Tensor]:
        if image_id not in self._targets:
            pair = low_resolution_target(self._dataset.mask(image_id), self._model.image_size, low)
            self._targets[image_id] = (torch.from_numpy(pair[0]), torch.from_numpy(pair[1]))
        return self._targets[image_id]


def fit(
    model: Model,
    examples: Examples,
    *,
    good: Sequence[int],
    defective: Sequence[int],
    val: Sequence[int],
    schedule: Schedule,
    context: Context,
) -> dict[str, Any]:
    """Train in place and keep the best epoch by `val`, or the last one where that is empty.

    Each epoch shows every defective image once, and `schedule.goods` good ones drawn anew. An epoch's order
    depends on the seed and its number alone, so that a continued training equals an uninterrupted one.

    Returns:
        Loss and validation dice of each epoch (its number where `val` is empty), and which epoch was kept.

    Raises:
        MaskbridgeError: When the loss is no longer finite.
    """
    parameters = model.freeze()
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    state_path = context.work / "sam-last.pt"
    progress = Progress()
    if context.resume and state_path.is_file():
        progress = _restore(state_path, parameters, optimizer)
    saved = time.monotonic()
    steps_per_epoch = math.ceil((len(defective) + schedule.goods) / schedule.batch)
    for epoch in context.track(range(progress.epoch, schedule.epochs), "training"):
        if epoch - progress.best_epoch > schedule.patience and val:
            break
        order = _order(good, defective, schedule, np.random.default_rng([context.seed, epoch]))
        losses = []
        for index in range(steps_per_epoch):
            done = (epoch + index / steps_per_epoch) / schedule.epochs
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * _rate(done)
            batch = examples.batch(order[index * schedule.batch : (index + 1) * schedule.batch])
            value = loss(*model.decode(model.neck(batch.features)), batch)
            if not torch.isfinite(value):
                raise MaskbridgeError("training diverged", found=f"a loss of {value}", remedy="lower --lr")
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(float(value.detach()))
        score = validation_dice(model, examples, val, schedule.batch) if val else float(epoch)
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, epoch
            progress.best = [parameter.detach().clone() for parameter in parameters]
        progress.epoch = epoch + 1
        progress.history.append([float(np.mean(losses)), score])
        if time.monotonic() - saved >= SAVE_SECONDS:
            _save(state_path, progress, parameters, optimizer)
            saved = time.monotonic()
    with torch.no_grad():
        for parameter, best in zip(parameters, progress.best, strict=True):
            parameter.copy_(best)
    return {"best_epoch": progress.best_epoch + 1, "history": progress.history}


def loss(logits: torch.Tensor, quality: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Loss of one batch.

    Args:
        logits: BxLxL.
        quality: Predicted IoU, B.
        batch: The targets.

    Returns:
        A scalar. The IoU of an image without a defect is undefined and does not count.
    """
    p, t, inside = torch.sigmoid(logits), batch.target, batch.inside
    focal = (t - p).abs() ** FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    focal = (focal * inside).sum() / inside.sum()
    p = p * inside
    area = p.sum((1, 2)) + t.sum((1, 2))
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / (area + 1)
    found, true = (logits > 0) & (inside > 0), t >= 0.5
    union = (found | true).sum((1, 2))
    iou = (found & true).sum((1, 2)) / union.clamp(min=1)
    defective = true.any(2).any(1)
    error = ((quality - iou) ** 2 * defective).sum() / defective.sum().clamp(min=1)
    return FOCAL_WEIGHT * focal + dice.mean() + error


def validation_dice(model: Model, examples: Examples, image_ids: Sequence[int], batch_size: int) -> float:
    """Soft dice of all images together, good ones included: 2 sum(pt) / (sum(p) + sum(t))."""
    both = total = 0.0
    with torch.inference_mode():
        for start in range(0, len(image_ids), batch_size):
            batch = examples.batch(image_ids[start : start + batch_size])
            p = torch.sigmoid(model.decode(model.neck(batch.features))[0]) * batch.inside
            both += float(2 * (p * batch.target).sum())
            total += float(p.sum() + batch.target.sum())
    return both / total


def _order(good: Sequence[int], defective: Sequence[int], schedule: Schedule, rng: np.random.Generator) -> list[int]:
    drawn = rng.choice(np.array(good, dtype=int), size=schedule.goods, replace=False)
    order = np.concatenate([np.array(defective, dtype=int), drawn])
    rng.shuffle(order)
    return [int(image_id) for image_id in order]


def _rate(done: float) -> float:
    """Share of the learning rate after a share of the steps: a linear rise, then half a cosine."""
    if done < _WARM_UP:
        return (done + 1e-3) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _save(path: Path, progress: Progress, parameters: list[torch.nn.Parameter], optimizer: torch.optim.AdamW) -> None:
    state = {
        **vars(progress),
        "parameters": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def _restore(path: Path, parameters: list[torch.nn.Parameter], optimizer: torch.optim.AdamW) -> Progress:
    state = torch.load(path, map_location=parameters[0].device, weights_only=True)
    with torch.no_grad():
        for parameter, saved in zip(parameters, state.pop("parameters"), strict=True):
            parameter.copy_(saved)
    optimizer.load_state_dict(state.pop("optimizer"))
    return Progress(**state)
