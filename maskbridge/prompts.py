"""What points a segmenter at defects: the true boxes, or another run's boxes or the peaks of its maps.

    prompts = find_prompts("runs/bottle-yolo-world-all", data)      # or "oracle"
    prompts(17)                                                     # the prompts of image 17, the surest first

A run over all folds lends each fold the predictions of its own fold, so that nothing is prompted by a model that has
seen the image. Frame of boxes and points: pixels of the original image, half-open boxes.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskbridge import geometry
from maskbridge.approach import PredictData
from maskbridge.dataset import Dataset, FoldName
from maskbridge.derive import PredictionView
from maskbridge.errors import OptionError, RunError
from maskbridge.painting import MOST_DETECTIONS
from maskbridge.pixel_counts import resized
from maskbridge.predictions import Result, Run

#: The source that is the ground truth.
ORACLE = "oracle"
#: What run.json says of a run that was given the true boxes.
TRUE_BOXES = "boxes of the defects"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A hint at one defect: a box or a point.

    Attributes:
        box_ltwh: Left, top, width, height; None where it is a point.
        point_xy: Centre of the pixel pointed at; None where it is a box.
        score: How sure the source is, in [0, 1]; 1 for the truth.
        category_id: Defect type, where the source names one.
    """

    box_ltwh: tuple[float, float, float, float] | None = None
    point_xy: tuple[float, float] | None = None
    score: float = 1.0
    category_id: int | None = None


Prompts = Callable[[int], list[Prompt]]


def find_prompts(source: str, data: PredictData, most: int = MOST_DETECTIONS, *, boxes_alone: bool = False) -> Prompts:
    """Open a source of prompts for the images that are to be predicted.

    Args:
        source: `oracle`, or a run folder: of the same fold, over all folds, or of the official split.
        data: The images to predict.
        most: Prompts of an image at most, the surest first; `oracle` gives all.
        boxes_alone: Refuse what has points only.

    Returns:
        The prompts of an image, the surest first; of `oracle` those of every defect in the dataset's
        order. An image without any has an empty list.

    Raises:
        RunError: When there is no such run, it has seen these images, was given truth, has not predicted them, or has
            neither detections nor maps.
    """
    if source == ORACLE:
        table = data.dataset.annotations_by_image

        def true_boxes(image_id: int) -> list[Prompt]:
            return [Prompt(box_ltwh=_box(annotation["bbox"])) for annotation in table[image_id]]

        return true_boxes
    run, part = _run_of_fold(source, data.dataset, data.fold, data.part)
    if not run.has(part):
        raise RunError(
            f"has not predicted the images of {data.part} that it is to prompt for",
            where=run.path,
            remedy=f"maskbridge predict {run.path} {data.dataset.path} --part {part}",
        )
    view = PredictionView(run, data.dataset, part)
    strange = set(data.image_ids) - set(view.image_ids)
    if strange:
        raise RunError(
            "has not predicted all images that it is to prompt for", where=run.path, found=sorted(strange)[:5]
        )
    found = view.detections()
    if found.value is None:
        remedy = "name a run with detections or maps"
        raise RunError("has nothing to prompt with", where=run.path, found=found.why, remedy=remedy)
    if found.derived and boxes_alone:
        raise RunError("has maps alone, and boxes are needed", where=run.path, remedy="name a run with detections")
    by_image: dict[int, list[Result]] = {image_id: [] for image_id in data.image_ids}
    for result in sorted(found.value, key=lambda result: -result["score"]):
        mine = by_image.get(result["image_id"])
        if mine is not None and len(mine) < most:
            mine.append(result)
    if not found.derived:
        return lambda image_id: [
            Prompt(box_ltwh=_box(r["bbox"]), score=float(r["score"]), category_id=r["category_id"])
            for r in by_image[image_id]
        ]
    maps, thresholds = view.maps().value, view.threshold("pixel").value
    assert maps is not None, "detections follow from maps alone"
    assert thresholds is not None, "and from the pixel threshold"

    def peaks(image_id: int) -> list[Prompt]:
        size_hw = data.dataset.image_by_id[image_id].size_hw
        full = resized(maps(image_id), size_hw, where=f"image {image_id}")
        least = thresholds[image_id]
        return [Prompt(point_xy=_peak(full, r), score=_share(r["score"], least)) for r in by_image[image_id]]

    return peaks


def truth_given(config: Any) -> str | None:
    """What of the truth predictions are given with the option `prompts`; approaches that have it name this hook."""
    return TRUE_BOXES if config.prompts == ORACLE else None


def refuse_unfit_source(source: str, dataset: Dataset, fold: FoldName, *, boxes_alone: bool = False) -> None:
    """Refuse a source before a training that it would come to nothing after; `oracle` always fits.

    Raises:
        RunError: As `find_prompts`, for `val` and `test` of the fold.
    """
    for part in ("val", "test"):
        data = PredictData(dataset=dataset, image_ids=dataset.split(fold).part(part), fold=fold, part=part)
        find_prompts(source, data, boxes_alone=boxes_alone)


def absolute_source(source: str, words: Sequence[str] = ()) -> str:
    """A source as run.json keeps it: the path of a run made absolute, `oracle` and the approach's own words as is.

    Raises:
        OptionError: When it is nearly one of the words, and no folder.
    """
    near = difflib.get_close_matches(source, known := (ORACLE, *words), n=1)
    if near and source not in known and not os.path.lexists(source):
        expected = f"a run folder, {', '.join(known)}"
        raise OptionError("--prompts is unknown", found=source, expected=expected, remedy=f"did you mean {near[0]}?")
    return source if source in (ORACLE, *words) else os.path.abspath(source)


def _run_of_fold(source: str, dataset: Dataset, fold: FoldName, part: str) -> tuple[Run, str]:
    """The run that has not seen the images of a part, and the name it has for that part."""
    path = Path(source)
    if not path.is_dir():
        raise RunError("is no run to prompt with", where=source, expected=f"a run folder, or {ORACLE}")
    run = Run.open(path)
    if run.info["fold"] == "all":
        run = Run.open(run.path / f"fold{fold}")
    run.dataset(dataset.path)  # refuses another dataset, or other folds of it
    if run.truth_given is not None:
        told = f"was given the {run.truth_given}, and would pass them on"
        raise RunError(told, where=run.path, remedy=f"{ORACLE} gives them openly")
    if run.info["fold"] == fold:
        return run, part
    if run.info["fold"] == "official":
        return run, "test"
    raise RunError(
        "is of another fold and may have seen the images that it is to prompt for",
        where=run.path,
        found=f"fold {run.info['fold']}",
        expected=f"fold {fold}",
        remedy="name a run over all folds",
    )


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, width, height = (float(value) for value in values)
    return left, top, width, height


def _share(peak: float, threshold: float) -> float:
    """How sure a peak is, in [.5, 1]: a map has a scale of its own, and the threshold tells it."""
    return 1 / (1 + math.exp(min(0.0, (threshold - peak) / (abs(threshold) or 1.0))))


def _peak(full: npt.NDArray[np.float32], result: Result) -> tuple[float, float]:
    """Centre of the highest pixel of a component, x and y; of several the middle one, which a plateau holds."""
    inside = geometry.decode(result["segmentation"]) > 0
    rows, columns = np.nonzero(inside & (full >= full[inside].max()))
    middle = len(rows) // 2
    return float(columns[middle]) + 0.5, float(rows[middle]) + 0.5
