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
from maskbridge.approach import Approach, Context, PredictData, TrainData, Trained, count_images
from maskbridge.dataset import Dataset, FoldName
from maskbridge.errors import OptionError
from maskbridge.folders import final
from maskbridge.meters import PhaseMeter
from maskbridge.official import REMEDY, leak_note
from maskbridge.options import require_usable
from maskbridge.predicting import as_read_back, in_order, predict_images, truth_given
from maskbridge.predictions import Run, write_predictions
from maskbridge.progress import say
from maskbridge.run_folders import claimed
from maskbridge.start_weights import Start, as_kept, mark, seen_in, start_from
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
    """replace a run that is there, once the new one is whole; with --resume, go on with a replacement that was
    interrupted"""


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
    for options in (settings, config):
        require_usable(type(options), vars(options))
    path = Path(os.path.abspath(path))
    approach: Approach = plugins.load("approach", name)
    if approach.SUPERVISED and settings.fold == "official":
        raise OptionError(
            f"{name} learns from labelled defects, and is not trained on the official split",
            where=dataset.path,
            remedy="use --fold 0 or crossval",
        )
    info = run_info(name, dataset, config, fold=settings.fold, seed=settings.seed)
    data = _train_data(approach, dataset, settings.fold)
    if settings.fold == "official" and (note := leak_note(dataset.images, dataset.splits["official"])):
        say(f"{dataset.path}: {note}; {REMEDY}")
    start = start_from(config, data)
    free = same_result_options(name)
    with claimed(path, info, resume=settings.resume, overwrite=settings.overwrite, free=free) as claim:
        if claim.finished is not None:
            say(f"{final(path)}: already trained")
            return claim.finished
        made = _train_into(claim.folder, approach, data, config, info, settings, start)
    return Run(path, made.info)


def _train_into(
    folder: Path,
    approach: Approach,
    data: TrainData,
    config: Any,
    info: dict[str, Any],
    settings: Settings,
    start: Start,
) -> Run:
    """Train in a run folder that is ours, and leave a finished run there."""
    dataset = data.dataset
    resumed = any((folder / name).is_dir() for name in ("weights", "work/calibration"))
    context = Context(device=settings.device, seed=settings.seed, work=folder / "work", resume=settings.resume)
    run = Run(folder, info)
    with PhaseMeter(context.spared) as training:
        thresholds = None
        if settings.fold == "official":
            thresholds = _held_back_thresholds(approach, data, config, context)
        trained = _train(approach, data, config, run.weights, context)
    name = final(folder).name
    seen = [seen_in(name, trained.weights_from, dataset, data.fold, train=data.train, val=data.val)]
    seen += [seen_in(name, trained.weights_from, d, fold, train=ids) for d, fold, ids in trained.also_trained_on]
    seen += start.seen
    mark(run.weights, seen)
    with PhaseMeter(context.spared) as validating:
        if thresholds is None:
            write_predictions(folder, "val", predict_images(approach, run, dataset, data.val, config, context))
            thresholds = fold_thresholds(run, dataset)
    run = run.save(
        device=settings.device,
        seconds={"train": training.seconds, "val": validating.seconds},
        peak_memory_mb={"train": training.peak_mb, "val": validating.peak_mb},
        parameters=trained.parameters,
        weights_from=trained.weights_from,
        start_weights=list(start.files),
        seen=as_kept(seen),
        resumed=resumed,  # seconds of training then cover the last stretch alone
        trained_on=dict(trained.trained_on or count_images(dataset, data.train)),
        thresholds={str(settings.fold): thresholds},
        facts=dict(trained.facts),
        versions=package_versions(),
    )
    shutil.rmtree(context.work, ignore_errors=True)
    say(f"{final(folder)}: trained in {training.seconds:.0f} s, weights from {trained.weights_from}")
    return run


def check_folds(name: str, dataset: Dataset, config: Any) -> None:
    """See whether every fold can be trained and may start so, before hours go into the first ones.

    Raises:
        MaskbridgeError: When one cannot.
    """
    approach: Any = plugins.load("approach", name)
    for fold in range(dataset.fold_count):
        data = _train_data(approach, dataset, fold)
        start_from(config, data)
        if hasattr(approach, "check"):
            approach.check(data, config)


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
