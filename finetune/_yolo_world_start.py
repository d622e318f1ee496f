"""Start weights of YOLO-World: a file, or what lies in the weights folder; nothing is fetched.

path, scale = start_weights("yolov8s-worldv2", "auto")

No SHA-256 is known that Ultralytics states of its checkpoints, by which a download could be told from another file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from maskbridge.approach import TrainData
from maskbridge.errors import OptionError, WeightsError
from maskbridge.run_info import read_run_info
from maskbridge.weights import AUTO, NONE, WEIGHTS_VARIABLE, cache_folder, find_local

SCALES = tuple("nsmlx")
#: Official checkpoints; YOLO-World has none of scale n.
OFFICIAL = (*(f"yolov8{scale}-worldv2" for scale in "smlx"), *(f"yolov8{scale}" for scale in SCALES))
#: Where Ultralytics offers them.
PAGE = "https://github.com/ultralytics/assets/releases"
_ELSE = re.compile(r"-(seg|cls|pose|obb|oiv7|world(?!v2))")
_SMALLEST = "yolov8s-worldv2"
_SCALE_OF_NONE = "n"


def start_weights(option: str, scale: str) -> tuple[Path | None, str]:
    """Checkpoint to start from, and its scale.

    Args:
        option: `auto`, `none`, an official name, or a file.
        scale: `auto`, or the scale that the checkpoint must have.

    Returns:
        The file, None for random; and `n`, `s`, `m`, `l` or `x`.

    Raises:
        OptionError: When there is no official checkpoint of that name.
        WeightsError: When it cannot be had or read, or is of another scale.
    """
    if option == NONE:
        return None, _SCALE_OF_NONE if scale == AUTO else scale
    path = _find(option, scale)
    from finetune._yolo_world_models import scale_of

    found = scale_of(path)
    if scale not in (AUTO, found):
        raise WeightsError(
            "is of another scale",
            where=path,
            found=found,
            expected=scale,
            remedy=f"leave --scale out, or give weights of scale {scale}",
        )
    return path, found


def refuse_of_another_fold(start: Path | None, data: TrainData) -> None:
    """Refuse a checkpoint of ours that has seen images which this fold is stopped early or tested on.

    Raises:
        OptionError: When it is of another fold of the same dataset, or of all.
    """
    info = _run_of(start)
    if info is None or info["dataset"]["annotations_sha256"] != data.dataset.annotations_sha256:
        return
    same_splits = info["dataset"]["splits_sha256"] == data.dataset.splits_sha256
    if not (same_splits and info["fold"] == data.fold):
        raise OptionError(
            "start weights were trained on another fold of the same images",
            where=start,
            found=f"fold {info['fold']}",
            expected=f"fold {data.fold}" if same_splits else "weights from elsewhere",
        )


def source_of(start: Path | None) -> str:
    """Where start weights came from, for run.json: through a run of ours to where that one started."""
    if start is None:
        return NONE
    info = _run_of(start)
    return start.name if info is None else f"{info.get('weights_from', 'unknown')}, {start.name} of a run"


def _run_of(start: Path | None) -> dict[str, Any] | None:
    """run.json of the run whose `weights/` a checkpoint lies in."""
    if start is None or not (start.resolve().parents[1] / "run.json").is_file():
        return None
    return read_run_info(start.resolve().parents[1])


def _find(option: str, scale: str) -> Path:
    if option == AUTO:
        scales = SCALES[1:] + SCALES[:1] if scale == AUTO else (scale,)
        names = [f"yolov8{one}-worldv2" for one in scales] + [f"yolov8{one}" for one in scales]
        found = find_local(names, _is_detector)
        if found is not None:
            return found
        raise _not_here(_SMALLEST if scale in (AUTO, "n") else f"yolov8{scale}-worldv2")
    path = Path(option).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise WeightsError("is a folder", where=path, expected="a checkpoint, such as RUN/weights/best.pt")
    name = option.removesuffix(".pt")
    if name in OFFICIAL:
        local = find_local([f"{name}.pt"])
        if local is None:
            raise _not_here(name)
        return local
    if path.suffix or len(path.parts) > 1:  # a name that is not official is no path
        raise WeightsError("no such file", where=path, remedy="give a checkpoint, an official name, or --weights none")
    raise OptionError(
        "no official checkpoint of this name",
        where="--weights",
        found=option,
        expected=f"{', '.join(OFFICIAL[:4])} (there is no n), a plain yolov8n to yolov8x, a file, or none",
    )


def _is_detector(path: Path) -> bool:
    """Whether a name is not that of a YOLOv8 for something else, or of another YOLO-World."""
    return path.suffix == ".pt" and not _ELSE.search(path.stem)


def _not_here(name: str) -> WeightsError:
    place = os.environ.get(WEIGHTS_VARIABLE) or cache_folder()
    return WeightsError(
        "start weights are not here, and not fetched, as no SHA-256 is known that Ultralytics states",
        where=f"{name}.pt",
        expected=f"in {place}",
        remedy=f"fetch it from {PAGE} and put it there, give a YOLOv8 or YOLO-World checkpoint with --weights FILE, "
        "or --weights none for a random start",
    )
