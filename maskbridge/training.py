"""Training, predicting and cross-validation of any approach, and everything a run keeps about it.

    run = train_run("knn", Dataset.open("datasets/bottle"), Path("runs/bottle-knn-0"), Config(), Settings(fold=0))
    predict_run(run, run.dataset(), "test")

Unsupervised approaches are given good images only. On folds thresholds are fitted on `val`. On the official split a
tenth of the good training images is held back to calibrate, then the model is refitted on all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from maskbridge import __version__, plugins
from maskbridge.approach import Approach, Context, PredictData, Prediction, TrainData, Trained
from maskbridge.dataset import Dataset, FoldName
from maskbridge.errors import OptionError, RunError
from maskbridge.files import link_file, staged_folder
from maskbridge.meters import Clock, PhaseMeter
from maskbridge.options import from_stored
from maskbridge.predictions import Run, refuse_not_finite, write_predictions
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
    split = dataset.split(settings.fold)
    if approach.SUPERVISED and settings.fold == "official":
        raise OptionError(
            f"{name} learns from labelled defects, and the official training part has none",
            where=dataset.path,
            remedy="use --fold 0 or crossval",
        )
    info = run_info(name, dataset, config, fold=settings.fold, seed=settings.seed)
    resumed = settings.resume and (path / "weights").is_dir()
    finished = claim(path, info, resume=settings.resume, overwrite=settings.overwrite)
    if finished is not None:
        say(f"{path}: already trained")
        return finished
    train = split.train
    if not approach.SUPERVISED:
        train = tuple(i for i in train if dataset.image_by_id[i].is_good)
    data = TrainData(dataset=dataset, train=train, val=split.val, fold=settings.fold)
    context = Context(device=settings.device, seed=settings.seed, work=path / "work", resume=settings.resume)
    run = Run(path, info)
    with forgotten_if_fruitless(path), PhaseMeter() as training:
        thresholds = None
        if settings.fold == "official":
            thresholds = _held_back_thresholds(approach, data, config, context)
        trained = _train(approach, data, config, path / "weights", context)
    with PhaseMeter() as validating:
        if thresholds is None:
            write_predictions(path, "val", _predict(approach, run, dataset, split.val, config, context))
            thresholds = fold_thresholds(run, dataset)
    run = run.save(
        device=settings.device,
        seconds={"train": training.seconds, "val": validating.seconds},
        peak_memory_mb={"train": training.peak_mb, "val": validating.peak_mb},
        parameters=trained.parameters,
        weights_from=trained.weights_from,
        resumed=resumed,  # seconds of training then cover the last stretch alone
        trained_on=dict(trained.trained_on or _trained_on(dataset, train)),
        thresholds={str(settings.fold): thresholds},
        facts=dict(trained.facts),
        versions=package_versions(),
    )
    shutil.rmtree(path / "work", ignore_errors=True)
    say(f"{path}: trained in {training.seconds:.0f} s, weights from {trained.weights_from}")
    return run


def predict_run(
    run: Run,
    dataset: Dataset,
    part: str,
    *,
    device: str = "auto",
    changes: dict[str, Any] | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Predict the images of a part with a trained run.

    Nothing of the run, or of a run in the place of `out`, is touched before all predictions are there.

    Args:
        run: A run of one fold.
        dataset: Its dataset.
        part: `val` or `test`.
        device: As in `Settings`.
        changes: Options of the approach to set anew. Thresholds are then fitted again on `val`, and predictions
            made with other options are removed.
        out: A run folder to make for it, with the same weights; the run itself is left as it is.
        overwrite: Replace `out` if it is a run.

    Raises:
        RunError: When the run is a merged cross-validation, or has no such part, or `out` lies in or around it.
        OptionError: When options are changed on the official split, whose held-back model is gone, or `out` is given.
        MaskbridgeError: When `out` is taken.
    """
    fold = run.info["fold"]
    if fold == "all":
        raise RunError("is a merged cross-validation", where=run.path, remedy=f"predict one fold: {run.path}/fold0")
    approach: Approach = plugins.load("approach", run.info["approach"])
    config = from_stored(approach.Config, {**run.info["options"], **(changes or {})}, run.path / "run.json")
    old, options = run.info["options"], _as_read_back(config)
    split = dataset.split(fold)
    if not split.part(part):
        raise RunError(f"fold {fold} has no part {part}", where=run.path)
    if fold == "official" and options != old:
        raise OptionError(
            "thresholds of the official split were set with other options", where=run.path, remedy="train again"
        )
    if fold == "official" and out is not None:
        raise OptionError("a second run fits its thresholds on val, and the official split has none", where=run.path)
    anew = options != old or out is not None
    path = run.path if out is None else Path(os.path.abspath(out))
    info = {**run.info, "options": options}
    if anew:
        info |= {**_given(approach, config), "trained_options": run.info.get("trained_options", old)}
    with contextlib.nullcontext(run.path) if out is None else second_run(run, path, overwrite=overwrite) as folder:
        context = Context(device=device, seed=run.info["seed"], work=folder / "work")
        fresh = Run(context.work / "predicted", info)
        seconds = {phase: value for phase, value in info["seconds"].items() if phase == "train" or not anew}
        peak_mb = {phase: value for phase, value in info["peak_memory_mb"].items() if phase in seconds}
        try:
            for each in dict.fromkeys(("val", part) if anew else (part,)):
                clock = Clock()
                with PhaseMeter() as predicting:
                    predictions = _predict(approach, run, dataset, split.part(each), config, context, each)
                    write_predictions(fresh.path, each, clock.measure(predictions))
                seconds[each], peak_mb[each] = predicting.seconds, predicting.peak_mb
            thresholds = {str(fold): fold_thresholds(fresh, dataset)} if anew else info["thresholds"]
            _replace_predictions(folder, fresh.path, all_of_them=anew)
        finally:
            shutil.rmtree(context.work, ignore_errors=True)
        if out is not None:
            _link_weights(run.weights, folder / "weights")
        info |= {"thresholds": thresholds, "seconds": seconds, "peak_memory_mb": peak_mb}
        info["predict_ms_per_image"] = clock.ms_per_image
        Run(folder, info).save()
    if anew:
        changed = ", ".join(f"{k} {old.get(k)} -> {v}" for k, v in options.items() if old.get(k) != v)
        say(f"{path}: from now on {changed or 'the same options'}; thresholds were fitted anew on val")
    say(f"{path}: {len(split.part(part))} images of {part} predicted")
    return Run(path, info)


