"""Speed and memory of the evaluation, as ratios to a floor and to peers in the same run.

    make peers && MASKBRIDGE_DATA=path/to/data .venv-peers/bin/python benchmarks/evaluation.py

Without MASKBRIDGE_DATA the made-up sample is used; without `make peers` the peers are left out, and said so. Maps are
made up: the blurred truth in smooth noise, at the full size of the images. Everything is interleaved, the median
ratio of `--repeat` rounds is printed with its range. Nothing is asserted.

    … benchmarks/evaluation.py --calibration      how often the intervals hold the truth, and the test cries wolf
    … benchmarks/evaluation.py --folds            the same of merged folds, each on a scale of its own
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # this script has the name of the package that it measures

from _evaluation_folds import fold_scales

from evaluation.comparison import LEVEL, p_value
from evaluation.image_metrics import ImageMetrics
from evaluation.instance_metrics import InstanceMetrics
from evaluation.intervals import Resampling, measure
from evaluation.pixel_metrics import PixelMetrics
from maskbridge import geometry
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.derive import PredictionView
from maskbridge.meters import PhaseMeter
from maskbridge.painting import detections_from_map
from maskbridge.predictions import Run
from maskbridge.sample import make_sample

COCO_BANDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
THRESHOLD = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="mvtec_ad/bottle", help="category below MASKBRIDGE_DATA")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--images", type=int, default=5000, help="images of the large COCO set (default: 5000)")
    parser.add_argument("--calibration", action="store_true", help="simulate intervals and tests instead")
    parser.add_argument("--folds", action="store_true", help="simulate merged folds instead")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of --folds (default: 100)")
    arguments = parser.parse_args()
    if arguments.folds:
        fold_scales(arguments.rounds, samples=300)
        return
    if arguments.calibration:
        calibration()
        return
    with tempfile.TemporaryDirectory(prefix="maskbridge-bench-") as name:
        folder = Path(name)
        data = os.environ.get("MASKBRIDGE_DATA")
        source = Path(data) / arguments.source if data else folder / "plate"
        if not data:
            make_sample(source)
        [path] = convert("mvtec", source, folder / "dataset", ConvertOptions(link="symlink"))
        dataset = Dataset.open(path)
        ids = sorted(dataset.fold_of_image())
        sizes = {dataset.image_by_id[i].size_hw for i in ids}
        print(f"{source.name}: {len(ids)} images of {sizes}, {os.cpu_count()} cores")
        maps = {image_id: made_up_map(dataset.mask(image_id), image_id) for image_id in ids}
        pixels(dataset, source, ids, maps, arguments.repeat)
        growth(dataset, ids, maps)
        instances(dataset, ids, maps)
    large_coco(arguments.images, min(3, arguments.repeat))


def pixels(dataset: Dataset, source: Path, ids: Sequence[int], maps: dict[int, Any], repeat: int) -> None:
    """All pixel metrics against decoding the masks and one bincount, and against anomalib."""
    masks = sorted((source / "ground_truth").rglob("*.png"))
    keys = np.concatenate([np.clip(m * 1000, 0, 4000).astype(np.int64).ravel() for m in maps.values()])

    def floor() -> None:
        for path in masks:
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.bincount(keys)

    def ours() -> dict[str, float]:
        return family(dataset, ids, maps).point()

    rounds = [(seconds(floor), seconds(ours)) for _ in range(repeat)]
    report("all pixel metrics : decoding the masks and one bincount", [b / a for a, b in rounds])
    print(f"  floor {median(a for a, _ in rounds):.3f} s, ours {median(b for _, b in rounds):.3f} s")
    gc.collect()
    before = resident_mb()
    with PhaseMeter() as meter:
        point = ours()
    print(f"  extra memory {meter.peak_mb - before:.0f} MiB")
    resampling = resampling_of(dataset, ids)
    counted = family(dataset, ids, maps)
    counted.point()
    print(f"  intervals, 1,000 bootstrap samples: {seconds(lambda: counted.values(resampling.weights)):.2f} s more")
    if not there("anomalib"):
        return
    import torch
    from anomalib.metrics.aupro import _AUPRO

    stacked = torch.from_numpy(np.stack([maps[i] for i in ids]))
    truth = torch.from_numpy(np.stack([dataset.mask(i) for i in ids]))
    found: list[float] = []

    def theirs() -> None:
        metric = _AUPRO(fpr_limit=0.3)
        metric.update(stacked, truth)
        found.append(float(metric.compute()))

    ratios = [seconds(theirs) / seconds(ours) for _ in range(min(2, repeat))]
    report("anomalib's AUPRO alone : all our pixel metrics", ratios)
    print(f"  AUPRO@0.3: anomalib {found[0]:.7f} (float32), ours {point['aupro_30']:.7f}")


def growth(dataset: Dataset, ids: Sequence[int], maps: dict[int, Any]) -> None:
    """Time and extra memory with 1, 4 and 16 times the images."""
    for times in (1, 4, 16):
        several = SimpleNamespace(view=repeated(dataset, ids, times))
        gc.collect()
        before = resident_mb()
        with PhaseMeter() as meter:
            PixelMetrics(several.view, lambda image_id: maps[ids[(image_id - 1) % len(ids)]]).point()
        count = times * len(ids)
        print(
            f"pixel metrics, {times:2} x the images: {meter.seconds:6.2f} s, {1000 * meter.seconds / count:.2f} ms per "
            f"image, extra memory {meter.peak_mb - before:.0f} MiB"
        )
    for times in (1, 4, 16):
        coco, results = made_up_coco(times * 125)
        spent = seconds(lambda c=coco, r=results: box_figures(c, r))  # type: ignore[misc]
        print(f"box figures, {times:2} x 125 images: {spent:6.3f} s, {1000 * spent / (times * 125):.2f} ms per image")


def instances(dataset: Dataset, ids: Sequence[int], maps: dict[int, Any]) -> None:
    """COCO AP of boxes and masks with 1,000 bootstrap samples."""
    results: list[Any] = []
    for image_id in ids:
        results += detections_from_map(maps[image_id], THRESHOLD, image_id)
    for annotation in (a for image_id in ids for a in dataset.annotations_by_image[image_id]):
        kept = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        results.append({**kept, "score": float(annotation["id"] % 7)})
    for number, result in enumerate(results):
        result["category_id"] = dataset.categories[number % len(dataset.categories)]["id"]
    resampling = resampling_of(dataset, ids)
    for by_type in (False, True):
        start = time.perf_counter()
        matched = InstanceMetrics(dataset, ids, results, by_type=by_type)
        middle = time.perf_counter()
        measure(matched, resampling, derived=False)
        print(
            f"COCO figures {'by type' if by_type else 'of any type'}, {len(results)} detections with masks: matching "
            f"{middle - start:.2f} s, all figures and sizes with 1,000 bootstrap samples "
            f"{time.perf_counter() - middle:.2f} s"
        )


def large_coco(images: int, repeat: int) -> None:
    """All twelve COCO box figures of many images against pycocotools and fast evaluators."""
    dataset, results = made_up_coco(images)
    print(f"{images} images x 100 detections, 80 types, {len(dataset.annotations)} objects: all twelve box figures")
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = box_figures(dataset, results)

    rounds = [(seconds(lambda: found.update(peer=coco_stats("pycocotools", dataset, results))), seconds(ours))]
    rounds += [(rounds[0][0], seconds(ours)) for _ in range(repeat - 1)]
    report("pycocotools : ours", [a / b for a, b in rounds])
    print(f"  pycocotools {rounds[0][0]:.1f} s, ours {median(b for _, b in rounds):.2f} s")
    order = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    order += ("ar1", "ar10", "ar100", "ar100_small", "ar100_medium", "ar100_large")
    mine = np.array([found["ours"][f"bbox_{name}"] for name in order])
    print(f"  largest difference of the twelve figures: {np.abs(mine - found['peer']).max():.1e}")
    for package in ("faster_coco_eval", "hotcoco"):
        if there(package):
            spent = seconds(lambda p=package: found.update({p: coco_stats(p, dataset, results)}))  # type: ignore[misc]
            difference = np.abs(mine - found[package][:12]).max()
            print(f"  {package} {spent:.2f} s, largest difference {difference:.1e}")


def calibration() -> None:
    """20 good and 63 defective images, normal scores: two runs of one quality, 1,000 times each."""
    rng = np.random.default_rng(1)
    defective = np.repeat([False, True], [20, 63])
    count = len(defective)
    resampling = Resampling(np.arange(count), defective, samples=1000, seed=0)
    print("true AUROC | likeness of the runs | interval of AUROC holds it: BCa, percentile | called: AUROC, accuracy")
    for likeness in (0.0, 0.7):
        for shift in (1.0, 2.3, 3.5):
            truth = 0.5 * (1 + math.erf(shift / 2))
            cuts = np.full(count, shift / 2)
            held, plain, called = [], [], {"auroc": 0, "accuracy": 0}
            for _ in range(1000):
                shared = rng.normal(size=count)
                pair = []
                for _ in range(2):
                    own = rng.normal(size=count)
                    scores = shift * defective + math.sqrt(likeness) * shared + math.sqrt(1 - likeness) * own
                    pair.append(measure(ImageMetrics(scores, defective, cuts), resampling, derived=False))
                held += [each[0]["auroc"]["low"] <= truth <= each[0]["auroc"]["high"] for each in pair]
                ends = [np.percentile(each[1]["auroc"], [2.5, 97.5]) for each in pair]
                plain += [low <= truth <= high for low, high in ends]
                for name in called:
                    difference = pair[0][1][name] - pair[1][1][name]
                    called[name] += bool(np.ptp(difference) > 1e-12 and p_value(difference) < LEVEL)
            shares = ", ".join(f"{100 * times / 1000:.1f} %" for times in called.values())
            print(
                f"{truth:.3f} | {likeness:.1f} | {100 * np.mean(held):.1f} %, {100 * np.mean(plain):.1f} % | {shares}"
            )


def made_up_map(mask: geometry.Mask, seed: int) -> np.ndarray:
    """The blurred truth in smooth noise, H x W, float32."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=mask.shape).astype(np.float32), (0, 0), 9)
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 7)
    return np.ascontiguousarray(2 * blurred + noise / noise.std(), np.float32)


