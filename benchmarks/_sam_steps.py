"""Steps of SAM's training one at a time, and what many prompts in one of them save: `sam.py prompts`.

    stepper = Stepper(model, examples, config, device=device)
    stepper.take(examples.step([4, 7], epoch=0))

A step is everything that training does: the prompts' tokens, decoder, losses, gradients, their norm, and AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from _sam_parts import official_decoder, random_boxes
from _sam_rounds import MIB, Bench, ratios, spread
from lightning_fabric import Fabric

from finetune._sam_examples import Step
from finetune._sam_launch import _deterministic
from finetune._sam_model import Model
from finetune._sam_prompts import Item
from finetune._sam_training import _MOST_GRADIENT, _backward
from finetune.sam import Config

CHUNKS = (1, 2, 4, 8, 16, 32)
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Stepper:
    """Takes steps as `finetune._sam_training.fit` does.

    Args:
        model: The model; what is to be trained is not frozen.
        examples: Makes embeddings of a step, as `finetune._sam_examples.Examples`.
        config: The training's options.
        device: Where to train.
        dtype: fp32 or bf16.
    """

    def __init__(
        self, model: Model, examples: Any, config: Config, *, device: torch.device, dtype: str = "fp32"
    ) -> None:
        """Bring the model to the device."""
        self.fabric = Fabric(accelerator=device.type, devices=1, precision=PRECISIONS[dtype])
        self.model, self.examples = model, examples
        model.sam.to(device)
        optimizer = torch.optim.AdamW(model.trained(), lr=1e-4, fused=True)
        self.optimizer: Any = self.fabric.setup_optimizers(optimizer)
        self.config = config

    def take(self, step: Step) -> None:
        """One step."""
        fabric, sam = self.fabric, self.model.sam
        with _deterministic(fabric):
            _backward(fabric, self.model, self.examples, step, self.config)
            fabric.clip_gradients(sam, self.optimizer, max_norm=_MOST_GRADIENT, error_if_nonfinite=False)
            self.optimizer.step()
            self.optimizer.zero_grad()


class MadeUp:
    """Boxes on an image whose embedding is random: SAM's official prompt encoder and decoder, without an image encoder.

    Args:
        bench: Says where, and of which size.
        count: Boxes.
    """

    def __init__(self, bench: Bench, count: int) -> None:
        """Draw them."""
        grid = bench.shape.grid
        self.bench, self.model = bench, Model("vit_b", official_decoder(grid))
        self.model.train_only("decoder")
        self.embedding = torch.randn(1, 256, grid, grid, device=bench.device)
        inside = np.ones((4 * grid, 4 * grid), np.float16)
        self.items = []
        for box in random_boxes(count, 16 * grid).numpy():
            target = np.zeros_like(inside)
            left, top, right, bottom = (box / 4).astype(int)
            target[top : bottom + 1, left : right + 1] = 1
            self.items.append(Item("box", box.reshape(2, 2), target, inside))

    def embed(self, step: Step, places: Sequence[int], device: torch.device) -> torch.Tensor:
        """The image, once for each of `places`."""
        return self.embedding.expand(len(places), -1, -1, -1)

    def stepper(self, chunk: int) -> Stepper:
        """One that trains this decoder."""
        config = Config(chunk=chunk)
        return Stepper(self.model, self, config, device=self.bench.device, dtype=self.bench.arguments.dtype)

    def step(self, some: slice) -> Step:
        """One that asks for some of the boxes."""
        return Step((0,), (self.items[some],), lambda _: self.embedding)


def prompts(bench: Bench) -> None:
    """Boxes of one image in one step against one box a step; then a step against `chunk`."""
    count = bench.arguments.count
    made = MadeUp(bench, max(count, *CHUNKS))
    stepper = made.stepper(Config().chunk)
    whole, single = made.step(slice(count)), [made.step(slice(i, i + 1)) for i in range(count)]

    def one_by_one() -> None:
        for step in single:
            stepper.take(step)

    calls = [partial(stepper.take, whole), one_by_one]
    together, apart = bench.rounds(calls)
    peaks = " : ".join(f"{bench.peak(call) / MIB:.0f}" for call in calls)
    ratio = spread(ratios(together, apart), 3)
    print(f"{count} boxes in one step : {count} steps with one box: {ratio} of the time (bound 1)")
    print(f"    {spread(together, 3)} s : {spread(apart, 3)} s   {peaks} MiB")

    most = max(CHUNKS)
    step, calls = made.step(slice(most)), []
    for chunk in CHUNKS:
        calls.append(partial(made.stepper(chunk).take, step))
    times = bench.rounds(calls)
    for chunk, call, seconds in zip(CHUNKS, calls, times, strict=True):
        ratio = spread(ratios(seconds, times[-1]))
        line = f"a step with {most} boxes, --chunk {chunk:2}: {spread(seconds, 3)} s, x {ratio} of --chunk {most}"
        print(f"{line}   {bench.peak(call) / MIB:.0f} MiB", flush=True)
