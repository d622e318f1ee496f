"""Train SAM's mask decoder, with the neck, adapters or image encoder that go along, to answer prompts and none.

The loss is SAM's, focal and dice on the low-resolution logits and the squared error of the predicted IoU. Of a prompt
that points at no defect only the predicted IoU is judged, which shall be zero. The loss is a sum over prompts, divided
by the number of those with a defect in the whole step, and the same without prompts, so that neither the number of
processes, nor the pieces that a step is taken in, nor the prompts in one call of the decoder change what is learned.

Lightning Fabric starts the processes, casts, scales and adds the gradients up. It was chosen because it leaves the
loop as it is; its wrapper of distributed modules is not used: one sum of all gradients at the end of a step is exact
for any share of prompts, and lets a step go backward piece by piece.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric

from finetune._sam_answers import agreement, answer, calls, losses, tensors
from finetune._sam_examples import Examples, Step
from finetune._sam_model import Model
from maskbridge.approach import Context
from maskbridge.errors import MaskbridgeError, RunError
from maskbridge.files import write_bytes
from maskbridge.progress import say
from maskbridge.run_folders import gone_on_with

if TYPE_CHECKING:
    from finetune.sam import Config

#: The state for `resume` is written after a step if this long has passed since the last time, and so many times what
#: writing it took.
SAVE_SECONDS, SAVE_SHARE = 20.0, 20
#: Share of the steps over which the learning rate rises.
_WARM_UP = 0.1
#: Largest norm of all gradients together.
_MOST_GRADIENT = 1.0


@dataclass
class Progress:
    """Where training stands: what a continued training needs beside parameters and optimizer."""

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    best: list[torch.Tensor] = field(default_factory=list)
    history: list[list[float]] = field(default_factory=list)


def fit(
    fabric: Fabric,
    model: Model,
    examples: Examples,
    *,
    good: Sequence[int],
    defective: Sequence[int],
    val: Sequence[int],
    goods: int,
    origin: str,
    config: Config,
    context: Context,
) -> dict[str, Any]:
    """Train in place what is not frozen, and keep the best epoch by `val`, or the last one where that is empty.

    Each epoch shows every defective image once, and `goods` good ones drawn anew. Everything random of a step
    depends on the seed, the epoch and the image alone, so that a continued training equals an uninterrupted one.
    `origin` tells start weights apart: what was started from others is not continued.

    Returns:
        Loss and validation score of each epoch (its number where `val` is empty), and which epoch was kept.

    Raises:
        MaskbridgeError: When the loss is no longer finite.
        RunError: When what is to be continued was started from other weights.
    """
    parameters = model.trained()
    optimizer = torch.optim.AdamW(_groups(model, config), weight_decay=config.weight_decay, fused=True)
    stepper = cast(Any, fabric.setup_optimizers(optimizer))
    state_path = context.work / "sam-last.pt"
    progress = Progress()
    if context.resume:
        content = fabric.broadcast(state_path.read_bytes() if state_path.is_file() else None)
        if content is not None:
            with gone_on_with(state_path):
                progress = _restore(content, state_path, fabric, parameters, optimizer, origin)
            if fabric.is_global_zero:
                say(f"training goes on after epoch {progress.epoch} of {config.epochs} and {progress.step} steps")
    due = time.monotonic() + SAVE_SECONDS
    steps_per_epoch = math.ceil((len(defective) + goods) / config.batch)
    epochs = range(progress.epoch, config.epochs)
    for epoch in context.track(epochs, "training") if fabric.is_global_zero else epochs:
        if epoch - progress.best_epoch > config.patience and val:
            break
        order = _order(good, defective, goods, np.random.default_rng([context.seed, epoch]))
        for index in range(progress.step, steps_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = group["most"] * _rate((epoch + index / steps_per_epoch) / config.epochs)
            step = examples.step(order[index * config.batch : (index + 1) * config.batch], epoch)
            value = _backward(fabric, model, examples, step, config)
            if not math.isfinite(value):
                raise MaskbridgeError("training diverged", found=f"a loss of {value}", remedy="lower --lr")
            fabric.clip_gradients(model.sam, stepper, max_norm=_MOST_GRADIENT, error_if_nonfinite=False)
            stepper.step()
            stepper.zero_grad()
            progress.step = index + 1
            progress.losses.append(value)
            if fabric.is_global_zero and time.monotonic() >= due:
                began = time.monotonic()
                write_bytes(state_path, _state(fabric, progress, parameters, optimizer, origin))
                due = time.monotonic() + max(SAVE_SECONDS, SAVE_SHARE * (time.monotonic() - began))
        score = validation_score(fabric, model, examples, val, config) if val else float(epoch)
        if not math.isfinite(score) or not all(bool(parameter.isfinite().all()) for parameter in parameters):
            raise MaskbridgeError("training diverged", found=f"epoch {epoch + 1}", remedy="lower --lr")
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, epoch
            progress.best = [parameter.detach().clone() for parameter in parameters]
        progress.history.append([float(np.mean(progress.losses)), score])
        progress.epoch, progress.step, progress.losses = epoch + 1, 0, []
    with torch.no_grad():
        for parameter, best in zip(parameters, progress.best, strict=True):
            parameter.copy_(best)
    return {"best_epoch": progress.best_epoch + 1, "history": progress.history}


def validation_score(
    fabric: Fabric, model: Model, examples: Examples, image_ids: Sequence[int], config: Config
) -> float:
    """Dice of what is trained: without prompts soft and over all pixels together, given true boxes the mean.

    Returns:
        The mean of the two where both are trained; NaN where answers are no numbers.
    """
    mine = image_ids[fabric.global_rank :: fabric.world_size]
    sums = torch.zeros(4, dtype=torch.float64)  # twice the overlap and the area without prompts; dice and number with
    with torch.inference_mode():
        for start in range(0, len(mine), config.batch):
            step = examples.validation(mine[start : start + config.batch])
            with fabric.autocast():
                embeddings = examples.embed(step, range(len(step.images)), fabric.device)
                for items, places in calls(step, range(len(step.images)), config.chunk):
                    logits, _ = answer(model, embeddings, items, places)
                    target, inside, *_ = tensors(items, fabric.device)
                    if items[0].kind == "none":
                        p = torch.sigmoid(logits) * inside
                        sums[0] += float(2 * (p * target).sum())
                        sums[1] += float(p.sum() + target.sum())
                    else:
                        sums[2] += float(agreement(logits, target, inside)[1].sum())
                        sums[3] += len(items)
    total = _summed(fabric, sums).cpu()
    return float(np.mean([float(total[i] / total[i + 1]) for i in (0, 2) if total[i + 1] != 0]))


def _backward(fabric: Fabric, model: Model, examples: Examples, step: Step, config: Config) -> float:
    """Gradients of one step, in this process's parameters the sum over all processes; returns the loss."""
    counts = {prompted: max(step.count(prompted=prompted), 1) for prompted in (False, True)}
    mine = range(fabric.global_rank, len(step.images), fabric.world_size)
    total = torch.zeros((), dtype=torch.float64)
    for piece in _pieces(mine, config.accumulate):
        with fabric.autocast():
            embeddings = examples.embed(step, piece, fabric.device)
        learned = embeddings.requires_grad
        leaf = embeddings.detach().requires_grad_(learned)
        for items, places in calls(step, piece, config.chunk):
            with fabric.autocast():
                logits, quality = answer(model, leaf, items, places)
            each = losses(logits, quality, *tensors(items, fabric.device), focal_weight=config.focal_weight)
            value = each.sum() / counts[items[0].kind != "none"]
            fabric.backward(value)
            total += float(value.detach())
        if learned and leaf.grad is not None:
            embeddings.backward(leaf.grad)  # type: ignore[no-untyped-call]
    _sum_gradients(fabric, model.trained())
    return float(_summed(fabric, total))


