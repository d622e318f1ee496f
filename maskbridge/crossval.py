"""Cross-validation: one run for each fold, and one merged run in which every labelled image is predicted once.

    maskbridge crossval knn datasets/bottle runs/bottle-knn-all

Models of different folds have different scales. Before merging, each fold's scores, maps and confidences are mapped
monotonically by a rule fitted on that fold's `val` alone: scores and maps are standardised, (x - mean) / sd, over the
images, or pixels, of `val`; the log-odds of confidences by those of the surest detection of each `val` image, their sd
being 1 at least, so that none is pressed into 0 or 1. Thresholds are mapped along; types of images stay as they are.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset
from maskbridge.errors import RunError
from maskbridge.folders import final, held
from maskbridge.options import require_usable
from maskbridge.predicting import predict_run, second_run
from maskbridge.predictions import Run, write_predictions
from maskbridge.progress import say
from maskbridge.run_folders import claimed
from maskbridge.training import Settings, check_folds, package_versions, run_info, same_result_options, train_run

PART = "crossval"
RULE = (
    "(x - mean) / sd over the fold's val, of image scores, of map pixels, and of the log-odds of the surest detection "
    "of each image (sd at least 1)"
)
#: Confidences 0 and 1 count as this far inside when a mapping is fitted.
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class Standardise:
    """x -> (x - mean) / sd; of log-odds, back to a share, where `odds` is set."""

    mean: float
    sd: float
    odds: bool = False

    @classmethod
    def fit(cls, values: Sequence[float], *, odds: bool = False) -> Standardise:
        """Fit on values of `val`; the identity for fewer than two, or where all are equal."""
        numbers = np.asarray(values, dtype=np.float64)
        if odds:
            numbers = _log_odds(np.clip(numbers, _LEAST_SHARE, 1 - _LEAST_SHARE))
        sd = float(numbers.std()) if len(numbers) > 1 else 0.0
        if not sd > 1e-9 * float(np.abs(numbers).max(initial=0.0)):
            return cls(0.0, 1.0, odds)
        return cls(float(numbers.mean()), max(sd, 1.0) if odds else sd, odds)

    def __call__(self, values: npt.NDArray[Any] | float) -> npt.NDArray[np.float64]:
        """Map values; confidences 0 and 1 stay what they are."""
        numbers = np.asarray(values, dtype=np.float64)
        if not self.odds:
            return (numbers - self.mean) / self.sd
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp((self.mean - _log_odds(numbers)) / self.sd))


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
            if not (settings.resume and run.has("test") and "test" in run.info["seconds"]):
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
    if not run.info.get("folds"):
        raise RunError(
            "is of all folds, but names none of them", where=run.path, remedy="predict with the runs of folds"
        )
    folds, free = [Run.open(run.path / name) for name in run.info["folds"]], same_result_options(run.info["approach"])
    if out is None:
        with held(run.path):
            runs = [predict_run(fold, dataset, "test", device=device, changes=changes) for fold in folds]
            return merge(run.path, runs, dataset, free)
    out = Path(os.path.abspath(out))
    with second_run(run, out, overwrite=overwrite) as folder:
        runs = [
            predict_run(fold, dataset, "test", device=device, changes=changes, out=folder / fold.name) for fold in folds
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
    mappings = [fit_mapping(run, dataset) for run in runs]
    write_predictions(
        path,
        PART,
        (p for run, mapping in zip(runs, mappings, strict=True) for p in _mapped(run, mapping, dataset)),
    )
    merged = Run(
        path,
        {key: first[key] for key in ("approach", "options", "dataset", "seed", "device", "weights_from")}
        | {key: first[key] for key in ("trained_options",) if key in first}
        | {
            "fold": "all",
            "truth_given": runs[0].truth_given,
            "folds": [run.path.name for run in runs],
            "parameters": first["parameters"],
            "seconds": _over(runs, "seconds", sum),
            "peak_memory_mb": _over(runs, "peak_memory_mb", max),
            "predict_ms_per_image": round(float(np.mean([run.info["predict_ms_per_image"] for run in runs])), 3),
            "trained_on": {
                kind: round(float(np.mean([run.info["trained_on"].get(kind, 0) for run in runs])), 1)
                for kind in first["trained_on"]
            },
            "thresholds": {
                str(run.info["fold"]): _mapped_thresholds(run, mapping)
                for run, mapping in zip(runs, mappings, strict=True)
            },
            "mapping": {
                "rule": RULE,
                "folds": {
                    str(run.info["fold"]): {
                        kind: None if rule is None else {"mean": rule.mean, "sd": rule.sd, "log_odds": rule.odds}
                        for kind, rule in mapping.items()
                    }
                    for run, mapping in zip(runs, mappings, strict=True)
                },
            },
            "facts": {run.path.name: run.info.get("facts", {}) for run in runs},
            "versions": package_versions(),
        },
    ).save()
    shutil.rmtree(path / "work", ignore_errors=True)
    say(f"{final(path)}: {len(runs)} folds merged, every labelled image predicted once")
    return merged


def fit_mapping(run: Run, dataset: Dataset) -> dict[str, Standardise | None]:
    """How a fold's `scores`, `maps` and `detections` are mapped; None for what it does not predict.

    Where `val` has nothing to fit on, the mapping is the identity.

    Raises:
        RunError: When a confidence is not within [0, 1].
    """
    image_ids = dataset.split(run.info["fold"]).val
    mapping: dict[str, Standardise | None] = {"scores": None, "maps": None, "detections": None}
    if run.scores("test") is not None:
        scores = run.scores("val") or {}
        mapping["scores"] = Standardise.fit([scores[i] for i in image_ids])
    if run.has_maps("test"):
        mapping["maps"] = _fit_maps(run, image_ids)
    tested = run.detections("test")
    if tested is not None:
        surest: dict[int, float] = {}
        validated = run.detections("val") or []
        for result in (*validated, *tested):
            if not 0 <= result["score"] <= 1:
                raise RunError("a confidence is no share", where=run.path, found=result["score"], expected="0 to 1")
        for result in validated:
            surest[result["image_id"]] = max(result["score"], surest.get(result["image_id"], 0.0))
        mapping["detections"] = Standardise.fit(list(surest.values()), odds=True)
    return mapping


def _fit_maps(run: Run, image_ids: Sequence[int]) -> Standardise:
    """Mean and standard deviation over the pixels of all maps, streamed; every image weighs the same."""
    means: list[float] = []
    squares: list[float] = []
    for image_id in image_ids:
        anomaly_map = run.map("val", image_id)
        if anomaly_map is not None:
            pixels = anomaly_map.astype(np.float64)
            means.append(float(pixels.mean()))
            squares.append(float(np.square(pixels).mean()))
    if not means:
        return Standardise(0.0, 1.0)
    mean = float(np.mean(means))
    variance = float(np.mean(squares)) - mean**2
    if not variance > 1e-12 * mean**2:  # what float64 leaves of equal pixels
        return Standardise(0.0, 1.0)
    return Standardise(mean, math.sqrt(variance))


def _mapped(run: Run, mapping: dict[str, Standardise | None], dataset: Dataset) -> Iterator[Prediction]:
    image_ids = dataset.split(run.info["fold"]).test
    scores, types, results = run.scores("test"), run.types("test"), run.detections("test")
    of_image: dict[int, list[Detection]] = {image_id: [] for image_id in image_ids}
    rule = mapping["detections"]
    for result in results or []:
        left, top, width, height = result["bbox"]
        of_image[result["image_id"]].append(
            Detection(
                box_ltwh=(left, top, width, height),
                score=float(result["score"] if rule is None else rule(result["score"])),
                category_id=result["category_id"],
                segmentation=result.get("segmentation"),
            )
        )
    score_rule, map_rule = mapping["scores"], mapping["maps"]
    for image_id in image_ids:
        anomaly_map = run.map("test", image_id)
        yield Prediction(
            image_id=image_id,
            score=None if scores is None or score_rule is None else float(score_rule(scores[image_id])),
            map=None if anomaly_map is None or map_rule is None else map_rule(anomaly_map).astype(np.float32),
            detections=None if results is None else of_image[image_id],
            type=None if types is None else types[image_id],
        )


def _mapped_thresholds(run: Run, mapping: dict[str, Standardise | None]) -> dict[str, Any]:
    """Thresholds on the merged scale; a threshold of derived values is mapped like what they derive from."""
    sources = {
        "image": ("scores", "detections", "maps"),
        "pixel": ("maps", "detections"),
        "detection": ("detections", "maps"),
    }
    mapped: dict[str, Any] = {}
    for kind, entry in run.info["thresholds"][str(run.info["fold"])].items():
        source = next((source for source in sources[kind] if mapping[source] is not None), None)
        rule = None if source is None else mapping[source]
        if entry.get("value") is None or rule is None:
            mapped[kind] = entry
            continue
        value = float(rule(entry["value"]))
        if source == "maps":  # rounded like the pixels that it is compared with, so that equal values stay equal
            value = float(np.float32(value))
        mapped[kind] = {**entry, "value": value, "before_mapping": entry["value"]}
    return mapped


def _over(runs: Sequence[Run], key: str, combine: Any) -> dict[str, float]:
    return {phase: round(combine(run.info[key][phase] for run in runs), 3) for phase in runs[0].info[key]}


def _log_odds(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        odds: npt.NDArray[np.float64] = np.log(shares) - np.log1p(-shares)
    return odds
