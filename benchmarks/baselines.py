"""What baselines on pretrained features cost beside one pass of the backbone, and beside anomalib's own.

    python benchmarks/baselines.py pooled               fit and score five of them : the backbone pass; bound 1.5
    python benchmarks/baselines.py scaling              coreset of 1 % of up to a million patches: time, memory
    make peers
    .venv-peers/bin/python benchmarks/baselines.py patchcore|padim --backbone NAME --backbone-weights FILE|none
                                                        ours beside anomalib's, several seeds

Without a command the first two run. MASKBRIDGE_DATA names real images; without it the made-up sample is used.
`--backbone` and `--backbone-weights` as in training; beside anomalib the backbone is one of timm's EfficientNets, and
every contestant runs in a process of its own, seeds alternate. Nothing is asserted; bounds are printed beside the
numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this script has the name of the package that it measures

from _baselines_anomalib import beside_anomalib
from _baselines_rounds import median, resident_mb, seconds, told

from baselines import balanced_softmax, gaussian, knn, ocsvm, pca
from baselines._backbones import choose_backbone, load_backbone
from baselines._coreset import PROJECTED, k_center
from baselines._torch import choose_device, chunks, read_square, to_tensor
from maskbridge.approach import Context, PredictData, TrainData
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.meters import PhaseMeter
from maskbridge.sample import make_sample
from maskbridge.weights import AUTO, NONE, find_backbone

POOLED = (knn, gaussian, pca, ocsvm, balanced_softmax)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("pooled", "scaling", "patchcore", "padim"), help="see above")
    parser.add_argument("--source", default="mvtec_ad/bottle", help="category below MASKBRIDGE_DATA")
    parser.add_argument("--backbone", default="auto", help="torchvision or timm name (default: auto)")
    parser.add_argument("--backbone-weights", default="auto", help="a file, auto or none (default: auto)")
    parser.add_argument("--image-size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--ratio", type=float, default=0.01, help="coreset's share of the patches (default: 0.01)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of pooled and scaling (default: 3)")
    parser.add_argument("--seeds", type=int, default=3, help="of patchcore (default: 3)")
    parser.add_argument("--patches", type=int, default=1_000_000, help="largest number of scaling (default: 1000000)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="maskbridge-bench-") as name:
        folder = Path(name)
        where = torch.cuda.get_device_name() if arguments.device != "cpu" else f"{arguments.threads} CPU threads"
        print(f"torch {torch.__version__}, {where}", flush=True)
        if arguments.what != "scaling":
            if arguments.what in ("patchcore", "padim") and arguments.backbone == AUTO:
                sys.exit("name a backbone of timm's: --backbone tf_efficientnet_lite0 --backbone-weights FILE|none")
            settle_weights(arguments)
            data = os.environ.get("MASKBRIDGE_DATA")
            source = Path(data) / arguments.source if data else folder / "plate"
            if not data:
                make_sample(source)
            [path] = convert("mvtec", source, folder / "dataset", ConvertOptions(link="symlink"))
            if arguments.what in ("patchcore", "padim"):
                beside_anomalib(arguments, path, folder)
                return
            pooled(Dataset.open(path), folder, arguments)
        if arguments.what != "pooled":
            scaling(folder, arguments)


def settle_weights(arguments: argparse.Namespace) -> None:
    """Find the backbone and its weights, fetched if need be, before rounds with caches of their own begin."""
    arguments.backbone = choose_backbone(arguments.backbone, arguments.backbone_weights)
    load_backbone(arguments.backbone, arguments.backbone_weights, seed=0)
    arguments.backbone_weights = str(find_backbone(arguments.backbone, arguments.backbone_weights) or NONE)


def pooled(dataset: Dataset, folder: Path, arguments: argparse.Namespace) -> None:
    """All baselines on pooled features, features included, against reading the images and one pass over them."""
    name = arguments.backbone
    split = dataset.split(0)
    ids = sorted({*split.train, *split.val, *split.test})
    device = choose_device(arguments.device)

    def floor() -> None:
        backbone = load_backbone(name, arguments.backbone_weights, seed=0)
        backbone.network.to(device)
        for piece in chunks(ids, 16):
            images = np.stack([read_square(dataset, image_id, arguments.image_size) for image_id in piece])
            for each in backbone.maps(to_tensor(images, device)).values():
                each.mean(dim=(2, 3)).cpu()

    def family(round_number: int) -> dict[str, float]:
        os.environ["MASKBRIDGE_CACHE"] = str(folder / f"cache{round_number}")
        return {module.__name__: seconds(partial(fit_and_score, module)) for module in POOLED}

    def fit_and_score(module: Any) -> None:
        settings = {"backbone": name, "backbone_weights": arguments.backbone_weights}
        config = module.Config(**settings, image_size=arguments.image_size)
        weights = folder / "weights"
        context = Context(device=arguments.device, seed=0, work=folder / "work")
        train = split.train if module.SUPERVISED else tuple(i for i in split.train if dataset.image_by_id[i].is_good)
        module.train(TrainData(dataset=dataset, train=train, val=split.val, fold=0), config, weights, context)
        for part in ("val", "test"):
            data = PredictData(dataset=dataset, image_ids=split.part(part), fold=0, part=part)
            list(module.predict(data, config, weights, context))

    rounds = []
    for number in range(arguments.repeat):
        below, each = seconds(floor), family(number)
        rounds.append((below, sum(each.values()), each))
    print(f"{name}, {arguments.image_size} px, {len(ids)} images, cold cache")
    told(f"{len(POOLED)} pooled baselines, all of it : the backbone pass; bound 1.5", [b / a for a, b, _ in rounds])
    print(f"  the pass {median(a for a, _, _ in rounds):.1f} s")
    for module in POOLED:
        used = median(each[module.__name__] for _, _, each in rounds)
        print(f"  {module.__name__.removeprefix('baselines.')} {used:.2f} s")


def scaling(folder: Path, arguments: argparse.Namespace) -> None:
    """Coresets of a share of more and more patches; beyond the largest it is extrapolated."""
    sizes = [size for size in (62_500, 250_000, 1_000_000, 4_000_000) if size <= arguments.patches]
    device = choose_device(arguments.device)
    found: list[tuple[int, float]] = []
    for size in sizes:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(64, PROJECTED, generator=generator)
        points = centres[torch.randint(64, (size,), generator=generator)]
        points = (points + 0.5 * torch.randn(size, PROJECTED, generator=generator)).to(device)
        count = max(1, round(arguments.ratio * size))
        before = resident_mb()
        with PhaseMeter() as meter:
            k_center(points, count, seed=0)
        used, more = meter.seconds, meter.peak_mb - before
        found.append((size, used))
        print(f"coreset of {count:,} of {size:,} patches: {used:.1f} s, {more:.0f} MiB beside them", flush=True)
    (small, first), (large, last) = found[0], found[-1]
    if large > small:
        power = np.log(last / first) / np.log(large / small)
        print(f"time grows with the number of patches to the power of {power:.2f}; a fixed share of them is chosen")
        for size in (2 * large, 4 * large):
            print(f"  extrapolated to {size:,}: {last * (size / large) ** power:.0f} s; training draws a million first")


if __name__ == "__main__":
    main()
