"""Cross-validation: one run for each fold, and one merged run in which every labelled image is predicted once.

    maskbridge crossval knn datasets/bottle runs/bottle-knn-all

The merged run has the predictions and thresholds of the folds as they are. Models of different folds have different
scales: `maskbridge.fold_ranks` brings them on one where it is needed, and run.json says by which rule.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset
from maskbridge.derive import PredictionView
from maskbridge.errors import RunError
from maskbridge.fold_ranks import FoldRanks, fold_runs
from maskbridge.folders import final, held
from maskbridge.options import require_usable
from maskbridge.predicting import predict_run, second_run
from maskbridge.predictions import Run, write_predictions
from maskbridge.progress import say
from maskbridge.run_folders import claimed
from maskbridge.training import Settings, check_folds, package_versions, run_info, same_result_options, train_run

PART = "crossval"
#: What a merged run has of its folds as they have it.
_OF_ALL_FOLDS = (
    "approach",
    "options",
    "trained_options",
    "dataset",
    "bit_depth",
    "seed",
    "device",
    "weights_from",
)


def crossval(name: str, dataset: Dataset, path: Path, config: Any, settings: Settings) -> Run:
    """Train and predict every fold, and merge them.

    Args:
        name: Name of the approach.
        dataset: The dataset.
        path: The merged run; the folds are `path/fold0`, `path/fold1`, …
        config: The approach's `Config`.
        settings: As for `train_run`; its fold is not used.

    Returns:
        The merged run, with predictions `crossval`.

    Raises:
        MaskbridgeError: As `train_run`.
    """
    path = Path(os.path.abspath(path))
    for options in (settings, config):
        require_usable(type(options), vars(options))
    dataset.split(0)  # refused where there are no folds
    info = run_info(name, dataset, config, fold="all", seed=settings.seed)
    free = same_result_options(name)
    with claimed(path, info, resume=settings.resume, overwrite=settings.overwrite, free=free) as claim:
        check_folds(name, dataset, config)
        runs: list[Run] = []
        for fold in range(dataset.fold_count):
            say(f"{final(path)}: fold {fold} of {dataset.fold_count}")
            of_fold = replace(settings, fold=fold, overwrite=False)
            run = train_run(name, dataset, claim.folder / f"fold{fold}", config, of_fold)
            if not (settings.resume and run.has("test") and "test" in (run.info.get("seconds") or {})):
                run = predict_run(run, dataset, "test", device=settings.device)
            runs.append(run)
        merged = merge(claim.folder, runs, dataset, free)
    return Run(path, merged.info)


def predict_folds(
    run: Run,
    dataset: Dataset,
    *,
    device: str = "auto",
    changes: dict[str, Any] | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Predict the test part of every fold of a merged run again, and merge them.

    Args:
        run: A run over all folds.
        dataset: Its dataset.
        device: As in `Settings`.
        changes: Options of the approach to set anew; they need `out`, as for `predict_run`.
        out: A run over all folds to make for it; the run itself is left as it is.
        overwrite: Replace `out` if it is a run.

    Raises:
        RunError: When a fold is missing, or `out` lies in or around the run.
        MaskbridgeError: When `out` is taken.
    """
    folds, free = fold_runs(run, dataset), same_result_options(run.info["approach"])
    if out is None:
        with held(run.path):
            runs = [predict_run(fold, dataset, "test", device=device, changes=changes) for fold in folds]
            return merge(run.path, runs, dataset, free)
    out = Path(os.path.abspath(out))
    with second_run(run, out, overwrite=overwrite) as folder:
        runs = [
            predict_run(fold, dataset, "test", device=device, changes=changes, out=folder / f"fold{fold.info['fold']}")
            for fold in folds
        ]
        merge(folder, runs, dataset, free)
    return Run.open(out)


