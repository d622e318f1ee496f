"""Training, predicting and cross-validation of any approach, and everything a run keeps about it.

    run = train_run("knn", Dataset.open("datasets/bottle"), Path("runs/bottle-knn-0"), Config(), Settings(fold=0))
    predict_run(run, run.dataset(), "test")

Unsupervised approaches are given good images only. On folds thresholds are fitted on `val`. On the official split a
tenth of the good training images is held back to calibrate, then the model is refitted on all of them.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from maskbridge import __version__, plugins
from maskbridge.approach import Approach, Context, PredictData, TrainData, Trained
from maskbridge.dataset import GOOD, SYNTHETIC, Dataset, FoldName
from maskbridge.errors import OptionError
from maskbridge.meters import PhaseMeter
from maskbridge.predicting import as_read_back, in_order, predict_images, truth_given
from maskbridge.predictions import Run, write_predictions
from maskbridge.progress import say
from maskbridge.run_folders import claim, forgotten_if_fruitless
from maskbridge.thresholds import fold_thresholds, held_back_thresholds

HELD_BACK_SHARE = 0.1
_PACKAGES = (
    "numpy",
    "opencv-python",
    "pycocotools",
    "torch",
    "torchvision",
    "ultralytics",
    "segment-anything",
    "timm",
    "scikit-learn",
    "torchmetrics",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options that every approach has."""

    fold: FoldName = 0
    """fold to train on: 0 to k-1, or official"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:N or N; several (0,1) for approaches that train on them"""
    seed: int = 0
    """seed of everything random"""
    resume: bool = False
    """go on with what an interrupted run left; a finished run is left as it is"""
    overwrite: bool = False
    """replace a run that is there"""


def train_run(name: str, dataset: Dataset, path: Path, config: Any, settings: Settings) -> Run:
    """Train an approach on one fold and write the run folder.

    Args:
        name: Name of the approach.
        dataset: The dataset.
        path: The run folder to make.
        config: The approach's `Config`.
        settings: See `Settings`.

    Returns:
        The finished run; on folds it has predictions of `val`.

    Raises:
        MaskbridgeError: When the run folder is taken, the fold does not suit, or the approach refuses.
    """
    path = Path(os.path.abspath(path))
    approach: Approach = plugins.load("approach", name)
    if approach.SUPERVISED and settings.fold == "official":
        raise OptionError(
            f"{name} is for labelled defects, and the official training part has none",
            where=dataset.path,
            remedy="use --fold 0 or crossval",
        )
    info = run_info(name, dataset, config, fold=settings.fold, seed=settings.seed)
    resumed = settings.resume and any((path / name).is_dir() for name in ("weights", "work/calibration"))
    data = _train_data(approach, dataset, settings.fold)
    free = same_result_options(name)
    finished = claim(path, info, resume=settings.resume, overwrite=settings.overwrite, free=free)
    if finished is not None:
        say(f"{path}: already trained")
        return finished
    context = Context(device=settings.device, seed=settings.seed, work=path / "work", resume=settings.resume)
    run = Run(path, info)
    with forgotten_if_fruitless(path), PhaseMeter(context.spared) as training:
        thresholds = None
        if settings.fold == "official":
            thresholds = _held_back_thresholds(approach, data, config, context)
        trained = _train(approach, data, config, path / "weights", context)
    with PhaseMeter(context.spared) as validating:
        if thresholds is None:
            write_predictions(path, "val", predict_images(approach, run, dataset, data.val, config, context))
            thresholds = fold_thresholds(run, dataset)
    run = run.save(
        device=settings.device,
        seconds={"train": training.seconds, "val": validating.seconds},
        peak_memory_mb={"train": training.peak_mb, "val": validating.peak_mb},
        parameters=trained.parameters,
        weights_from=trained.weights_from,
        resumed=resumed,  # seconds of training then cover the last stretch alone
        trained_on=dict(trained.trained_on or _trained_on(dataset, data.train)),
        thresholds={str(settings.fold): thresholds},
        facts=dict(trained.facts),
        versions=package_versions(),
    )
    shutil.rmtree(path / "work", ignore_errors=True)
    say(f"{path}: trained in {training.seconds:.0f} s, weights from {trained.weights_from}")
    return run


