"""What SAM's fine-tuning gains by its cache, its prompts and its own calculation, and how it uses a GPU.

    python benchmarks/sam.py cache DATASET --arch backbone --image-size 512    with the cache and without: gain, losses
    python benchmarks/sam.py cache DATASET --full-vit-b       ViT-B at 1024 px: two images, extrapolated to all epochs
    python benchmarks/sam.py prompts            16 boxes in a step against 16 steps; a step against --chunk
    python benchmarks/sam.py decoder            box prompts on one image, all at once and in chunks, beside the package
    python benchmarks/sam.py attention          a windowed and a global block, the encoder of ViT-B, beside the package
    python benchmarks/sam.py neck DATASET       what a random neck before a pretrained decoder leaves of box prompts
    python benchmarks/sam.py workers DATASET    a step in two processes against one, on the CPU
    python benchmarks/sam.py gpu --data DIR     encoder, decoder and whole trainings on a GPU: time, share of its peak
    make peers && .venv-peers/bin/python benchmarks/sam.py lora          adapters beside peft's, and the imports

What is compared is interleaved in one run; printed are medians of `--repeat` rounds with their range. `--small` tries
the commands at tiny sizes. Nothing is asserted; bounds are printed beside the numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script beside this one has the name of a package

from _sam_cache import cache
from _sam_gpu import gpu
from _sam_neck import neck
from _sam_parts import attention, decoder, lora
from _sam_rounds import Bench
from _sam_runs import workers
from _sam_steps import prompts

#: Commands that measure single parts.
PARTS: dict[str, Callable[[Bench], None]] = {
    "prompts": prompts,
    "decoder": decoder,
    "attention": attention,
    "lora": lora,
}
WHOLE: dict[str, Callable[[argparse.Namespace], None]] = {"cache": cache, "neck": neck, "workers": workers, "gpu": gpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*PARTS, *WHOLE):
        add_options(name, commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    on_gpu = getattr(arguments, "device", "cpu").startswith("cuda") and torch.cuda.is_available()
    where = torch.cuda.get_device_name() if on_gpu else f"{arguments.threads} CPU threads"
    print(f"torch {torch.__version__}, {where}{f', {arguments.dtype}' if 'dtype' in arguments else ''}", flush=True)
    if arguments.command in PARTS:
        PARTS[arguments.command](Bench(arguments))
    else:
        WHOLE[arguments.command](arguments)


def add_options(name: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeat", type=int, default=3 if name in ("cache", "workers") else 5, help="rounds")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    if name in ("cache", "workers", "neck"):
        parser.add_argument("dataset", type=Path, help="a dataset made by maskbridge")
        parser.add_argument("--image-size", type=int, default=384, help="of tiny and backbone, pixels")
        parser.add_argument("--images", type=int, default=40 if name == "neck" else 16, help="defective images")
    if name in ("cache", "workers"):
        parser.add_argument("--arch", choices=("tiny", "backbone", "vit_b", "vit_t"), default="backbone")
        parser.add_argument("--weights", default="none", help="of SAM: auto, none or a file")
        parser.add_argument("--backbone-weights", default="none", help="of the backbone: auto, none or a file")
        parser.add_argument("--epochs", type=int, default=20 if name == "cache" else 4)
        parser.add_argument("--batch", type=int, default=8, help="images in a step")
    elif name != "neck":
        on_gpu = name == "gpu"
        parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command; gpu: on the CPU")
        parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
        parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16" if on_gpu else "fp32")
        parser.add_argument(
            "--peak-tflops", type=float, default=989.0 if on_gpu else None,
            help="what the device reaches at best (989: H100 SXM, bf16, dense)",
        )  # fmt: skip
    if name == "cache":
        kinds = "kinds of prompts, joined by +; each choice is a training of its own"
        parser.add_argument("--kinds", nargs="+", default=["none", "box"], help=kinds)
        parser.add_argument("--full-vit-b", action="store_true", help="ViT-B, extrapolated from two images")
    if name == "workers":
        parser.add_argument("--cache", choices=("fp16", "off"), default="fp16")
    if name == "prompts":
        parser.add_argument("--count", type=int, default=16, help="boxes of the image")
    if name == "decoder":
        parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of box prompts")
    if name == "lora":
        parser.add_argument("--rank", type=int, default=8, help="of adapters")
    if name == "gpu":
        parser.add_argument("--data", type=Path, required=True, help="folder for made-up images and what is temporary")
        parser.add_argument("--arch", nargs="+", default=["vit_b", "vit_h"], help="official models")
        parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="in one call of the encoder")
        parser.add_argument("--batch", type=int, default=8, help="images in a step of a whole training")
        parser.add_argument("--accumulate", type=int, default=1, help="pieces that it is taken in")
        parser.add_argument("--epochs", type=int, default=4, help="of a whole training")


if __name__ == "__main__":
    main()
