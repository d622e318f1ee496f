"""Control for segmenters: the whole box is the mask.

    maskbridge train box-fill datasets/bottle runs/bottle-box-fill-0 --prompts oracle

What a segmenter has to beat that is given the same boxes.
Khoreva et al., "Simple Does It", CVPR 2017, https://arxiv.org/abs/1603.07485 (there: Box).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines import _box_masks
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.prompts import ORACLE, absolute_source, refuse_unfit_source
from maskbridge.prompts import truth_given as truth_given

SUPERVISED = True
PREDICT_OPTIONS = ("prompts", "max_prompts")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    prompts: str = ORACLE
    """Where the boxes come from: oracle (the true ones; only masks are then judged), or a run folder."""

    max_prompts: int = 100
    """Prompts of an image that are taken from another run, at most, the surest first."""

    def __post_init__(self) -> None:
        """Keep a run by its absolute path."""
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
    """Every box as a mask.

    Raises:
        RunError: When the run that gives the boxes does not fit.
    """
    yield from _box_masks.predict_masks(data, config.prompts, config.max_prompts, _fill)


def _fill(image: npt.NDArray[np.uint8], box_ltwh: _box_masks.Box) -> npt.NDArray[np.bool_]:
    mask = np.zeros(image.shape[:2], bool)
    mask[_box_masks.filled((image.shape[0], image.shape[1]), box_ltwh)] = True
    return mask
