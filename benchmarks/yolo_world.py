"""Our YOLO-World training beside plain Ultralytics: what label geometry does, what our wrapper costs, what tiles gain.

    MASKBRIDGE_DATA=path/to/data MASKBRIDGE_WEIGHTS=path/to/weights python benchmarks/yolo_world.py labels OUT

`labels`: all folds of bottle, three ways on the same images with the same start weights, epochs, image size and seed:
plain Ultralytics (its own defaults otherwise) on labels of its own converter, the same on our labels, and ours; box AP
on the same test images with intervals and paired differences. `overhead`: CPU seconds of `maskbridge train` against
plain Ultralytics with the same options, interleaved. `tiles`: tiles against a larger image of the same cost. `gpu`:
images per second at 640 px against data loading alone, and peak memory; says so where there is no GPU.

Plain Ultralytics wants the module `clip`; it gets one that answers with the same hashed text features as ours. What is
in OUT is kept, so that the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script beside this one has the name of a package

from evaluation.comparison import compare
from evaluation.metrics import Evaluation, evaluate
from maskbridge import plugins
from maskbridge.convert import ConvertOptions, convert
from maskbridge.crossval import merge
from maskbridge.dataset import Dataset
from maskbridge.export import ExportOptions
from maskbridge.geometry import decode
from maskbridge.predicting import predict_run
from maskbridge.predictions import Run

EPOCHS, IMAGE_SIZE, SEED = 40, 320, 0
NEGATIVES = "0.2"
CLIP = """
import numpy as np, torch
from finetune._yolo_world_text import hashed
class Model:
    def encode_text(self, tokens): return torch.from_numpy(np.stack([hashed(texts[int(row[0])]) for row in tokens]))
    def eval(self): return self
    def to(self, *_): return self
    def parameters(self): return iter(())
texts = []
def load(*_, **__): return Model(), None
def tokenize(given, **_):
    given = [given] if isinstance(given, str) else list(given)
    first = len(texts)
    texts.extend(given)
    return torch.arange(first, len(texts)).unsqueeze(1)
