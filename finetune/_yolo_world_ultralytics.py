"""Ultralytics kept to itself: nothing asked of the network, no code of a file run, no settings of the user touched.

    content = read(Path("runs/bottle-yolo-world-0/weights/best.pt"))        # by Ultralytics' own safe loader

Whatever is changed inside Ultralytics stands here, with the reason; it is imported before anything else of Ultralytics.
Its dependency `ultralytics-platform` is a client of its servers, loaded where an API key is found: never here.
Importing this module imports torch and ultralytics. Ultralytics is AGPL-3.0.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any, NoReturn

from maskbridge.errors import OptionError, WeightsError
from maskbridge.folders import scratch_folder

# Nothing is looked up or installed, and settings go to a folder that is gone when they have been read.
with scratch_folder("ultralytics") as _folder:
    os.environ.update(
        YOLO_CONFIG_DIR=str(_folder),
        YOLO_OFFLINE="true",
        YOLO_AUTOINSTALL="false",
        YOLO_VERBOSE="false",
        ULTRALYTICS_SAFE_LOAD="true",
    )
    import ultralytics.utils

import torch
from ultralytics.data import base, dataset
from ultralytics.engine import trainer as engine
from ultralytics.engine import validator
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER, callbacks, checks, downloads, torch_utils

if not getattr(getattr(tasks, "_SafeLoad", None), "SUPPORTED", False):
    raise OptionError(
        "this Ultralytics or PyTorch cannot read checkpoints without running code in them",
        found=f"ultralytics {ultralytics.__version__}, torch {torch.__version__}",
        expected="ultralytics 8.4.190 and torch 2.6, or later",
    )


def read(checkpoint: Path) -> dict[str, Any]:
    """The content of an Ultralytics checkpoint.

    Raises:
        WeightsError: When it is missing, or holds anything but tensors and Ultralytics' own classes.
    """
    content: dict[str, Any] = _safely(_safe_load, checkpoint)[0]
    if not {"model", "ema", "epoch", "train_args"} <= content.keys():
        raise _unreadable(checkpoint, "no model of a training in it")
    return content


def load(checkpoint: Path) -> Any:
    """The model of an Ultralytics checkpoint, as it predicts.

    Raises:
        WeightsError: As `read`.
    """
    return _safely(tasks.load_checkpoint, checkpoint)[0]


def _safely(load: Any, checkpoint: Path) -> Any:
    if not checkpoint.is_file():
        raise WeightsError("no such file", where=checkpoint)
    try:
        with warnings.catch_warnings():  # what torch warns of ends in the error below, or is harmless
            warnings.simplefilter("ignore")
            return load(checkpoint)
    except Exception as error:  # torch's reader stumbles over a foreign file in any way
        raise _unreadable(checkpoint, _plainly(error)) from error


def _unreadable(checkpoint: Path, found: str) -> WeightsError:
    return WeightsError("cannot be read as an Ultralytics checkpoint", where=checkpoint, found=found)


def _plainly(error: BaseException) -> str:
    """What went wrong, without Ultralytics' advice on models of its own."""
    text = str(error).split("\n", 1)[0]
    if "outside the supported" in text or "yolo predict" in text:
        return "no checkpoint, or objects in it that are not Ultralytics' own"
    return text[:200]


def _safe_load(file: Any, **_: Any) -> Any:
    return tasks.torch_safe_load(file, safe_only=True)


def _nothing_is_fetched(*_: Any, **asked: Any) -> NoReturn:
    raise ConnectionError(f"nothing is fetched for Ultralytics; it asked for {asked.get('url', 'a list of files')}")


def _no_cache(path: Path) -> NoReturn:
    raise FileNotFoundError(path)


def _silent(bar: Any) -> Any:
    return lambda *args, **options: bar(*args, **{**options, "disable": True})


# As the variables above, also where somebody imported ultralytics before.
tasks.SAFE_LOAD = True
checks.AUTOINSTALL = False
# Usage reports, Ultralytics' platform, and services that log (clearml, comet, wandb, …) hang themselves in here.
callbacks.add_integration_callbacks = lambda instance: None
# The two doors to downloads. Every training asks for a font with which nothing is drawn.
downloads.safe_download = downloads.get_github_assets = _nothing_is_fetched
_is_url = downloads.is_url
downloads.is_url = lambda url, check=False: not check and _is_url(url)
# It would fetch another model and compare boxes.
engine.check_amp = lambda model: True
# Of last.pt and best.pt, at the end of each training, by plain unpickling.
torch_utils.torch_load = lambda file, **_: _safe_load(file)[0]
# A pickle beside the labels, which are read in a moment.
dataset.load_dataset_cache_file = _no_cache
# One core is left free, which on two cores halves the speed.
torch_utils.NUM_THREADS = torch.get_num_threads()
# Bars are drawn even where standard error is no terminal.
for _module in (base, dataset, engine, validator):
    _module.TQDM = _silent(_module.TQDM)
LOGGER.setLevel(logging.ERROR)
