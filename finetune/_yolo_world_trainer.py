# ruff: noqa: E402, I001 - the environment is set before Ultralytics is imported
"""Ultralytics' own YOLO-World trainer, kept from reaching out: no CLIP install, no network, no global settings.

Text features are ours; everything else (losses, augmentation, optimiser, validation) is Ultralytics'.
Importing this module imports torch and ultralytics. Ultralytics is AGPL-3.0.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskbridge.errors import OptionError, WeightsError
from maskbridge.files import write_bytes

# Before the first import of ultralytics: settings, fonts and caches go to a folder that goes away with the process.
_CONFIG_FOLDER = tempfile.mkdtemp(prefix="maskbridge-ultralytics-")
atexit.register(shutil.rmtree, _CONFIG_FOLDER, ignore_errors=True)
os.environ.update(
    YOLO_CONFIG_DIR=_CONFIG_FOLDER,
    YOLO_OFFLINE="true",
    YOLO_AUTOINSTALL="false",
    YOLO_VERBOSE="false",
    ULTRALYTICS_SAFE_LOAD="true",
)

import torch
from ultralytics.data import base, dataset
from ultralytics.engine import trainer, validator
from ultralytics.models.yolo.world.train import WorldTrainer
from ultralytics.nn import tasks
from ultralytics.nn.tasks import WorldModel, load_checkpoint
from ultralytics.utils import LOGGER, torch_utils


#: Ultralytics leaves one core free, which on two cores halves the speed.
torch_utils.NUM_THREADS = torch.get_num_threads()


def _silent(bar: Any) -> Any:
    return lambda *args, **options: bar(*args, **{**options, "disable": True})


for _module in (base, dataset, trainer, validator):  # bars that are drawn even where standard error is no terminal
    _module.TQDM = _silent(_module.TQDM)

# As the variables above, also where somebody imported ultralytics before.
tasks.SAFE_LOAD = True
LOGGER.setLevel(logging.ERROR)

TextFeatures = Mapping[str, npt.NDArray[np.float32]]


class Trainer(WorldTrainer):  # type: ignore[misc]
    """`WorldTrainer` with given text features and an atomic copy of the last checkpoint."""

    features: TextFeatures = {}  # noqa: RUF012  # set for each training, before Ultralytics builds the trainer
    transferred: tuple[int, int] | None = None

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the model, load the start weights, and count the tensors that fitted."""
        model = super().get_model(cfg, weights, verbose=False)
        if weights is not None:
            have = weights.float().state_dict()
            want = model.state_dict()
            fitted = sum(name in have and have[name].shape == tensor.shape for name, tensor in want.items())
            type(self).transferred = (fitted, len(want))
        return model

    def generate_text_embeddings(self, texts: list[str], batch: int, cache_dir: Path) -> dict[str, torch.Tensor]:
        """Features by class name; nothing is cached beside the images."""
        return {text: torch.from_numpy(self.features[text]).to(self.device) for text in texts}

    def save_model(self) -> Any:
        """Save as Ultralytics does, then keep a copy that is never half-written."""
        done = super().save_model()
        if self.last.is_file():
            write_bytes(Path(self.save_dir) / "resume.pt", self.last.read_bytes())
        return done


@contextlib.contextmanager
def given_text_features(features: TextFeatures) -> Iterator[None]:
    """Let every `WorldModel` take its text features from a table, by class name, instead of from CLIP."""

    def get_text_pe(self: Any, text: list[str], batch: int = 80, cache_clip_model: bool = False) -> torch.Tensor:
        rows = torch.from_numpy(np.stack([features[name] for name in text]))
        return rows.unsqueeze(0).to(next(self.model.parameters()).device)

    original, Trainer.features = WorldModel.get_text_pe, features
    WorldModel.get_text_pe = get_text_pe
    Trainer.transferred = None
    try:
        yield
    finally:
        WorldModel.get_text_pe = original


def scale_of(checkpoint: Path) -> str:
    """Model scale (`n`, `s`, `m`, `l`, `x`) of a YOLOv8 or YOLO-World checkpoint, read without running its code.

    Raises:
        WeightsError: When it is not one.
    """
    model = load(checkpoint)
    config = getattr(model, "yaml", {}) or {}
    scale = str(config.get("scale") or "")
    if scale not in tuple("nsmlx") or "v8" not in str(config.get("yaml_file", "")):
        raise WeightsError(
            "is no YOLOv8 or YOLO-World checkpoint",
            where=checkpoint,
            found=config.get("yaml_file") or type(model).__name__,
        )
    return scale


def load(checkpoint: Path) -> Any:
    """Load an Ultralytics checkpoint with its safe loader.

    Raises:
        WeightsError: When it is missing, or holds anything but tensors and Ultralytics' own classes.
    """
    try:
        with warnings.catch_warnings():  # what torch warns of ends in the error below, or is harmless
            warnings.simplefilter("ignore")
            return load_checkpoint(checkpoint)[0]
    except (OSError, TypeError, ValueError, KeyError, AttributeError, RuntimeError, EOFError, ImportError,
            pickle.UnpicklingError) as error:  # fmt: skip
        raise WeightsError(
            "cannot be read as an Ultralytics checkpoint",
            where=checkpoint,
            found=str(error).split("\n", 1)[0][:200],
        ) from error


def device_name(device: str) -> str:
    """Ultralytics' name of a device.

    Raises:
        OptionError: When a GPU was asked for and there is none.
    """
    if device == "auto":
        return "0" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not torch.cuda.is_available():
        raise OptionError("no GPU here", found=f"--device {device}", remedy="use --device cpu")
    return device.removeprefix("cuda:") if device != "cuda" else "0"