def check_folds(name: str, dataset: Dataset, config: Any) -> None:
    """Ask an approach that can tell whether every fold can be trained, before hours go into the first ones.

    Raises:
        MaskbridgeError: When one cannot.
    """
    approach: Any = plugins.load("approach", name)
    for fold in range(dataset.fold_count if hasattr(approach, "check") else 0):
        approach.check(_train_data(approach, dataset, fold), config)


def same_result_options(name: str) -> tuple[str, ...]:
    """Options of an approach that change time and memory alone."""
    return tuple(getattr(plugins.load("approach", name), "SAME_RESULT_OPTIONS", ()))


def run_info(name: str, dataset: Dataset, config: Any, *, fold: FoldName | str, seed: int) -> dict[str, Any]:
    """What run.json says of a run before it is trained."""
    return {
        "approach": name,
        "options": as_read_back(config),
        **truth_given(plugins.load("approach", name), config),
        "dataset": {
            "path": str(dataset.path),
            "name": dataset.name,
            "annotations_sha256": dataset.annotations_sha256,
            "splits_sha256": dataset.splits_sha256,
        },
        "bit_depth": dataset.bit_depth,
        "fold": fold,
        "seed": seed,
    }


def package_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    versions = {"maskbridge": __version__, "python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _train(approach: Approach, data: TrainData, config: Any, weights: Path, context: Context) -> Trained:
    weights.mkdir(parents=True, exist_ok=True)
    context.work.mkdir(parents=True, exist_ok=True)
    return approach.train(data, config, weights, context)


def _train_data(approach: Approach, dataset: Dataset, fold: FoldName) -> TrainData:
    """What an approach is given of a fold; an unsupervised one gets good images alone."""
    split = dataset.split(fold)
    train = split.train
    if not approach.SUPERVISED:
        train = tuple(i for i in train if dataset.image_by_id[i].is_good)
    return TrainData(dataset=dataset, train=train, val=split.val, fold=fold)


def _held_back_thresholds(approach: Approach, data: TrainData, config: Any, context: Context) -> dict[str, Any]:
    """Train without a tenth of the good images, whole groups, and set the thresholds by that tenth."""
    images = [data.dataset.image_by_id[i] for i in data.train]
    groups = list(dict.fromkeys(image.group for image in images))
    np.random.default_rng(context.seed).shuffle(groups)
    wanted = max(1, round(HELD_BACK_SHARE * len(images)))
    held: list[int] = []
    for group in groups:
        if len(held) >= wanted:
            break
        held.extend(image.id for image in images if image.group == group)
    rest = tuple(sorted(set(data.train) - set(held)))
    if not rest:
        raise OptionError(
            "too few good training images to hold a tenth back",
            where=data.dataset.path,
            found=f"{len(images)} in {len(groups)} groups",
            expected="at least 2 groups",
            remedy="they set the threshold; a fold that has a val part needs none held back",
        )
    weights = context.work / "calibration"
    partial = TrainData(dataset=data.dataset, train=rest, val=(), fold=data.fold)
    scratch = replace(context, work=context.work / "calibrate")
    _train(approach, partial, config, weights, scratch)
    held_ids = tuple(sorted(held))
    held_back = PredictData(dataset=data.dataset, image_ids=held_ids, fold=data.fold, part="train")
    predictions = approach.predict(held_back, config, weights, context)
    scores: dict[int, float] = {}
    maps: list[Any] = []
    for prediction in in_order(predictions, held_ids, data.dataset.path):
        if prediction.map is not None:
            maps.append(prediction.map)
        if prediction.score is not None:
            scores[prediction.image_id] = prediction.score
        elif prediction.map is not None:
            scores[prediction.image_id] = float(prediction.map.max())
    return held_back_thresholds(scores, maps)


def _trained_on(dataset: Dataset, train: tuple[int, ...]) -> dict[str, int]:
    kinds = [dataset.image_by_id[image_id].defect_type for image_id in train]
    good, made = kinds.count(GOOD), kinds.count(SYNTHETIC)
    return {"good": good, "defective": len(train) - good - made, **({"synthetic": made} if made else {})}
