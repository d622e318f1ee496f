"""What the cache of a frozen encoder's output gains over all epochs, and that nothing else changes: `sam.py cache`.

With E seconds of the encoder for an image (reading and resizing it included) and D seconds of a decoder step for an
image (drawing prompts, making targets, forward, backward, AdamW), n epochs gain n (E + D) / (E + n D). E and D are
measured apart from the trainings, D with features in memory; the gain is that of whole trainings, from an empty cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from _sam_rounds import ratios, spread
from _sam_runs import Timed, chosen, configured, difference, timed_training
from _sam_steps import Stepper

from finetune import sam
from finetune._sam_checkpoints import start
from finetune._sam_embeddings import Embeddings
from finetune._sam_examples import Examples
from maskbridge.dataset import Dataset

_CPU = torch.device("cpu")
#: Epochs of decoder steps that D is taken from; targets are made in the first.
_DECODER_EPOCHS = 4


@dataclass(frozen=True)
class Costs:
    """Seconds for an image: E of the encoder, D of a decoder step."""

    encoder: float
    decoder: float

    def gain(self, epochs: int) -> float:
        """How many times faster training is with the cache."""
        return epochs * (self.encoder + self.decoder) / (self.encoder + epochs * self.decoder)


class InMemory:
    """Features that are there, in place of the cache."""

    def __init__(self, features: dict[int, np.ndarray]) -> None:
        """Keep them by image."""
        self.features = features

    def batch(self, dataset: Dataset, images: Sequence[tuple[int, int]]) -> torch.Tensor:
        """BxCxhxw, float32."""
        return torch.from_numpy(np.stack([self.features[image_id] for image_id, _ in images])).float()


class Meter:
    """Measures E and D of a configuration.

    Args:
        dataset: The dataset.
        ids: Images to measure on.
        config: The training; its batch and number of epochs count.
    """

    def __init__(self, dataset: Dataset, ids: tuple[int, ...], config: sam.Config) -> None:
        """Build the model, and run its encoder once to warm up."""
        torch.manual_seed(0)
        self.model, self.weights = start(config)
        self.model.train_only("decoder")
        self.dataset, self.ids, self.config = dataset, ids, config
        self.embeddings = Embeddings(self.model, _CPU)
        self.embeddings.compute(dataset, ids[0])

    def costs(self) -> Costs:
        """Measure both."""
        config, features = self.config, {}
        begun = time.perf_counter()
        for image_id in self.ids:
            features[image_id] = self.embeddings.compute(self.dataset, image_id)
        encoder = (time.perf_counter() - begun) / len(self.ids)
        examples = Examples(self.dataset, self.model, InMemory(features), config, self.ids, seed=0)  # type: ignore[arg-type]
        stepper = Stepper(self.model, examples, config, device=_CPU)
        size, epochs = config.batch, []
        for epoch in range(_DECODER_EPOCHS):
            begun = time.perf_counter()
            for place in range(0, len(self.ids), size):
                stepper.take(examples.step(self.ids[place : place + size], epoch))
            epochs.append(time.perf_counter() - begun)
        later = statistics.median(epochs[1:])
        whole = max(epochs[0], later) + (config.epochs - 1) * later
        return Costs(encoder, whole / config.epochs / len(self.ids))


def cache(arguments: argparse.Namespace) -> None:
    """For each choice of prompts: E, D, gain predicted and measured, loss curves."""
    dataset = Dataset.open(arguments.dataset)
    for kinds in arguments.kinds:
        options = {"train_prompts": tuple(kinds.split("+"))}
        if arguments.full_vit_b:
            extrapolated(dataset, arguments, kinds, **options)
        else:
            measured(dataset, arguments, kinds, configured(arguments, **options))


def measured(dataset: Dataset, arguments: argparse.Namespace, kinds: str, config: sam.Config) -> None:
    ids = chosen(dataset, arguments.images)
    meter = Meter(dataset, ids, config)
    print(f"\n{kinds}: {meter.model.arch}, {meter.model.image_size} px, weights {meter.weights}, {len(ids)} images of "
          f"{dataset.name}, {config.epochs} epochs, {config.batch} images in a step")  # fmt: skip
    arms = {"off": replace(config, cache="off"), "fp16": replace(config, cache="fp16")}
    done: dict[str, list[Timed]] = {name: [] for name in arms}
    costs = []
    for number in range(arguments.repeat):
        costs.append(meter.costs())
        for name in reversed(arms) if number % 2 else arms:
            done[name].append(timed_training(dataset, ids, arms[name]))
    full = timed_training(dataset, ids, replace(config, cache="fp32"))

    predicted = [each.gain(config.epochs) for each in costs]
    walls = {name: [each.seconds for each in trainings] for name, trainings in done.items()}
    phases = {name: [each.embedding_seconds + sum(each.epochs) for each in done[name]] for name in done}
    gain = ratios(walls["off"], walls["fp16"])
    inner = ratios(phases["off"], phases["fp16"])
    encoder = spread([each.encoder for each in costs], 4)
    print(f"{kinds}: E {encoder} s, D {spread([each.decoder for each in costs], 4)} s an image")
    print(f"{kinds}: seconds of training: uncached {spread(walls['off'])}, cached {spread(walls['fp16'])}, "
          f"of which filling {spread([each.embedding_seconds for each in done['fp16']])}")  # fmt: skip
    print(f"{kinds}: gain predicted {spread(predicted)}, measured {spread(gain)}, "
          f"measured : predicted {spread(ratios(gain, predicted))} (bound .9)")  # fmt: skip
    print(f"{kinds}: without building and saving the model, which both do: gain {spread(inner)}, "
          f": predicted {spread(ratios(inner, predicted))}")  # fmt: skip
    entries = done["fp16"][0].entries
    print(f"{kinds}: cache, bytes an image: {np.mean(entries):,.0f} in fp16, {np.mean(full.entries):,.0f} in fp32; "
          f"{len(entries)} files")  # fmt: skip
    off, half = done["off"][0].losses, done["fp16"][0].losses
    apart = max(abs(a - b) for a, b in zip(full.losses, off, strict=True))
    print(f"{kinds}: loss of an epoch, fp32 cache and none: largest difference {apart:.3g} (must be 0)")
    print(
        f"{kinds}: loss of an epoch, fp16 cache and none: largest ratio less 1: {difference(half, off):.2e} (bound .01)"
    )
    for name, losses in (("off", off), ("fp32", full.losses), ("fp16", half)):
        print(f"    cache {name}: {' '.join(f'{loss:.4f}' for loss in losses)}", flush=True)


def extrapolated(dataset: Dataset, arguments: argparse.Namespace, kinds: str, **options: tuple[str, ...]) -> None:
    """ViT-B with random weights on two images; whole trainings without the cache would take hours."""
    ids = chosen(dataset, 2)
    config = configured(arguments, arch="vit_b", weights="none", **options)
    meter = Meter(dataset, ids, config)
    costs = [meter.costs() for _ in range(arguments.repeat)]
    encoder, decoder = ([getattr(each, name) for each in costs] for name in ("encoder", "decoder"))
    print(f"{kinds}: vit_b, {meter.model.image_size} px, random weights, {len(ids)} images")
    print(f"{kinds}: E {spread(encoder, 3)} s, D {spread(decoder, 3)} s an image")
    print(f"{kinds}: gain over {config.epochs} epochs, extrapolated from E and D: "
          f"{spread([each.gain(config.epochs) for each in costs])}", flush=True)  # fmt: skip