def family(dataset: Dataset, ids: Sequence[int], maps: dict[int, Any]) -> PixelMetrics:
    return PixelMetrics(view_of(dataset, ids), lambda image_id: maps[image_id])


def view_of(dataset: Any, ids: Sequence[int]) -> PredictionView:
    run = Run(Path("made-up"), {"fold": 0})
    thresholds = {"0": {"pixel": {"value": THRESHOLD, "rule": "given"}}}
    return PredictionView(run, dataset, "test", image_ids=ids, thresholds=thresholds)


def repeated(dataset: Dataset, ids: Sequence[int], times: int) -> PredictionView:
    """A view of the images several times over, numbered anew."""
    numbers = range(1, times * len(ids) + 1)
    origin = {number: ids[(number - 1) % len(ids)] for number in numbers}
    several = SimpleNamespace(
        without_mask=frozenset(),
        mask=lambda number: dataset.mask(origin[number]),
        image_by_id={number: dataset.image_by_id[origin[number]] for number in numbers},
        annotations_by_image={number: dataset.annotations_by_image[origin[number]] for number in numbers},
    )
    return view_of(several, list(numbers))


def resampling_of(dataset: Dataset, ids: Sequence[int]) -> Resampling:
    images = [dataset.image_by_id[image_id] for image_id in ids]
    defective = np.array([not image.is_good for image in images])
    return Resampling(np.array([image.group for image in images]), defective, samples=1000, seed=0)