def merge(path: Path, runs: Sequence[Run], dataset: Dataset, free: Collection[str] = ()) -> Run:
    """Merge the runs of all folds into one with predictions `crossval`; `free` options may differ.

    Raises:
        RunError: When folds were predicted with different options, as an interrupted `predict` leaves them.
    """
    first = runs[0].info
    for run in runs[1:]:
        names = [k for k, v in run.info["options"].items() if k not in free and first["options"].get(k) != v]
        if names:
            raise RunError(
                "was predicted with other options than the first fold",
                where=run.path,
                found=", ".join(names),
                remedy="predict each fold with the same ones",
            )
    write_predictions(path, PART, (prediction for run in runs for prediction in _tested(run, dataset)))
    merged = Run(
        path,
        {key: first[key] for key in _OF_ALL_FOLDS if key in first}
        | {
            "fold": "all",
            "truth_given": runs[0].truth_given,
            "folds": [_name(run, path) for run in runs],
            "parameters": first.get("parameters"),
            "seconds": _over([run.info.get("seconds") for run in runs], sum),
            "peak_memory_mb": _over([run.info.get("peak_memory_mb") for run in runs], max),
            **_over([{"predict_ms_per_image": run.info.get("predict_ms_per_image")} for run in runs], fmean),
            "trained_on": _over([run.info.get("trained_on") for run in runs], fmean, digits=1),
            "thresholds": {
                fold: entry
                for run in runs
                for fold, entry in (run.info.get("thresholds") or {}).items()
                if fold == str(run.info["fold"])
            },
            "mapping": FoldRanks(runs, dataset).to_json(),
            **{key: _united(runs, key) for key in ("start_weights", "seen")},
            "facts": {Path(_name(run, path)).name: run.info.get("facts", {}) for run in runs},
            "versions": package_versions(),
        },
    ).save()
    shutil.rmtree(path / "work", ignore_errors=True)
    say(f"{final(path)}: {len(runs)} folds merged, every labelled image predicted once")
    return merged


def _united(runs: Sequence[Run], key: str) -> list[Any]:
    """Each entry of a list that any fold's run.json has, once."""
    united: list[Any] = []
    for run in runs:
        united += [entry for entry in run.info.get(key) or () if entry not in united]
    return united


def _tested(run: Run, dataset: Dataset) -> Iterator[Prediction]:
    """What a fold predicted of its test part."""
    view = PredictionView(run, dataset, "test")
    scores, types, results = run.scores("test"), run.types("test"), view.given_detections()
    for what, table in (("scores", scores), ("types", types)):
        if table is not None:
            view.refuse_other_images(set(table), what)
    image_ids = view.image_ids
    of_image: dict[int, list[Detection]] = {image_id: [] for image_id in image_ids}
    for result in results or ():
        left, top, width, height = result["bbox"]
        of_image[result["image_id"]].append(
            Detection(
                box_ltwh=(left, top, width, height),
                score=result["score"],
                category_id=result["category_id"],
                segmentation=result.get("segmentation"),
            )
        )
    for image_id in image_ids:
        yield Prediction(
            image_id=image_id,
            score=None if scores is None else scores[image_id],
            map=run.map("test", image_id),
            detections=None if results is None else of_image[image_id],
            type=None if types is None else types[image_id],
        )


def _name(run: Run, path: Path) -> str:
    """Where the run of a fold lies, as seen from the merged one; it may be a link there."""
    name = f"fold{run.info['fold']}"
    return (
        name if (path / name).resolve() == run.path.resolve() else os.path.relpath(run.path.resolve(), path.resolve())
    )


def _over(
    tables: Sequence[dict[str, Any] | None], combine: Callable[[list[float]], float], digits: int = 3
) -> dict[str, float]:
    """What every fold tells, over the folds."""
    told = [table or {} for table in tables]
    common = [key for key in told[0] if all(table.get(key) is not None for table in told)]
    return {key: round(combine([table[key] for table in told]), digits) for key in common}
