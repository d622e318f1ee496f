"""Control for segmenters: GrabCut from a box, by OpenCV, with nothing learned.

    maskbridge train grabcut datasets/bottle runs/bottle-grabcut-0 --prompts oracle

Colours inside the box are told from those around it. What a segmenter has to beat that is given the same boxes.
Rother et al., "GrabCut", SIGGRAPH 2004, https://doi.org/10.1145/1015706.1015720.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from baselines import _box_masks
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import OptionError
from maskbridge.prompts import ORACLE, absolute_source, refuse_unfit_source
from maskbridge.prompts import truth_given as truth_given

SUPERVISED = True
PREDICT_OPTIONS = ("prompts", "max_prompts", "iterations", "context", "side")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    prompts: str = ORACLE
    """Where the boxes come from: oracle (the true ones; only masks are then judged), or a run folder."""

    max_prompts: int = 100
    """Prompts of an image that are taken from another run, at most, the surest first."""

    iterations: int = 5
    """Iterations."""

    context: float = 0.5
    """What is looked at around the box, in parts of its sides, and at least 8 pixels."""

    side: int = 256
    """Longest side of what is looked at, pixels; larger pieces are made smaller."""

    def __post_init__(self) -> None:
        """Keep a run by its absolute path.

        Raises:
            OptionError: When an option cannot work.
        """
        for name, least in (("iterations", 1), ("context", 0.0), ("side", 8)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise OptionError(f"--{name} cannot be used", found=value, expected=f"{least} or more")
        object.__setattr__(self, "prompts", absolute_source(self.prompts))


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Nothing is learned.

    Raises:
        RunError: When the run that gives the boxes does not fit.
    """
    check(data, config)
    return Trained(parameters=0, weights_from="nothing is learned", trained_on={"good": 0, "defective": 0})


def check(data: TrainData, config: Config) -> None:
    """Refuse a run that cannot give boxes.

    Raises:
        RunError: When it does not fit.
    """
    if config.prompts != ORACLE:
        refuse_unfit_source(config.prompts, data.dataset, data.fold, boxes_alone=True)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """GrabCut of every box.

    Raises:
        RunError: When the run that gives the boxes does not fit.
    """
    yield from _box_masks.predict_masks(
        data, config.prompts, config.max_prompts, lambda image, box: cut(image, box, config)
    )


def cut(image: npt.NDArray[np.uint8], box_ltwh: _box_masks.Box, config: Config) -> npt.NDArray[np.bool_]:
    """Mask of what stands out in a box; the whole box where nothing is left of it, or nothing lies around it.

    Args:
        image: H x W x 3, uint8, RGB.
        box_ltwh: Left, top, width, height in pixels.
        config: The options.

    Returns:
        H x W.
    """
    height, width = image.shape[:2]
    rows, columns = _box_masks.filled((height, width), box_ltwh)
    margins = [max(8, round(config.context * (each.stop - each.start))) for each in (rows, columns)]
    top, left = max(rows.start - margins[0], 0), max(columns.start - margins[1], 0)
    bottom, right = min(rows.stop + margins[0], height), min(columns.stop + margins[1], width)
    scale = min(1.0, config.side / max(bottom - top, right - left))
    size = (max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1))
    piece = cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
    labels = np.full(piece.shape[:2], cv2.GC_BGD, np.uint8)
    across, down = size[0] / (right - left), size[1] / (bottom - top)
    inner = _box_masks.filled(
        (size[1], size[0]),
        (
            (columns.start - left) * across,
            (rows.start - top) * down,
            (columns.stop - columns.start) * across,
            (rows.stop - rows.start) * down,
        ),
    )
    labels[inner] = cv2.GC_PR_FGD
    box = np.zeros((height, width), bool)
    box[rows, columns] = True
    if labels.all():  # nothing lies around the box
        return box
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(piece, labels, (0, 0, 1, 1), *models, config.iterations, cv2.GC_INIT_WITH_MASK)
    found = (labels == cv2.GC_PR_FGD).astype(np.float32)
    mask = np.zeros_like(box)
    mask[top:bottom, left:right] = cv2.resize(found, (right - left, bottom - top)) > 0.5
    mask &= box
    return mask if mask.any() else box
