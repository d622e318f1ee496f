"""What an approach is: one module in `finetune/` or `baselines/` with four names.

    SUPERVISED = False                                  # whether it may learn from labelled defects
    PREDICT_OPTIONS = ("top_k",)                        # optional: fields of Config that `predict` may set again
    PRESETS = {"wide": {"channels": 64}}                # optional: named settings of Config
    class Config: ...                                   # frozen, keyword-only dataclass; field docstrings are the help
        def start_files(self): ...                      # where it has start weights: the files at hand, see below
    def train(data, config, weights, context): ...      # -> Trained; writes its checkpoint into the folder `weights`
    def predict(data, config, weights, context): ...    # -> iterator of Prediction, one for each image, in order
    SAME_RESULT_OPTIONS = ("chunk",)                    # optional: fields of Config that `--resume` may set anew
    def check(data, config): ...                        # optional: refuse what cannot be trained, asked of every fold
    MODEL_FORMATS = {"onnx": "onnx"}                    # optional: the suffix of each format of `export_model`
    def export_model(format, config, weights, out): ... # with it: writes the file `out`
    def truth_given(config): ...                        # optional: what of the truth predictions are given, or None

Nothing else is needed: the command line, its help, run folders, thresholds, cross-validation and evaluation find
the module by its name (`deep_svdd.py` is `deep-svdd`). An approach never touches the files of a run.
`Config.start_files()` names every file that training takes weights from, and fetches none: what they have seen is held
against the fold (`maskbridge.start_weights`). A start from a file is told by `start_weights.source_name`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from maskbridge.dataset import GOOD, SYNTHETIC, Dataset, FoldName
from maskbridge.geometry import RLE
from maskbridge.progress import track

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One detected defect.

    Attributes:
        box_ltwh: Left, top, width, height in pixels of the original image.
        score: Confidence, higher is surer.
        category_id: Defect type by the dataset's category id; None for a defect of unknown type.
        segmentation: Mask at the original size, if the approach gives one.
    """

    box_ltwh: tuple[float, float, float, float]
    score: float
    category_id: int | None = None
    segmentation: RLE | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an approach says of one image. What is None was not produced; an empty list: looked, found nothing.

    Attributes:
        image_id: Id of the image in the dataset.
        score: Anomaly score of the image, higher is more defective.
        map: Anomaly map, h x w, float32, at the model's own resolution, covering the whole image.
        detections: Detected defects.
        type: What the image is called: `good` or the name of a defect type.
    """

    image_id: int
    score: float | None = None
    map: npt.NDArray[np.float32] | None = None
    detections: Sequence[Detection] | None = None
    type: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What an approach may learn from. For an unsupervised approach `train` holds good images only.

    Attributes:
        dataset: The dataset.
        train: Image ids to learn from, ascending.
        val: Image ids to stop early on; empty for the official split.
        fold: Fold number, or `official`.
    """

    dataset: Dataset
    train: tuple[int, ...]
    val: tuple[int, ...]
    fold: FoldName


@dataclass(frozen=True, kw_only=True)
class PredictData:
    """Images to predict.

    Attributes:
        dataset: The dataset.
        image_ids: Image ids, in this order.
        fold: Fold the run was trained on, or `official`.
        part: What the images are in that fold: `val` or `test` (`train` where good ones are held back).
    """

    dataset: Dataset
    image_ids: tuple[int, ...]
    fold: FoldName
    part: str


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and how to work.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU where there is one.
        seed: Seed of everything random.
        work: Scratch folder of the run; survives a kill, so that `resume` can use it; emptied when training is done.
        resume: Continue from what lies in `work`, if anything does.
        spared: Seconds of work that an earlier run left in a cache, one entry each time; they count as spent.
    """

    device: str
    seed: int
    work: Path
    resume: bool = False
    spared: list[float] = field(default_factory=list, compare=False)

    def spare(self, seconds: float) -> None:
        """Count seconds that a cache spared as if they had been spent, so that runs compare whoever came first."""
        self.spared.append(seconds)

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """Iterate with a progress bar on standard error (silent when that is not a terminal)."""
        return track(items, what, total=total)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training says of itself; stored in run.json.

    Attributes:
        parameters: Number of the model's parameters used at prediction.
        weights_from: Where start weights came from: a file name, or `none` for random initialisation.
        trained_on: Number of `good`, `defective` and, if any, `synthetic` images used, where it is not all that were
            given.
        facts: Anything else worth keeping, JSON values only.
        also_trained_on: Other datasets that were trained on as well: the dataset, the fold, and the ids of the images.
    """

    parameters: int
    weights_from: str
    trained_on: Mapping[str, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    also_trained_on: Sequence[tuple[Dataset, FoldName, Sequence[int]]] = ()


def count_images(dataset: Dataset, image_ids: Sequence[int]) -> dict[str, int]:
    """`trained_on` of some images."""
    kinds = [dataset.image_by_id[image_id].defect_type for image_id in image_ids]
    good, made = kinds.count(GOOD), kinds.count(SYNTHETIC)
    return {"good": good, "defective": len(kinds) - good - made, **({"synthetic": made} if made else {})}


class Approach(Protocol):
    """A module that trains and predicts."""

    __name__: str
    __doc__: str | None
    SUPERVISED: bool
    Config: type[Any]

    def train(self, data: TrainData, config: Any, weights: Path, context: Context) -> Trained:
        """Learn, and write a checkpoint into `weights`."""
        ...

    def predict(self, data: PredictData, config: Any, weights: Path, context: Context) -> Iterator[Prediction]:
        """Predict images with the checkpoint in `weights`."""
        ...
