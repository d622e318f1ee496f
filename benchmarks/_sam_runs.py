"""Whole trainings through `finetune.sam.train`, timed; and what a second process gains: `sam.py workers`.

done = timed_training(dataset, ids, sam.Config(epochs=20), folder=None)
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _sam_rounds import ratios, spread

from finetune import sam
from maskbridge.approach import Context, Item, TrainData
from maskbridge.dataset import Dataset
from maskbridge.files import read_json, write_json
from maskbridge.progress import QUIET_VARIABLE
from maskbridge.weights import CACHE_VARIABLE

EPOCHS_FILE = "training.json"


@dataclass(frozen=True, kw_only=True)
class Clocked(Context):
    """A context that notes in `work` when each epoch began and ended."""

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """Iterate; the seconds of each item are written when all are done."""
        seconds, start = [], time.perf_counter()
        for item in super().track(items, what, total):
            yield item
            now = time.perf_counter()
            seconds.append(now - start)
            start = now
        write_json(self.work / f"{what}.json", seconds)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A training.

    Attributes:
        seconds: From the call to its return.
        epochs: Seconds of each epoch.
        losses: Loss of each epoch.
        embedding_seconds: Seconds that the cache was filled for, the hash of the trunk included.
        entries: Bytes of each file in the cache.
    """

    seconds: float
    epochs: list[float]
    losses: list[float]
    embedding_seconds: float
    entries: list[int]


def timed_training(
    dataset: Dataset, ids: tuple[int, ...], config: sam.Config, *, device: str = "cpu", folder: Path | None = None
) -> Timed:
    """Train on some images, without validation, in a temporary folder with an empty cache of its own."""
    before = {name: os.environ.get(name) for name in (CACHE_VARIABLE, QUIET_VARIABLE)}
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        out = Path(name)
        os.environ.update({CACHE_VARIABLE: str(out / "cache"), QUIET_VARIABLE: "1"})
        (out / "work").mkdir()
        data = TrainData(dataset=dataset, train=ids, val=(), fold=0)
        try:
            start = time.perf_counter()
            told = sam.train(data, config, out / "weights", Clocked(device=device, seed=0, work=out / "work"))
            seconds = time.perf_counter() - start
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        epochs: Any = read_json(out / "work" / EPOCHS_FILE)
        return Timed(
            seconds=seconds,
            epochs=epochs,
            losses=[loss for loss, _ in told.facts["history"]],
            embedding_seconds=told.facts["embedding_seconds"],
            entries=[path.stat().st_size for path in sorted((out / "cache").rglob("*.npy"))],
        )


def chosen(dataset: Dataset, count: int) -> tuple[int, ...]:
    """Ids of defective images, evenly from all of them."""
    defective = [image.id for image in dataset.images if dataset.annotations_by_image[image.id]]
    places = np.unique(np.linspace(0, len(defective) - 1, min(count, len(defective))).round().astype(int))
    return tuple(defective[place] for place in places)


def configured(arguments: argparse.Namespace, **options: Any) -> sam.Config:
    """Options from the command line, and some of one's own; only defective images are shown."""
    given = {
        name: getattr(arguments, name)
        for name in ("arch", "weights", "backbone_weights", "image_size", "epochs", "batch")
    }
    return sam.Config(**{**given, "negatives": "0", **options})


def difference(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference of an epoch's loss."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


def workers(arguments: argparse.Namespace) -> None:
    """Two processes on the CPU, with half the threads each, against one: the same steps, seconds of each."""
    dataset = Dataset.open(arguments.dataset)
    ids = chosen(dataset, arguments.images)
    steps = math.ceil(len(ids) / arguments.batch)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    wholes: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.repeat):
        losses = {}
        for devices in (1, 2):
            done = timed_training(dataset, ids, configured(arguments, devices=devices, cache=arguments.cache))
            seconds[devices].append(float(np.median(done.epochs[1:] or done.epochs)) / steps)
            wholes[devices].append(done.seconds)
            losses[devices] = done.losses
    ratio = spread(ratios(seconds[2], seconds[1]))
    print(f"{arguments.arch}, {len(ids)} images, {arguments.batch} in a step, cache {arguments.cache}")
    print(f"a step in two processes : in one: {ratio} of the time")
    for devices in seconds:
        print(
            f"    {devices}: {spread(seconds[devices], 4)} s a step, {spread(wholes[devices], 1)} s the whole training"
        )
    print(f"largest relative difference of an epoch's loss: {difference(losses[2], losses[1]):.2g}")