def _sum_gradients(fabric: Fabric, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add gradients up over all processes; what has none in any process keeps none."""
    if fabric.world_size == 1:
        return
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=fabric.device)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = _summed(fabric, torch.cat([has, *parts]))
    has, *parts = torch.split(flat, [len(has), *(len(part) for part in parts)])
    for parameter, part, there in zip(parameters, parts, has, strict=True):
        parameter.grad = part.view_as(parameter).clone() if there else None


def _pieces(places: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    size = max(1, math.ceil(len(places) / count))
    return (places[start : start + size] for start in range(0, len(places), size))


def _summed(fabric: Fabric, value: torch.Tensor) -> torch.Tensor:
    if fabric.world_size == 1:
        return value
    total = fabric.all_reduce(value.to(fabric.device), reduce_op="sum")
    assert isinstance(total, torch.Tensor), "a tensor goes in"
    return total


def _groups(model: Model, config: Config) -> list[dict[str, Any]]:
    """Parameters by their highest learning rate."""
    neck = {id(parameter) for parameter in model.own_neck()}
    rates = {True: config.neck_lr, False: config.lr}
    groups = [
        {"params": [p for p in model.trained() if (id(p) in neck) == own], "lr": rate, "most": rate}
        for own, rate in rates.items()
    ]
    return [group for group in groups if group["params"]]


def _order(good: Sequence[int], defective: Sequence[int], goods: int, rng: np.random.Generator) -> list[int]:
    drawn = rng.choice(np.array(good, dtype=int), size=goods, replace=False)
    order = np.concatenate([np.array(defective, dtype=int), drawn])
    rng.shuffle(order)
    return [int(image_id) for image_id in order]


def _rate(done: float) -> float:
    """Share of the learning rate after a share of the steps: a linear rise, then half a cosine."""
    if done < _WARM_UP:
        return (done + 1e-3) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _state(
    fabric: Fabric,
    progress: Progress,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.AdamW,
    origin: str,
) -> bytes:
    state = {
        "origin": origin,
        "progress": vars(progress),
        "parameters": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
        "scaler": fabric.strategy.precision.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _restore(
    content: bytes,
    path: Path,
    fabric: Fabric,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.AdamW,
    origin: str,
) -> Progress:
    state = torch.load(io.BytesIO(content), map_location=parameters[0].device, weights_only=True)
    if state.get("origin") != origin:
        remedy = "give the same ones, or add --overwrite"
        raise RunError(
            "was started from other weights", where=path, found=state.get("origin"), expected=origin, remedy=remedy
        )
    with torch.no_grad():
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    fabric.strategy.precision.load_state_dict(state["scaler"])
    return Progress(**state["progress"])
