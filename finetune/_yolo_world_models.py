"""Ultralytics checkpoints and devices: read without running anybody's code, asked for given classes, written anew.

    scale_of(Path("yolov8s-worldv2.pt"))                            # "s"
    model = asked_for(checkpoint, "s", ["person", "bus"], features)     # an `ultralytics.YOLOWorld`

Importing this module imports torch and ultralytics. Ultralytics is AGPL-3.0.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune._yolo_world_text import Features
from finetune._yolo_world_trainer import set_features  # the environment is set before Ultralytics is imported
from maskbridge.errors import OptionError, WeightsError
from maskbridge.files import write_bytes

import torch  # isort: skip
from ultralytics import YOLOWorld  # isort: skip
from ultralytics.nn.tasks import DetectionModel, WorldModel, load_checkpoint, torch_safe_load  # isort: skip
from ultralytics.utils import ROOT, YAML  # isort: skip
from ultralytics.utils.torch_utils import strip_optimizer as strip_optimizer  # isort: skip


def scale_of(checkpoint: Path) -> str:
    """Model scale (`n`, `s`, `m`, `l`, `x`) of a YOLOv8 or YOLO-World checkpoint, read without running its code.

    Raises:
        WeightsError: When it is not one.
    """
    model = load(checkpoint)
    config = getattr(model, "yaml", {}) or {}
    scale = str(config.get("scale") or "")
    named = "v8" in str(config.get("yaml_file", "")) and type(model) in (DetectionModel, WorldModel)
    if scale not in tuple("nsmlx") or not named:
        raise WeightsError(
            "is no YOLOv8 or YOLO-World detector",
            where=checkpoint,
            found=f"{type(model).__name__} of {config.get('yaml_file', 'unknown')}",
        )
    return scale


def load(checkpoint: Path) -> Any:
    """Load an Ultralytics checkpoint with its safe loader.

    Raises:
        WeightsError: When it is missing, or holds anything but tensors and Ultralytics' own classes.
    """
    if not checkpoint.is_file():  # Ultralytics would look it up on the network
        raise WeightsError("no such file", where=checkpoint)
    try:
        with warnings.catch_warnings():  # what torch warns of ends in the error below, or is harmless
            warnings.simplefilter("ignore")
            return load_checkpoint(checkpoint)[0]
    except Exception as error:  # torch's reader stumbles over a foreign file in any way
        raise WeightsError(
            "cannot be read as an Ultralytics checkpoint",
            where=checkpoint,
            found=_plainly(error),
        ) from error


def _plainly(error: BaseException) -> str:
    """What went wrong, without Ultralytics' advice on models of its own."""
    text = str(error).split("\n", 1)[0]
    if "outside the supported" in text or "yolo predict" in text:
        return "no checkpoint, or objects in it that are not Ultralytics' own"
    return text[:200]


def asked_for(checkpoint: Path, scale: str, names: Sequence[str], features: Features) -> Any:
    """A YOLO-World that is asked for other classes; a plain YOLOv8 is poured into its shape, as training does.

    Args:
        checkpoint: The checkpoint.
        scale: Its scale.
        names: Class names.
        features: Their text features, N x 512, float32, unit length.

    Raises:
        WeightsError: When the checkpoint cannot be read.
    """
    have = load(checkpoint)
    if isinstance(have, WorldModel):
        model = YOLOWorld(checkpoint)
    else:
        model = YOLOWorld(f"yolov8{scale}-worldv2.yaml")
        model.model.load(have, verbose=False)
    set_features(model.model, features)
    model.model.names = dict(enumerate(names))
    return model


def is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint of a training in progress is that of its last epoch."""
    content = load_checkpoint(checkpoint)[1]
    return bool(content["epoch"] + 1 >= content["train_args"]["epochs"])


def coco_names() -> list[str]:
    """The 80 class names of COCO, in Ultralytics' order."""
    return list(YAML.load(ROOT / "cfg" / "datasets" / "coco.yaml")["names"].values())


def keep_classes(checkpoint: Path, names: list[str], out: Path) -> int:
    """Write a checkpoint that knows the first `names` alone; classes rehearsed behind them are left out.

    Returns:
        Number of the model's parameters.
    """
    content = torch_safe_load(checkpoint, safe_only=True)[0]
    model = content["ema"] or content["model"]
    if len(model.names) != len(names):
        set_features(model, model.txt_feats[0, : len(names)])
        model.nc, model.names = len(names), dict(enumerate(names))
    for told in (content.get("train_args"), getattr(model, "args", None)):
        for key in ("data", "project", "save_dir", "model", "pretrained", "resume"):
            if isinstance(told, dict) and isinstance(told.get(key), str):
                told[key] = Path(told[key]).name  # a checkpoint that is passed on need not tell where it was made
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(out, buffer.getvalue())
    return sum(int(parameter.numel()) for parameter in model.parameters())


def device_name(device: str) -> str:
    """Ultralytics' name of a device: `cpu`, `0`, `0,1`.

    Raises:
        OptionError: When it is no device, or a GPU was asked for that is not there.
    """
    count = torch.cuda.device_count()
    if device == "auto":
        return "0" if count else "cpu"
    if device == "cpu":
        return device
    numbers = "0" if device == "cuda" else device.replace("cuda:", "")
    wanted = numbers.split(",")
    if not all(number.isdigit() for number in wanted) or len(set(wanted)) != len(wanted):
        raise OptionError("no such device", found=f"--device {device}", expected="auto, cpu, 0, 0,1 or cuda:0")
    missing = [number for number in wanted if int(number) >= count]
    if missing:
        raise OptionError(
            f"no GPU {missing[0]} here" if count else "no GPU here",
            found=f"--device {device}, {count} GPUs",
            remedy="use --device cpu" if not count else f"use --device 0 to {count - 1}",
        )
    return numbers
