"""PatchCore and PaDiM, ours and anomalib's, on the same backbone, images, size and share of patches or features."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script beside this one has the name of a package

from _baselines_rounds import seconds, told

from baselines import padim, patchcore
from baselines._backbones import load_backbone
from baselines._torch import choose_device, chunks, read_square, to_tensor
from evaluation.pixel_metrics import PixelMetrics
from maskbridge.approach import Context, PredictData, TrainData
from maskbridge.dataset import Dataset
from maskbridge.meters import PhaseMeter

#: Strides of each approach's maps, and as anomalib names the blocks of these strides in EfficientNet.
STRIDES = {"patchcore": (8, 16), "padim": (4, 8, 16)}
LAYERS = {4: "blocks.1", 8: "blocks.2", 16: "blocks.4"}
#: Features that PaDiM draws.
DRAWN = 100

#: Score and map of each image, and costs by name.
Outcome = tuple[dict[int, float], dict[int, Any], dict[str, float]]


def beside_anomalib(arguments: argparse.Namespace, dataset: Path, folder: Path) -> None:
    """Ours and anomalib's: the same backbone, images, size, share, nine neighbours or 100 features; several seeds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for seed in range(arguments.seeds):
        for name in CONTESTANTS:
            words = [
                name,
                "--model",
                arguments.what,
                "--seed",
                str(seed),
                "--dataset",
                str(dataset),
                "--backbone",
                arguments.backbone,
            ]
            words += ["--backbone-weights", arguments.backbone_weights, "--image-size", str(arguments.image_size)]
            words += [
                "--ratio",
                str(arguments.ratio),
                "--threads",
                str(arguments.threads),
                "--device",
                arguments.device,
            ]
            cache = {"MASKBRIDGE_CACHE": str(folder / f"cache-{seed}")}
            done = subprocess.run(
                [sys.executable, __file__, *words], capture_output=True, text=True, env=os.environ | cache, check=False
            )
            if done.returncode:
                sys.exit(f"{name} failed: {done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            figures = ", ".join(f"{key} {value:.4g}" for key, value in found[name][-1].items())
            print(f"  seed {seed}, {name}: {figures}", flush=True)
    for key in found["ours"][0]:
        values = {name: [each[key] for each in rows] for name, rows in found.items()}
        shown = "; ".join(
            f"{name} {statistics.mean(v):.4g} (sd {statistics.stdev(v) if len(v) > 1 else 0:.2g})"
            for name, v in values.items()
        )
        print(f"{key}: {shown}")
    pairs = list(zip(found["ours"], found["anomalib"], strict=True))
    told("fit, anomalib's : ours; bound 8", [b["fit_seconds"] / a["fit_seconds"] for a, b in pairs])
    told("peak memory, anomalib's : ours", [b["fit_peak_mb"] / a["fit_peak_mb"] for a, b in pairs])
    told("our fit : our backbone pass; bound 1.6", [a["fit_seconds"] / a["pass_seconds"] for a, _ in pairs])


def one_contestant(arguments: argparse.Namespace) -> None:
    """Fit and score one of them on the official split, and print what came of it as JSON."""
    dataset = Dataset.open(arguments.dataset)
    split = dataset.split("official")
    scores, maps, costs = CONTESTANTS[arguments.what](dataset, split, arguments)
    from sklearn.metrics import roc_auc_score

    defective = [not dataset.image_by_id[i].is_good for i in split.test]
    whole = {"image_auroc": float(roc_auc_score(defective, [scores[i] for i in split.test]))}
    run = SimpleNamespace(path=arguments.what)
    view = SimpleNamespace(run=run, dataset=dataset, image_ids=split.test)
    view.threshold = lambda kind: SimpleNamespace(value=None, why="none")
    point = PixelMetrics(view, lambda i: maps[i]).point()  # type: ignore[arg-type]
    print(json.dumps({**whole, "aupro_30": point["aupro_30"], **costs}))


def ours(dataset: Dataset, split: Any, arguments: argparse.Namespace) -> Outcome:
    settings = {"backbone": arguments.backbone, "backbone_weights": arguments.backbone_weights}
    module = {"patchcore": patchcore, "padim": padim}[arguments.model]
    own = {"coreset": str(arguments.ratio)} if module is patchcore else {"dimensions": DRAWN}
    config = module.Config(**settings, **own, image_size=arguments.image_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = Context(device=arguments.device, seed=arguments.seed, work=folder / "work")
        data = TrainData(dataset=dataset, train=split.train, val=(), fold="official")
        backbone_pass(dataset, split.train[:16], arguments)
        one_pass = seconds(lambda: backbone_pass(dataset, split.train, arguments))
        with PhaseMeter() as meter:
            module.train(data, config, folder / "weights", context)
        start = time.perf_counter()
        test = PredictData(dataset=dataset, image_ids=split.test, fold="official", part="test")
        found = list(module.predict(test, config, folder / "weights", context))
        each = 1000 * (time.perf_counter() - start) / len(found)
    costs = {"pass_seconds": one_pass, "fit_seconds": meter.seconds, "fit_peak_mb": meter.peak_mb}
    costs["predict_ms_per_image"] = each
    return {p.image_id: float(p.score or 0) for p in found}, {p.image_id: p.map for p in found}, costs


def anomalibs(dataset: Dataset, split: Any, arguments: argparse.Namespace) -> Outcome:
    """Its torch model alone, without its data loaders and trainer, which would add to its time."""
    import timm
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(arguments.seed)
    device = choose_device(arguments.device)
    backbone_pass(dataset, split.train[:16], arguments)
    one_pass = seconds(lambda: backbone_pass(dataset, split.train, arguments))
    torch.manual_seed(arguments.seed)
    shared = {"layers": [LAYERS[stride] for stride in STRIDES[arguments.model]], "backbone": arguments.backbone}
    if arguments.model == "patchcore":
        model = PatchcoreModel(**shared, pre_trained=False, num_neighbors=9).to(device)
    else:
        model = PadimModel(**shared, pre_trained=False, n_features=DRAWN).to(device)
    given = load_backbone(arguments.backbone, arguments.backbone_weights, seed=arguments.seed)
    inner = model.feature_extractor.feature_extractor
    missing = inner.load_state_dict(given.network.state_dict(), strict=False).missing_keys
    assert not missing, f"the same weights: {missing[:3]}"
    card = timm.get_pretrained_cfg(arguments.backbone)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (card.mean, card.std))

    def batches(ids: Sequence[int], size: int) -> Any:
        for piece in chunks(ids, size):
            images = np.stack([read_square(dataset, image_id, arguments.image_size) for image_id in piece])
            yield piece, (to_tensor(images, device) - mean) / std

    model.train()
    with torch.no_grad(), PhaseMeter() as meter:
        for _, images in batches(split.train, 16):
            model(images)
        if arguments.model == "patchcore":
            model.subsample_embedding(arguments.ratio)
        else:
            model.fit()
    model.eval()
    start = time.perf_counter()
    scores: dict[int, float] = {}
    maps: dict[int, Any] = {}
    with torch.no_grad():
        for piece, images in batches(split.test, 1):
            found = model(images)
            scores[piece[0]] = float(found.pred_score)
            maps[piece[0]] = found.anomaly_map[0].squeeze().cpu().numpy().astype(np.float32)
    each = 1000 * (time.perf_counter() - start) / len(split.test)
    costs = {"pass_seconds": one_pass, "fit_seconds": meter.seconds, "fit_peak_mb": meter.peak_mb}
    return scores, maps, {**costs, "predict_ms_per_image": each}


CONTESTANTS: dict[str, Callable[..., Outcome]] = {
    "ours": ours,
    "anomalib": anomalibs,
}


def backbone_pass(dataset: Dataset, ids: Sequence[int], arguments: argparse.Namespace) -> None:
    """Read the images and take their maps, and keep nothing."""
    backbone = load_backbone(arguments.backbone, arguments.backbone_weights, seed=0)
    device = choose_device(arguments.device)
    backbone.network.to(device)
    for piece in chunks(ids, 16):
        images = np.stack([read_square(dataset, image_id, arguments.image_size) for image_id in piece])
        maps = backbone.maps(to_tensor(images, device))
        for stride in STRIDES[arguments.model]:
            maps[stride].cpu()


def main() -> None:
    """One contestant, in a process of its own; started by `beside_anomalib`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=CONTESTANTS)
    parser.add_argument("--model", choices=STRIDES, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    for name in ("backbone", "backbone-weights", "device"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("seed", "image-size", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--ratio", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    one_contestant(arguments)


if __name__ == "__main__":
    main()
