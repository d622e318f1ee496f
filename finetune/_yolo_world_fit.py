"""One training of YOLO-World: our options as Ultralytics', resuming, and what runs out of memory.

fit(config, context, prepared, start=Path("yolov8s-worldv2.pt"), scale="s", device="0")
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import _yolo_world_trainer as ultralytics
from finetune._yolo_world_data import Prepared
from finetune._yolo_world_models import is_finished
from finetune._yolo_world_ultralytics import read
from maskbridge.approach import Context
from maskbridge.errors import OptionError
from maskbridge.files import read_json, write_bytes, write_text
from maskbridge.progress import say

from ultralytics.utils.torch_utils import strip_optimizer  # isort: skip

if TYPE_CHECKING:
    from finetune.yolo_world import Config

#: Images that Ultralytics gathers for a step (its `nbs`).
_ULTRALYTICS_STEP = 64


def fit(config: Config, context: Context, prepared: Prepared, *, start: Path | None, scale: str, device: str) -> Path:
    """Train, or go on from the last whole epoch.

    Returns:
        Ultralytics' folder: `weights/best.pt`, `results.csv` with a line for each epoch.

    Raises:
        OptionError: When memory is too small, or a process on one of several GPUs fails.
        WeightsError: When a checkpoint of this training cannot be read.
    """
    folder = context.work / "ultralytics"
    overrides = _overrides(config, context, prepared, start, scale, device)
    write_text(prepared.yaml.with_name(ultralytics.MOST_EPOCHS), str(config.epochs))
    last = folder / ultralytics.RESUME
    if context.resume and last.is_file():
        # Ultralytics writes best.pt in place: it may be half a file.
        read(folder / ultralytics.KEPT_BEST)
        write_bytes(folder / "weights" / "best.pt", (folder / ultralytics.KEPT_BEST).read_bytes())
        if (folder / ultralytics.FINISHED).is_file() or is_finished(last):  # killed after the last epoch
            strip_optimizer(folder / "weights" / "best.pt")
            return folder
        overrides = {**overrides, "model": str(last), "resume": str(last)}
    smaller = f"try --batch {config.batch // 2}" if config.batch > 2 else f"try --imgsz {config.imgsz * 3 // 4}"
    too_little = OptionError(
        "too little memory", found=f"--batch {config.batch}, --imgsz {config.imgsz}", remedy=smaller
    )
    try:
        trainer = ultralytics.Trainer(overrides=overrides)
        if not trainer.ddp:
            epochs = iter(context.track(range(config.epochs), "yolo-world epochs"))
            trainer.add_callback("on_train_epoch_start", lambda _: next(epochs, None))
        trainer.train()
    except (ultralytics.TooLittleMemory, MemoryError) as error:
        raise too_little from error
    except subprocess.CalledProcessError as error:
        raise OptionError(
            "a training process on several GPUs failed; its own message stands above",
            found=f"--device {overrides['device']}, exit {error.returncode}",
            remedy=f"try --device 0; if memory ran out, {smaller}",
        ) from error
    except ValueError as error:
        if "BatchNorm" not in str(error):
            raise
        raise OptionError(
            "the last batch would hold one image, too little to normalise over",
            found=f"--batch {config.batch}, --imgsz {config.imgsz}",
            expected="--imgsz 64 or more, or another --batch",
        ) from error
    except RuntimeError as error:
        if "NaN" in str(error):
            raise OptionError(
                "training diverged", found=f"--lr {config.lr}", remedy=f"try --lr {config.lr / 10:g}"
            ) from error
        if any(words in str(error).lower() for words in ("out of memory", "can't allocate memory")):
            raise too_little from error
        raise
    return folder


def amp_of(precision: str, device: str) -> bool | str:
    """Ultralytics' `amp` of a precision.

    Raises:
        OptionError: For half precision on a CPU, which Ultralytics does not train in.
    """
    if precision in ("fp16", "bf16") and device == "cpu":
        raise OptionError("half precision is for a GPU", found=f"--precision {precision}", remedy="use fp32 on a CPU")
    choices: dict[str, bool | str] = {"auto": device != "cpu", "fp32": False, "fp16": True, "bf16": "bf16"}
    return choices[precision]


def transferred(work: Path, source: str) -> dict[str, int] | None:
    """How many tensors of the start weights fitted, and of how many; None for a random start."""
    if not (work / ultralytics.TRANSFERRED).is_file():
        return None
    counts: dict[str, int] = read_json(work / ultralytics.TRANSFERRED)
    say(f"yolo-world: {counts['fitted']} of {counts['of']} tensors taken from {source}")
    return counts


def _overrides(
    config: Config, context: Context, prepared: Prepared, start: Path | None, scale: str, device: str
) -> dict[str, Any]:
    """Ultralytics' training options."""
    overrides: dict[str, Any] = {
        "task": "detect",
        "mode": "train",
        "model": f"yolov8{scale}-worldv2.yaml",
        "pretrained": False if start is None else str(start),
        "data": str(prepared.yaml),
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "batch": config.batch,
        "optimizer": "auto" if config.optimizer == "auto" else "AdamW",
        "lr0": config.lr,
        # Ultralytics gathers 64 images for a step, which on a few dozen images is one step an epoch.
        "nbs": _ULTRALYTICS_STEP if config.optimizer == "auto" else config.batch,
        "freeze": config.freeze or None,
        "mosaic": config.mosaic,
        "patience": config.patience,
        "time": config.time_budget / 60 or None,
        "device": device,
        "seed": context.seed,
        "cache": "ram",
        "amp": amp_of(config.precision, device),
        "plots": False,
        "verbose": False,
        "project": str(context.work),
        "name": "ultralytics",
        "exist_ok": True,
    }
    return overrides
