"""Forgetting: what the start model could find on everyday images, and the fine-tuned one cannot any more.

    facts = forgetting(start, tuned, features_of_coco_names, images)
    facts["kept"], facts["of"], facts["share"]

Both models are asked for the 80 COCO names. A find of the start model, confidence 0.25 or more, is kept when the
fine-tuned model finds the same class there (IoU 0.5 or more), at the same confidence. Below 20 finds the share would
say nothing and is null, with the reason.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from finetune._yolo_world_text import HASHED, known_features
from maskbridge.dataset import read_image
from maskbridge.errors import OptionError

CONFIDENCE, LEAST_IOU, LEAST_FINDS = 0.25, 0.5, 20
#: Input side in pixels, whatever the side in training.
PROBE_SIZE = 640
#: Photographs that packages ship which are there wherever Ultralytics is: package and file.
PACKAGED = (
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("ultralytics", "assets/bus.jpg"),
    ("ultralytics", "assets/zidane.jpg"),
)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

#: Boxes N x 4 as left, top, right, bottom; class numbers N. Confident ones only.
Finds = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]
Find = Callable[[npt.NDArray[np.uint8]], Finds]


def probe_paths(folder: str = "") -> list[Path]:
    """Probe images: those of a folder, else the packaged photographs.

    Raises:
        OptionError: When there is no such folder, or no image in it.
    """
    if not folder:
        specs = [(importlib.util.find_spec(package), name) for package, name in PACKAGED]
        paths = [Path(spec.origin).parent / name for spec, name in specs if spec is not None and spec.origin]
        return [path for path in paths if path.is_file()]
    if not Path(folder).is_dir():
        raise OptionError("--probe is no folder", where=folder, expected="a folder of images")
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise OptionError("--probe has no image", where=folder, expected="a folder of images")
    return paths


def probe_images(folder: str = "") -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Names and images (H x W x 3, uint8, RGB) to probe with.

    Those of a folder as they are; else the packaged photographs, each whole, mirrored, and its left and right half.

    Raises:
        OptionError: As `probe_paths`.
    """
    read = [(path.name, read_image(path)) for path in probe_paths(folder)]
    if folder:
        return read
    images = []
    for name, image in read:
        middle = image.shape[1] // 2
        views = {"whole": image, "mirrored": image[:, ::-1], "left": image[:, :middle], "right": image[:, middle:]}
        images += [(f"{name} {view}", np.ascontiguousarray(pixels)) for view, pixels in views.items()]
    return images


def measure_forgetting(
    start: Path | None,
    scale: str,
    tuned: Path,
    probe: str,
    text_features: str,
    cache: Path,
    device: str,
) -> dict[str, Any]:
    """Forgetting of a checkpoint against the one it started from; null with a reason where it cannot be measured.

    Args:
        start: Checkpoint that training started from; None for random.
        scale: Scale of both.
        tuned: The fine-tuned checkpoint.
        probe: Folder of probe images; empty for the packaged ones.
        text_features: Where text features come from, as in `Config`.
        cache: Folder to keep text features in.
        device: Ultralytics' name of the device.
    """
    if start is None:
        return _unknown("the start is random: there is nothing to forget")
    if text_features == HASHED:
        return _unknown("hashed text features know no COCO names")
    from finetune._yolo_world_models import asked_for, coco_names

    names = coco_names()
    features = known_features(text_features, names, cache / "coco-features.npz")
    if features is None:
        return _unknown(f"{Path(text_features).name} lacks features of the COCO names")
    finders = [
        finder(asked_for(checkpoint, scale, names, features), device=device.split(",")[0])
        for checkpoint in (start, tuned)
    ]
    return forgetting(finders[0], finders[1], probe_images(probe))


def forgetting(start: Find, tuned: Find, images: Sequence[tuple[str, npt.NDArray[np.uint8]]]) -> dict[str, Any]:
    """How many finds of `start` survive in `tuned`.

    Returns:
        `share` (null with a `why` below 20 finds), `kept`, `of`, `images`, and the rule.
    """
    kept = total = 0
    for _, image in images:
        boxes, classes = start(image)
        total += len(boxes)
        kept += survivors(boxes, classes, *tuned(image))
    facts: dict[str, Any] = {
        "share": kept / total if total >= LEAST_FINDS else None,
        "kept": kept,
        "of": total,
        "images": len(images),
        "rule": f"same class at IoU {LEAST_IOU}, confidence {CONFIDENCE} or more, COCO names as prompts",
    }
    if total < LEAST_FINDS:
        facts["why"] = f"the start model finds {total} things on the probe images, fewer than {LEAST_FINDS}"
    return facts


def survivors(
    boxes: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    found: npt.NDArray[np.float64],
    found_classes: npt.NDArray[np.int64],
) -> int:
    """Number of boxes that have one of the same class at IoU 0.5 or more among those found; each serves once.

    Args:
        boxes: N x 4, left, top, right, bottom, surest first.
        classes: N.
        found: M x 4.
        found_classes: M.
    """
    free = np.ones(len(found), dtype=bool)
    count = 0
    for box, number in zip(boxes, classes, strict=True):
        if not len(found):
            break
        overlap = np.where(free & (found_classes == number), _iou(box, found), 0.0)
        if overlap.max() >= LEAST_IOU:
            free[int(overlap.argmax())] = False
            count += 1
    return count


def finder(model: Any, *, device: str) -> Find:
    """Finds of an Ultralytics model whose classes are set: confident ones, surest first."""

    def find(image: npt.NDArray[np.uint8]) -> Finds:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        result = model.predict(bgr, conf=CONFIDENCE, imgsz=PROBE_SIZE, device=device, save=False, verbose=False)[0]
        boxes = result.boxes.cpu().numpy()
        order = np.argsort(-boxes.conf, kind="stable")
        return boxes.xyxy[order].astype(np.float64), boxes.cls[order].astype(np.int64)

    return find


def _iou(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    pair = [np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]) for boxes in (box[None], others)]
    overlap: npt.NDArray[np.float64] = np.asarray(coco_mask.iou(pair[0], pair[1], [0] * len(others)))[0]
    return overlap


def _unknown(why: str) -> dict[str, Any]:
    return {"share": None, "why": why}
