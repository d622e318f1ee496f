"""All metrics of one run: the content of its `metrics.json`.

    evaluation = evaluate(run, dataset, "test")
    evaluation.metrics["image"]["auroc"]          # {"value": 0.97, "low": 0.93, "high": 0.99, "derived": False}

Evaluation goes by the predictions that are there, never by the approach's name; what follows from others is
marked `derived`. Every figure of a run is over the same images, and two runs are comparable when `image_ids_sha256` and
`truth_sha256` are the same: they may have been trained on other images, such as those of `maskbridge synthesize`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation import image_metrics, instance_metrics, mask_metrics, pixel_metrics
from evaluation.curves import Curve
from evaluation.image_metrics import ImageMetrics
from evaluation.instance_metrics import MOST_DETECTIONS, InstanceMetrics
from evaluation.intervals import Family, Metric, Resampling, measure
from evaluation.pixel_metrics import PixelMetrics
from evaluation.type_metrics import TYPE_NAMES, TypeMetrics, detection_rate_by_type, recall_by_type, type_recall
from maskbridge.dataset import GOOD, Dataset
from maskbridge.derive import PredictionView
from maskbridge.errors import RunError
from maskbridge.files import sha256_bytes
from maskbridge.fold_ranks import FoldRanks, Kind, mapped
from maskbridge.predictions import Result, Run
from maskbridge.progress import say

Sampled = dict[str, dict[str, npt.NDArray[np.float64]]]

#: Bootstrap samples of an interval.
SAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run on the images of a part.

    Attributes:
        run: The run.
        dataset: Its dataset.
        part: `val`, `test` or `crossval`.
        view: Its predictions, also those that follow from others.
        metrics: The content of metrics.json.
        sampled: By family and metric the value in each bootstrap sample, S; the same samples for every run on the
            same images. Metrics without a value are missing.
        curves: `roc`, `pr` and `pro`, as `evaluation.curves` has them; what is undefined is missing.
        ranks: How values of the folds are brought on one scale; None where they are on one as they are.
    """

    run: Run
    dataset: Dataset
    part: str
    view: PredictionView
    metrics: dict[str, Any]
    sampled: Sampled
    curves: dict[str, Curve]
    ranks: FoldRanks | None = None


def evaluate(
    run: Run,
    dataset: Dataset,
    part: str,
    *,
    samples: int = SAMPLES,
    drawn: int | None = None,
    seed: int = 0,
    max_detections: int = MOST_DETECTIONS,
) -> Evaluation:
    """Compute every metric of a part.

    Args:
        run: The run.
        dataset: The dataset it was trained on.
        part: `val`, `test` or `crossval`.
        samples: Bootstrap samples of an interval.
        drawn: Samples drawn in all, for comparisons; at least `samples`, which are the first of them.
        seed: Their seed.
        max_detections: Detections of an image that COCO figures look at, the surest first.

    Raises:
        RunError: When the part has no images, or the predictions do not fit them.
    """
    view = PredictionView(run, dataset, part, most_detections=max_detections)
    if not view.image_ids:
        raise RunError(f"the part {part} has no images", where=run.path, found=f"fold {run.info['fold']}")
    images = [dataset.image_by_id[image_id] for image_id in view.image_ids]
    defective = np.array([not image.is_good for image in images], bool)
    groups = np.array([image.group for image in images], np.int64)
    folds = _folds(view) if part == "crossval" else {}
    fold_of = np.array([view.fold(image_id) for image_id in view.image_ids])
    resampling = Resampling(groups, defective, samples=samples, drawn=drawn, seed=seed, folds=fold_of)
    judged = _Judged(view, defective, FoldRanks.of(run, dataset) if part == "crossval" else None, max_detections)

    families: dict[str, dict[str, Metric]] = {}
    sampled: Sampled = {}
    by_fold: dict[str, Any] = {}
    curves: dict[str, Curve] = {}
    for name, build in _FAMILIES.items():
        family, derived = build(judged)
        if isinstance(family, dict):
            families[name], sampled[name] = family, {}
            continue
        families[name], sampled[name] = measure(family, resampling, derived=derived)
        if isinstance(family, ImageMetrics | PixelMetrics):
            curves |= family.curves()
        if folds:
            by_fold[name] = _over_folds(family, folds)
    unknown = len(dataset.without_mask & set(view.image_ids))  # judged as images, not by pixels and boxes
    metrics = {
        "part": part,
        "image_ids_sha256": image_ids_sha256(view.image_ids),
        "annotations_sha256": dataset.annotations_sha256,
        "truth_sha256": truth_sha256(dataset, view.image_ids),
        "images": {
            "good": int((~defective).sum()),
            "defective": int(defective.sum()),
            **({"without_mask": unknown} if unknown else {}),
        },
        "intervals": {"level": 0.95, "samples": samples, "seed": seed, "groups": len(np.unique(groups))},
        **families,
        **({"folds": by_fold} if folds else {}),
        **({} if judged.ranks is None else {"mapping": judged.ranks.to_json()}),
        "detections": {"most_per_image": max_detections, "images_cut": judged.images_cut},
        "cost": _cost(run),
    }
    if judged.images_cut:
        say(
            f"{run.path}: {judged.images_cut} images have more than {max_detections} detections; COCO figures look at "
            "the surest alone (--max-detections)"
        )
    return Evaluation(
        run=run,
        dataset=dataset,
        part=part,
        view=view,
        metrics=metrics,
        sampled=sampled,
        curves=curves,
        ranks=judged.ranks,
    )


