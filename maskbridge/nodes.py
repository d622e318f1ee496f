"""Training over several machines: the first one keeps the run, the others learn along and keep nothing.

The same command is given on each, with `NODE_RANK` (on Slurm `SLURM_NODEID` does), `MASTER_ADDR` and `MASTER_PORT`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from maskbridge import plugins
from maskbridge.approach import Approach, Context, TrainData
from maskbridge.dataset import Dataset, FoldName
from maskbridge.errors import OptionError
from maskbridge.folders import scratch_folder
from maskbridge.progress import say
from maskbridge.training import Settings


def is_another(config: Any) -> bool:
    """Whether this is a machine beside the first one of a training over several.

    Raises:
        OptionError: When `NODE_RANK` is no number of a machine.
    """
    nodes = getattr(config, "nodes", 1)
    text = os.environ.get("NODE_RANK") or os.environ.get("SLURM_NODEID") or "0"
    if nodes > 1 and not (text.isdecimal() and int(text) < nodes):
        raise OptionError("NODE_RANK is no machine of the training", found=text, expected=f"0 to {nodes - 1}")
    return nodes > 1 and int(text) > 0


def learn_along(name: str, dataset: Dataset, config: Any, folds: Sequence[FoldName], settings: Settings) -> None:
    """Take part in the training of some folds, one after the other.

    Args:
        name: Name of the approach, a supervised one.
        dataset: The dataset.
        config: The approach's `Config`.
        folds: The folds.
        settings: Device, seed, and whether to resume.
    """
    approach: Approach = plugins.load("approach", name)
    for fold in folds:
        split = dataset.split(fold)
        data = TrainData(dataset=dataset, train=split.train, val=split.val, fold=fold)
        with scratch_folder("nodes") as folder:
            work, weights = folder / "work", folder / "weights"
            work.mkdir()
            weights.mkdir()
            context = Context(device=settings.device, seed=settings.seed, work=work, resume=settings.resume)
            approach.train(data, config, weights, context)
        say(f"fold {fold}: learned along; the first machine keeps the run")