"""
PLAIN = """
import json, sys
from ultralytics import YOLOWorld
from ultralytics.data import utils
utils.check_font = lambda font: None  # it would ask a server for one
given = json.loads(sys.argv[1])
model = YOLOWorld(given.pop("yaml"))
if given.get("pretrained"): model = model.load(given["pretrained"])
given.pop("pretrained")
model.train(**given)
"""
#: What our wrapper asks of Ultralytics on a CPU: for `overhead`, plain Ultralytics is asked for the same.
OURS = {"optimizer": "AdamW", "lr0": 1e-3, "nbs": 16, "patience": 30, "cache": "ram"}


def plain(out: Path, data: Path, **options: Any) -> Path:
    """Train with plain Ultralytics in a process of its own; the best checkpoint."""
    best = out / "train" / "weights" / "best.pt"
    if best.is_file() and (out / "done").exists():
        return best
    shutil.rmtree(out, ignore_errors=True)
    (out / "modules").mkdir(parents=True)
    (out / "modules" / "clip.py").write_text(CLIP)
    given = {
        "yaml": "yolov8n-worldv2.yaml",
        "pretrained": str(next(Path(os.environ["MASKBRIDGE_WEIGHTS"]).glob("yolov8n*.pt"))),
        "data": str(data), "epochs": EPOCHS, "imgsz": IMAGE_SIZE, "seed": SEED, "device": "cpu",
        "plots": False, "amp": False, "project": str(out), "name": "train", "exist_ok": True,
        **options,
    }  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": f"{out / 'modules'}:{Path(__file__).parents[1]}",
        "YOLO_CONFIG_DIR": str(out), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false",
        "ULTRALYTICS_API_KEY": "",
    }  # fmt: skip
    with (out / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", PLAIN, json.dumps(given)], check=True, env=environment, stdout=log,
                       stderr=log)  # fmt: skip
    (out / "done").touch()
    return best


def ours(dataset: Dataset, out: Path, fold: int, *options: str) -> Run:
    """Train and predict with maskbridge."""
    words = ["train", "yolo-world", dataset.path, out, "--fold", fold, "--seed", SEED, "--device", "cpu", "--resume"]
    words += ["--text-features", "hashed", "--quiet", *options]
    subprocess.run([sys.executable, "-m", "maskbridge", *map(str, words)], check=True)
    run = Run.open(out)
    return run if run.has("test") else predict_run(run, dataset, "test", device="cpu")


def bottle(out: Path) -> Dataset:
    if not (out / "bottle" / "annotations.json").is_file():
        source = Path(os.environ["MASKBRIDGE_DATA"]) / "mvtec_ad" / "bottle"
        convert("mvtec", source, out / "bottle", ConvertOptions())
    return Dataset.open(out / "bottle")


def export(dataset: Dataset, out: Path, fold: int) -> Path:
    """Our labels of a fold; `data.yaml`."""
    if not out.exists():
        plugins.load("format", "yolo").export(dataset, out, ExportOptions(fold=fold, negatives=NEGATIVES, seed=SEED))
    return out / "data.yaml"


def convert_with_ultralytics(dataset: Dataset, out: Path, fold: int) -> Path:
    """The same images with labels that Ultralytics makes of masks whose value is the class plus one."""
    data = export(dataset, out, fold)
    if (out / "converted").exists():
        return data
    numbers = {category["id"]: number for number, category in enumerate(dataset.categories)}
    for part in ("train", "val"):
        masks = out / "masks" / part
        masks.mkdir(parents=True)
        by_name = {image.file_name.replace("/", "__"): image for image in dataset.images}
        for path in sorted((out / "images" / part).iterdir()):
            image = by_name[path.name]
            mask = np.zeros(image.size_hw, dtype=np.uint8)
            for annotation in dataset.annotations_by_image[image.id]:
                mask[decode(annotation["segmentation"]) > 0] = numbers[annotation["category_id"]] + 1
            cv2.imwrite(str(masks / f"{path.stem}.png"), mask)
        code = "import sys; from ultralytics.data.converter import convert_segment_masks_to_yolo_seg as f\n"
        code += "f(sys.argv[1], sys.argv[2], classes=int(sys.argv[3]))"
        words = [str(masks), str(out / "labels" / part), str(len(numbers))]
        environment = {**os.environ, "YOLO_CONFIG_DIR": str(out), "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
        subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment)
    (out / "converted").touch()
    return data


def as_run(checkpoint: Path, like: Run, dataset: Dataset, out: Path) -> Run:
    """A plain checkpoint as a run of ours, predicted by the same code."""
    if not (out / "run.json").is_file():
        shutil.copytree(like.path, out, ignore=shutil.ignore_patterns("predictions", "work"))
        shutil.copy(checkpoint, out / "weights" / "best.pt")
    run = Run.open(out)
    for part in ("val", "test"):
        if not run.has(part):
            run = predict_run(run, dataset, part, device="cpu")
    return run


def labels(out: Path) -> None:
    dataset = bottle(out)
    words = [
        "crossval",
        "yolo-world",
        dataset.path,
        out / "runs" / "ours",
        "--seed",
        SEED,
        "--device",
        "cpu",
        "--resume",
    ]
    words += ["--text-features", "hashed", "--epochs", EPOCHS, "--imgsz", IMAGE_SIZE, "--negatives", NEGATIVES]
    subprocess.run([sys.executable, "-m", "maskbridge", *map(str, words)], check=True)
    runs: dict[str, Run] = {}
    for arm, make in (("plain-ultralytics-labels", convert_with_ultralytics), ("plain-our-labels", export)):
        folds = []
        for fold in range(dataset.fold_count):
            data = make(dataset, out / "labels" / f"{arm}-{fold}", fold)
            best = plain(out / "plain" / f"{arm}-{fold}", data)
            like = Run.open(out / "runs" / "ours" / f"fold{fold}")
            folds.append(as_run(best, like, dataset, out / "folds" / f"{arm}-{fold}"))
            print(f"fold {fold}: {arm} done", flush=True)
        runs[arm] = merged(folds, dataset, out / "runs" / arm)
    compare_runs({**runs, "ours": Run.open(out / "runs" / "ours")}, dataset, "crossval")


def merged(folds: Sequence[Run], dataset: Dataset, out: Path) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    return merge(out, folds, dataset)


def compare_runs(runs: dict[str, Run], dataset: Dataset, part: str) -> None:
    """Print AP with intervals, and the difference of every pair."""
    found: dict[str, Evaluation] = {name: evaluate(run, dataset, part) for name, run in runs.items()}
    for family in ("instance", "instance_by_type"):
        for metric in ("bbox_ap", "bbox_ap50", "bbox_ar100"):
            for name, evaluation in found.items():
                m = evaluation.metrics[family][metric]
                print(f"{family} {metric:10} {name:26} {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]")
            for one, other in itertools.combinations(reversed(found), 2):
                c = compare(found[one], found[other], family, metric)
                print(f"    {one} - {other}: {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], p {c.p:.3f}")


def cpu_seconds(call: Any) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def overhead(out: Path, epochs: int = 5, times: int = 5) -> None:
    """CPU seconds, ours : plain, with glibc's own memory settings and with the same ones for both."""
    dataset = bottle(out)
    data = export(dataset, out / "labels" / "overhead", 0)
    same = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    seconds: dict[str, list[float]] = {"plain": [], "plain, our memory settings": [], "ours": []}
    for _ in range(times):
        for name in seconds:
            shutil.rmtree(out / "timed", ignore_errors=True)
            os.environ.update(same if "settings" in name else {})
            if name == "ours":
                words = ["train", "yolo-world", str(dataset.path), str(out / "timed"), "--text-features", "hashed"]
                words += ["--device", "cpu", "--quiet", "--epochs", str(epochs), "--imgsz", str(IMAGE_SIZE)]
                call = [sys.executable, "-m", "maskbridge", *words, "--negatives", NEGATIVES]
                seconds[name].append(cpu_seconds(lambda call=call: subprocess.run(call, check=True)))
            else:
                run = lambda: plain(out / "timed", data, epochs=epochs, **OURS)  # noqa: E731
                seconds[name].append(cpu_seconds(run))
            for key in same:
                os.environ.pop(key, None)
        print({name: [round(value, 1) for value in values] for name, values in seconds.items()}, flush=True)
    for name in list(seconds)[:-1]:
        ratios = [mine / other for mine, other in zip(seconds["ours"], seconds[name], strict=True)]
        print(f"CPU seconds, ours : {name}: median {statistics.median(ratios):.3f} "
              f"({min(ratios):.3f} to {max(ratios):.3f}), {epochs} epochs")  # fmt: skip