def image_ids_sha256(image_ids: Sequence[int]) -> str:
    """SHA-256 of the image ids, ascending, joined by commas."""
    return sha256_bytes(",".join(str(image_id) for image_id in sorted(image_ids)).encode("ascii"))


def truth_sha256(dataset: Dataset, image_ids: Sequence[int]) -> str:
    """SHA-256 of all that predictions of some images are judged by: their pixels, groups, types and defects."""
    names = {category["id"]: category["name"] for category in dataset.categories}
    truth: list[Any] = []
    for image_id in sorted(image_ids):
        image = dataset.image_by_id[image_id]
        defects = [
            [names.get(a["category_id"]), a["bbox"], a["segmentation"]] for a in dataset.annotations_by_image[image_id]
        ]
        truth.append([image_id, image.sha256, image.group, image.defect_type, defects])
    return sha256_bytes(json.dumps(truth, sort_keys=True).encode("utf-8"))


Built = tuple[Family | dict[str, Metric], bool]


@dataclass
class _Judged:
    """What families are built from.

    Attributes:
        view: Predictions of the part.
        defective: Whether each image is defective, N.
        ranks: How values of the folds are brought on one scale; None where they are on one as they are.
        max_detections: Detections of an image that are looked at.
        images_cut: Number of images that have more.
    """

    view: PredictionView
    defective: npt.NDArray[np.bool_]
    ranks: FoldRanks | None
    max_detections: int
    images_cut: int = 0

    def one_scale(self, kind: Kind, image_ids: Sequence[int], values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Values of some images on one scale."""
        ranks = None if self.ranks is None else self.ranks[kind]
        return mapped(ranks, [self.view.fold(image_id) for image_id in image_ids], values)


def _image_family(judged: _Judged) -> Built:
    view = judged.view
    scores, thresholds = view.scores(), view.threshold("image")
    if scores.value is None:
        return _none(image_metrics.NAMES, scores.why), False
    values = np.array([scores.value[i] for i in view.image_ids])
    cuts = None if thresholds.value is None else np.array([thresholds.value[i] for i in view.image_ids])
    family = ImageMetrics(
        values,
        judged.defective,
        cuts,
        thresholds.why,
        folds=np.array([view.fold(i) for i in view.image_ids]),
        one_scale=judged.one_scale("image", view.image_ids, values),
    )
    return family, scores.derived


def _image_recall_by_type_family(judged: _Judged) -> Built:
    view = judged.view
    family, derived = _image_family(judged)
    if isinstance(family, ImageMetrics) and family.called is not None:
        return recall_by_type(view.dataset, view.image_ids, family.called), derived
    return _none(_types(view), view.scores().why or view.threshold("image").why), False


def _pixel_family(judged: _Judged) -> Built:
    view = judged.view
    maps = view.maps()
    if maps.value is None:
        return _none(pixel_metrics.NAMES, maps.why), False
    return PixelMetrics(view, maps.value, None if judged.ranks is None else judged.ranks["pixel"]), maps.derived


def _instance_family(judged: _Judged) -> Built:
    return _instances(judged, by_type=False)


def _instance_by_type_family(judged: _Judged) -> Built:
    return _instances(judged, by_type=True)


def _instances(judged: _Judged, *, by_type: bool) -> Built:
    view, most = judged.view, judged.max_detections
    results, names = view.detections(), instance_metrics.names(most=most)
    if results.value is None:
        return _none(names, results.why), False
    if by_type and (view.given_why or results.derived):
        return _none(names, view.given_why or "detections derived from a map are of unknown type"), False
    found = _can_be_judged(view, results.value)
    family = InstanceMetrics(
        view.dataset,
        view.image_ids,
        found,
        by_type=by_type,
        no_boxes=view.given_why,
        most=most,
        one_scale=judged.one_scale("detection", [r["image_id"] for r in found], [r["score"] for r in found]),
    )
    judged.images_cut = max(judged.images_cut, family.images_cut, results.images_cut)
    return family, results.derived


def _can_be_judged(view: PredictionView, results: Sequence[Result]) -> list[Result]:
    """Detections that can be right or wrong: not those in a defect image without a mask."""
    return [result for result in results if result["image_id"] not in view.dataset.without_mask]


def _detection_rate_by_type_family(judged: _Judged) -> Built:
    view = judged.view
    results, thresholds = view.detections(), view.threshold("detection")
    if results.value is None or thresholds.value is None:
        return _none(_types(view), results.why or thresholds.why), False
    rates = detection_rate_by_type(view.dataset, view.image_ids, results.value, thresholds.value)
    return rates, results.derived


def _mask_family(judged: _Judged) -> Built:
    view = judged.view
    results, thresholds = view.detections(), view.threshold("detection")
    if results.value is None:
        return _none(mask_metrics.NAMES, results.why), False
    if not all("segmentation" in result for result in results.value):
        return _none(mask_metrics.NAMES, instance_metrics.NO_MASKS), False
    if thresholds.value is None and not view.given_why:
        return _none(mask_metrics.NAMES, thresholds.why), False
    overlap = mask_metrics.mask_overlap(view.dataset, view.image_ids, results.value, thresholds.value)
    return overlap, results.derived


def _type_family(judged: _Judged) -> Built:
    view = judged.view
    types = view.types()
    if types.value is None:
        return _none(TYPE_NAMES, types.why), False
    return TypeMetrics(view.dataset, view.image_ids, types.value), types.derived


def _type_recall_family(judged: _Judged) -> Built:
    view = judged.view
    types = view.types()
    if types.value is None:
        return _none((GOOD, *_types(view)), types.why), False
    return type_recall(view.dataset, view.image_ids, types.value), types.derived


_FAMILIES: dict[str, Callable[[_Judged], Built]] = {
    "image": _image_family,
    "image_recall_by_type": _image_recall_by_type_family,
    "pixel": _pixel_family,
    "instance": _instance_family,
    "instance_by_type": _instance_by_type_family,
    "mask": _mask_family,
    "detection_rate_by_type": _detection_rate_by_type_family,
    "type": _type_family,
    "type_recall": _type_recall_family,
}


def _types(view: PredictionView) -> tuple[str, ...]:
    return tuple(category["name"] for category in view.dataset.categories)


def _none(names: Sequence[str], why: str) -> dict[str, Metric]:
    return {name: {"value": None, "why": why} for name in names}


def _folds(view: PredictionView) -> dict[str, npt.NDArray[np.bool_]]:
    """Which images each fold judges, N, bool, by fold."""
    fold_of = np.array([view.fold(image_id) for image_id in view.image_ids])
    return {fold: fold_of == fold for fold in sorted(set(fold_of.tolist()), key=int)}


def _over_folds(family: Family, folds: dict[str, npt.NDArray[np.bool_]]) -> dict[str, Any]:
    """Value of each fold by itself, with mean and standard deviation of those defined."""
    if isinstance(family, PixelMetrics):  # its values of weighted images come from coarser bins
        values = family.of_folds()
    else:
        values = family.values(np.stack(list(folds.values())).astype(np.float64))
    summary: dict[str, Any] = {}
    for name in family.names:
        if name in family.whys:
            continue
        each = [float(value) if math.isfinite(value) else None for value in values[name]]
        defined = [value for value in each if value is not None]
        summary[name] = {
            "values": dict(zip(folds, each, strict=True)),
            "mean": float(np.mean(defined)) if defined else None,
            "sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        }
    return summary


def _cost(run: Run) -> dict[str, Metric]:
    """What the run cost, by its own account."""
    info = run.info
    memory = [value for value in (info.get("peak_memory_mb") or {}).values() if value is not None]
    told = {
        "train_seconds": (info.get("seconds") or {}).get("train"),
        "predict_ms_per_image": info.get("predict_ms_per_image"),
        "parameters": info.get("parameters"),
        "peak_memory_mb": max(memory, default=None),
        "labelled_defects": (info.get("trained_on") or {}).get("defective"),
    }
    costs: dict[str, Metric] = {
        name: {"value": None, "why": "run.json does not say"} if value is None else {"value": value}
        for name, value in told.items()
    }
    return {**costs, "start_finds_kept": _start_finds_kept(info)}


def _start_finds_kept(info: dict[str, Any]) -> Metric:
    """Share of what the start model found on probe images that was found after training; mean over the folds."""
    facts = info.get("facts") or {}
    folds = [fold for fold in (facts.values() if info["fold"] == "all" else [facts]) if isinstance(fold, dict)]
    told = [fold["forgetting"] for fold in folds if isinstance(fold.get("forgetting"), dict)]
    if not told:
        return {"value": None, "why": "the approach does not measure forgetting"}
    shares = [each.get("share") for each in told]
    if not all(isinstance(share, float | int) for share in shares):
        return {"value": None, "why": str(told[0].get("why", "run.json does not say"))}
    return {"value": float(np.mean(shares))}
