"""Start weights of YOLO-World: a file, or what lies in the weights folder; nothing is fetched.

path, scale = start_weights("yolov8s-worldv2", "auto")

No SHA-256 is known that Ultralytics states of its checkpoints, by which a download could be told from another file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from maskbridge.errors import OptionError, WeightsError
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


def local_start(option: str, scale: str) -> Path | None:
    """The checkpoint or folder that is meant, as far as it is at hand."""
    if option == NONE:
        return None
    if option == AUTO:
        scales = SCALES[1:] + SCALES[:1] if scale == AUTO else (scale,)
        names = [f"yolov8{one}-worldv2" for one in scales] + [f"yolov8{one}" for one in scales]
        return find_local(names, _is_detector)
    path = Path(option).expanduser()
    if os.path.exists(path):
        return path
    name = option.removesuffix(".pt")
    return find_local([f"{name}.pt"]) if name in OFFICIAL else None


def _find(option: str, scale: str) -> Path:
    found = local_start(option, scale)
    if found is not None and found.is_file():
        return found
    if option == AUTO:
        raise _not_here(_SMALLEST if scale in (AUTO, "n") else f"yolov8{scale}-worldv2")
    path = Path(option).expanduser()
    if os.path.isdir(path):
        raise WeightsError("is a folder", where=path, expected="a checkpoint, such as RUN/weights/best.pt")
    name = option.removesuffix(".pt")
    if name in OFFICIAL:
        raise _not_here(name)
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