@contextlib.contextmanager
def second_run(run: Run, out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to make a second run of the same weights in; it becomes `out` when the block ends well.

    Raises:
        RunError: When `out` lies in or around the first run, or is it.
        MaskbridgeError: When `out` is taken.
    """
    place = out.resolve()
    if place == run.path or place in run.path.parents or run.path in place.parents:
        raise RunError("lies in or around the run itself", where=out, found=run.path, remedy="name another folder")
    with staged_folder(out, overwrite=overwrite, kind="run") as folder:
        yield folder


def run_info(name: str, dataset: Dataset, config: Any, *, fold: FoldName | str, seed: int) -> dict[str, Any]:
    """What run.json says of a run before it is trained."""
    return {
        "approach": name,
        "options": _as_read_back(config),
        **_given(plugins.load("approach", name), config),
        "dataset": {
            "path": str(dataset.path),
            "name": dataset.name,
            "annotations_sha256": dataset.annotations_sha256,
            "splits_sha256": dataset.splits_sha256,
        },
        "fold": fold,
        "seed": seed,
    }


def _as_read_back(config: Any) -> dict[str, Any]:
    """Options as a run.json gives them back."""
    options: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return options


def _given(approach: Approach, config: Any) -> dict[str, Any]:
    """`truth_given` of run.json: what of the truth the predictions are given; None for honest ones."""
    hook = getattr(approach, "truth_given", None)
    return {"truth_given": None if hook is None else hook(config)}


def _replace_predictions(folder: Path, fresh: Path, *, all_of_them: bool) -> None:
    """Move the predictions of one run folder into another."""
    if all_of_them:
        shutil.rmtree(folder / "predictions", ignore_errors=True)
    for part in sorted((fresh / "predictions").iterdir()):
        shutil.rmtree(folder / "predictions" / part.name, ignore_errors=True)
        (folder / "predictions").mkdir(exist_ok=True)
        os.replace(part, folder / "predictions" / part.name)


def _link_weights(weights: Path, out: Path) -> None:
    """The same files in another folder, hard-linked where possible."""
    out.mkdir()
    for source in sorted(path for path in weights.rglob("*") if path.is_file()):
        link_file(source, out / source.relative_to(weights), "hard")


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


def _predict(
    approach: Approach,
    run: Run,
    dataset: Dataset,
    image_ids: tuple[int, ...],
    config: Any,
    context: Context,
    part: str = "val",
) -> Iterator[Prediction]:
    context.work.mkdir(parents=True, exist_ok=True)
    data = PredictData(dataset=dataset, image_ids=image_ids, fold=run.info["fold"], part=part)
    predictions = _in_order(approach.predict(data, config, run.weights, context), image_ids, run.path)
    return context.track(predictions, f"{run.info['approach']} predicts", total=len(image_ids))


def _in_order(predictions: Iterable[Prediction], image_ids: tuple[int, ...], where: Path) -> Iterator[Prediction]:
    """Pass on finite predictions, one for each image, in order; refuse others."""
    asked = iter(image_ids)
    for prediction in predictions:
        if prediction.image_id != (expected := next(asked, None)):
            raise RunError(
                "the approach predicted another image than it was asked for",
                where=where,
                found=prediction.image_id,
                expected=expected,
            )
        refuse_not_finite(prediction, where)
        yield prediction
    if (left_out := next(asked, None)) is not None:
        raise RunError(f"the approach did not predict image {left_out}", where=where)


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
        )
    weights = context.work / "calibration"
    partial = TrainData(dataset=data.dataset, train=rest, val=(), fold=data.fold)
    scratch = Context(device=context.device, seed=context.seed, work=context.work / "calibrate")
    _train(approach, partial, config, weights, scratch)
    held_ids = tuple(sorted(held))
    held_back = PredictData(dataset=data.dataset, image_ids=held_ids, fold=data.fold, part="train")
    predictions = approach.predict(held_back, config, weights, context)
    scores: dict[int, float] = {}
    maps: list[Any] = []
    for prediction in _in_order(predictions, held_ids, data.dataset.path):
        if prediction.map is not None:
            maps.append(prediction.map)
        if prediction.score is not None:
            scores[prediction.image_id] = prediction.score
        elif prediction.map is not None:
            scores[prediction.image_id] = float(prediction.map.max())
    return held_back_thresholds(scores, maps)


def _trained_on(dataset: Dataset, train: tuple[int, ...]) -> dict[str, int]:
    good = sum(dataset.image_by_id[i].is_good for i in train)
    return {"good": good, "defective": len(train) - good}
