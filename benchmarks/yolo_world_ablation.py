"""How the defaults of YOLO-World were chosen: one knob at a time, on magnetic tile, on `val` alone.

    MASKBRIDGE_DATA=path/to/data MASKBRIDGE_WEIGHTS=path/to/weights python benchmarks/yolo_world_ablation.py OUT

The data is what a user with a few dozen labelled defects has: one exposure of each tile (74 defective images), and as
many good images as half of that. Folds keep groups whole. Three folds, each with a seed of its own, train every arm;
the figures are those of the fold's `val`, its test part is never predicted. An arm is compared with the first one on
the same fold and seed. What is in OUT is kept, so that the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script beside this one has the name of a package

from converters import magnetic_tile
from evaluation.metrics import evaluate
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.files import link_file, read_json, write_json
from maskbridge.predicting import predict_run
from maskbridge.predictions import Run

#: The first arm; every other one changes one of these, or one more.
BASE = ["--lr", "1e-3", "--imgsz", "320", "--batch", "8", "--epochs", "40", "--negatives", "0.2"]
ARMS: dict[str, list[str]] = {
    "as it is": [],
    "lr 5e-4": ["--lr", "5e-4"],
    "lr 2e-3": ["--lr", "2e-3"],
    "imgsz 224": ["--imgsz", "224"],
    "imgsz 448": ["--imgsz", "448"],
    "mosaic 0": ["--mosaic", "0"],
    "freeze 10": ["--freeze", "10"],
    "negatives 0": ["--negatives", "0"],
    "negatives 1.0": ["--negatives", "1.0"],
    "optimizer auto": ["--optimizer", "auto"],
    "batch 16": ["--batch", "16"],
    "epochs 80": ["--epochs", "80"],
    "labels polygons": ["--labels", "polygons"],
    "tile 200, imgsz 144": ["--tile", "200", "--imgsz", "144"],  # at the same cost: four tiles and the whole image
}
#: Options of prediction, tried on the models of the first arm.
PREDICTED = {"iou 0.7": {"iou": 0.7}}
FIGURES = (("instance_by_type", "bbox_ap"), ("instance", "bbox_ap"), ("instance", "bbox_ap50"), ("image", "auroc"))
SHOWN = ("AP by type", "AP", "AP50", "image AUROC")
#: Two-sided 95 % of Student's t with two degrees of freedom: three pairs.
T_OF_THREE = 4.303


def small_magnetic_tile(source: Path, out: Path) -> Dataset:
    """One image of each run of exposures, and half as many good ones, as a dataset of three folds."""
    if not (out / "annotations.json").is_file():
        chosen = out.parent / "magnetic_tile_small_source"
        of_run: dict[str, Path] = {}
        images = [image for found in magnetic_tile.read(source) for image in found.images]
        for image in images:
            of_run.setdefault(str(image.group), image.path)
        defective = [path for run, path in of_run.items() if not run.startswith(magnetic_tile.GOOD_CLASS)]
        good = [path for run, path in of_run.items() if run.startswith(magnetic_tile.GOOD_CLASS)]
        for path in (*defective, *good[:: max(1, len(good) * 2 // len(defective))]):
            for file in (path, path.with_suffix(".png")):
                target = chosen / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    link_file(file, target, "copy")
        convert("magnetic-tile", chosen, out, ConvertOptions(folds=3))
    return Dataset.open(out)


def measure(dataset: Dataset, out: Path, arm: str, options: Sequence[str], seed: int) -> dict[str, float | None]:
    """Train one arm on the fold of number `seed` with that seed, and score its `val`."""
    path = out / "runs" / f"{arm.replace(' ', '_').replace('.', '_')}-{seed}"
    done = path / "val.json"
    if not done.is_file():
        words = ["train", "yolo-world", dataset.path, path, "--fold", seed, "--seed", seed, "--device", "cpu"]
        words += ["--text-features", "hashed", "--resume", "--quiet", *BASE, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "maskbridge", *map(str, words)], check=True, env=environment)
        seconds = time.monotonic() - start
        write_json(done, {**_figures(path, dataset), "seconds": seconds})
    print(f"{arm}, fold and seed {seed}: {done.read_text()}", flush=True)
    return dict(json.loads(done.read_text()))


def predict_again(dataset: Dataset, out: Path, arm: str, seed: int) -> dict[str, float | None]:
    """Score the first arm's models with other options of prediction."""
    path = out / "runs" / f"{arm.replace(' ', '_').replace('.', '_')}-{seed}"
    if not (path / "val.json").is_file():
        trained = out / "runs" / f"as_it_is-{seed}"
        how = {"device": "cpu", "changes": PREDICTED[arm], "out": path, "overwrite": True}
        predict_run(Run.open(trained), dataset, "val", **how)
        seconds = read_json(trained / "val.json")["seconds"]
        write_json(path / "val.json", {**_figures(path, dataset), "seconds": seconds})
    return dict(read_json(path / "val.json"))


def _figures(path: Path, dataset: Dataset) -> dict[str, float | None]:
    metrics = evaluate(Run.open(path), dataset, "val", samples=50).metrics
    return {name: metrics[family][key]["value"] for name, (family, key) in zip(SHOWN, FIGURES, strict=True)}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean of each figure, and its paired difference from the first arm with the 95 % interval."""
    lines = ["| arm | " + " | ".join(f"{name} | difference" for name in SHOWN) + " | time |"]
    lines.append("| --- |" + " --: | --- |" * len(SHOWN) + " --: |")
    first = next(iter(results.values()))
    for arm, rows in results.items():
        cells = []
        for name in SHOWN:
            values = np.array([row[name] for row in rows])
            gaps = values - np.array([row[name] for row in first[: len(rows)]])
            half = T_OF_THREE * gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else np.nan
            gap = "" if rows is first else f"{gaps.mean():+.3f} ± {half:.3f}"
            cells.append(f"{values.mean():.3f} | {gap}")
        ratio = sum(row["seconds"] for row in rows) / sum(row["seconds"] for row in first[: len(rows)])
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {ratio:.2f} × |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the dataset, the runs and ablation.md")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), help="default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at once, of one thread each")
    arguments = parser.parse_args()
    dataset = small_magnetic_tile(Path(os.environ["MASKBRIDGE_DATA"]) / "magnetic_tile", arguments.out / "dataset")
    chosen = {arm: ARMS[arm] for arm in ARMS if arm in arguments.arms or arm == next(iter(ARMS))}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {
            arm: [pool.submit(measure, dataset, arguments.out, arm, options, seed) for seed in range(3)]
            for arm, options in chosen.items()
        }
        results = {arm: [job.result() for job in jobs] for arm, jobs in waiting.items()}
    results |= {arm: [predict_again(dataset, arguments.out, arm, seed) for seed in range(3)] for arm in PREDICTED}
    (arguments.out / "ablation.md").write_text(table(results), encoding="utf-8")  # type: ignore[arg-type]
    print(table(results))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