def made_up_coco(images: int) -> tuple[Any, list[Any]]:
    """Objects of 80 types and 100 detections in each image, a part of them near the objects."""
    rng = np.random.default_rng(0)
    annotations: list[Any] = []
    results: list[Any] = []
    for image_id in range(1, images + 1):
        count = int(rng.poisson(7))
        boxes = np.hstack([rng.random((count, 2)) * 400, rng.lognormal(3.7, 0.8, (count, 2))]).round(2)
        types = rng.integers(1, 81, count)
        for box, type_id in zip(boxes.tolist(), types.tolist(), strict=True):
            entry = {"image_id": image_id, "category_id": type_id, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
        found = np.hstack([rng.random((100, 2)) * 400, rng.lognormal(3.7, 0.8, (100, 2))])
        named = rng.integers(1, 81, 100)
        near = (rng.random(100) < 0.4) & (count > 0)
        of = rng.integers(0, max(1, count), 100)[near]
        if near.any():
            found[near] = boxes[of] * (1 + rng.normal(0, 0.08, (len(of), 4)))
            named[near] = np.where(rng.random(len(of)) < 0.9, types[of], named[near])
        scores = rng.random(100) * np.where(near, 1.0, 0.6)
        for box, type_id, score in zip(np.abs(found).round(2).tolist(), named.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": type_id, "bbox": box, "score": score})
    by_image: dict[int, list[Any]] = {image_id: [] for image_id in range(1, images + 1)}
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    categories = [{"id": type_id, "name": str(type_id), "supercategory": "made up"} for type_id in range(1, 81)]
    return SimpleNamespace(annotations=annotations, annotations_by_image=by_image, categories=categories), results


def box_figures(dataset: Any, results: list[Any]) -> dict[str, float]:
    ids = list(dataset.annotations_by_image)
    return InstanceMetrics(dataset, ids, results, by_type=True, bands=COCO_BANDS).point()


def coco_stats(package: str, dataset: Any, results: list[Any]) -> np.ndarray:
    """The figures of an evaluator with pycocotools' interface."""
    if package == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    elif package == "faster_coco_eval":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from hotcoco import COCO, COCOeval
    content = {
        "images": [{"id": i, "width": 5000, "height": 5000} for i in dataset.annotations_by_image],
        "annotations": dataset.annotations,
        "categories": dataset.categories,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        if package == "pycocotools":
            truth = COCO()
            truth.dataset = content
            truth.createIndex()
        else:
            truth = COCO(content)
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats, np.float64)


def there(package: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"  {package} is not installed (make peers): left out")
    return found


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: Any) -> float:
    return statistics.median(values)


def report(what: str, ratios: Sequence[float]) -> None:
    print(f"{what}: {median(ratios):.2f} x (from {min(ratios):.2f} to {max(ratios):.2f})")


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