def tiles(out: Path, folds: int = 2) -> None:
    """Bottle, 900 x 900: four tiles of 500 px and the whole image at 144 px, at the cost of one image at 320 px."""
    dataset = bottle(out)
    for fold in range(folds):
        whole = Run.open(out / "runs" / "ours" / f"fold{fold}")  # of `labels`
        options = ("--epochs", str(EPOCHS), "--imgsz", "144", "--tile", "500")
        runs = {"imgsz-320": whole, "tile-500-imgsz-144": ours(dataset, out / "tiles" / str(fold), fold, *options)}
        cost = {arm: (run.info["seconds"]["train"], run.info["predict_ms_per_image"]) for arm, run in runs.items()}
        print(f"fold {fold}, test part; seconds of training and ms per image: {cost}")
        compare_runs(runs, dataset, "test")


def gpu(out: Path) -> None:
    """Images per second in training at 640 px: plain, ours, and what loading the images alone allows."""
    import torch

    if not torch.cuda.is_available():
        print("gpu: no GPU here, not measured")
        return
    data = export(bottle(out), out / "labels" / "gpu", 0)
    images = sorted((data.parent / "images" / "train").iterdir())
    data.with_name("repeated.txt").write_text("".join(f"{path}\n" for path in images * 20))
    repeated = data.with_name("repeated.yaml")
    repeated.write_text(data.read_text().replace("train: images/train", "train: repeated.txt"))
    script = Path(__file__).with_name("yolo_world_gpu.py")
    for scale in ("s", "l"):
        for arm in ("loading", "plain", "ours"):
            words = [
                sys.executable,
                script,
                arm,
                scale,
                data.with_name("repeated.yaml"),
                out / "gpu" / f"{arm}-{scale}",
            ]
            subprocess.run([str(word) for word in words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("labels", "overhead", "tiles", "gpu"))
    parser.add_argument("out", type=Path, help="folder for datasets, labels and runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    {"labels": labels, "overhead": overhead, "tiles": tiles, "gpu": gpu}[arguments.what](arguments.out.resolve())


if __name__ == "__main__":
    main()
