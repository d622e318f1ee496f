"""SAM's parts as we calculate them beside the package's own and peft's: time ratios and memory.

    python benchmarks/sam_parts.py attention            one windowed block, one global block, the whole encoder of ViT-B
    python benchmarks/sam_parts.py decoder              box prompts on one image, all at once and in chunks
    make peers && .venv-peers/bin/python benchmarks/sam_parts.py lora       a tiny and a ViT-B block, and the imports

Weights are random, of the real size. Both sides are interleaved in one run; printed are the median ratio of `--repeat`
rounds (theirs / ours: above 1 ours is faster) with its range, median times, and the memory that a call adds at its
peak (on a CPU: resident memory of this process). `--device cuda --dtype bf16` measures under autocast; `--peak-tflops`
names what the device reaches at best, and adds which share of it both would be with the package's number of
operations. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import importlib.util
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Block
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script beside this one has the name of a package

from finetune._sam_attention import fuse_attention
from finetune._sam_decoder import decode
from finetune._sam_lora import TARGETS, add_adapters, merge_adapters

#: ViT-B.
DIM, HEADS, GRID, WINDOW = 768, 12, 64, 14
MIB = 2**20
Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("attention", "decoder", "lora"))
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--peak-tflops", type=float, help="what the device reaches at best, for the share of it")
    parser.add_argument("--rank", type=int, default=8, help="of adapters (default: 8)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of box prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else f"{arguments.threads} CPU threads"
    print(f"torch {torch.__version__}, {name}, {arguments.dtype}")
    {"attention": attention, "decoder": decoder, "lora": lora}[arguments.part](Bench(arguments))


class Bench:
    """Interleaved rounds of two calls."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Take `--repeat`, `--device`, `--dtype` and `--peak-tflops`."""
        self.arguments, self.device = arguments, torch.device(arguments.device)

    def compare(self, name: str, theirs: Call, ours: Call) -> None:
        """One line: the ratio, both times, both peaks, shares of the device's peak."""
        calls = [self._cast(theirs), self._cast(ours)]
        times: list[list[float]] = [[], []]
        for number in range(self.arguments.repeat + 1):
            for call, seconds in zip(calls, times, strict=True):
                start = self._now()
                call()
                if number:  # the first warms up
                    seconds.append(self._now() - start)
        middle = [statistics.median(seconds) for seconds in times]
        ratio = spread([a / b for a, b in zip(*times, strict=True)])
        peaks = [self._peak(call) for call in calls]
        line = f"{name:34} x {ratio}   {middle[0] * 1e3:.1f} -> {middle[1] * 1e3:.1f} ms"
        line += f"   {peaks[0] / MIB:.0f} -> {peaks[1] / MIB:.0f} MiB"
        if self.arguments.peak_tflops:
            with FlopCounterMode(display=False) as counter:
                calls[0]()
            shares = [counter.get_total_flops() / t / self.arguments.peak_tflops / 1e12 for t in middle]
            line += f"   {shares[0]:.1%} -> {shares[1]:.1%} of the peak"
        print(line, flush=True)

    def _cast(self, call: Call) -> Call:
        def run() -> None:
            half = self.arguments.dtype == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext():
                call()

        return run

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak(self, call: Call) -> float:
        """Bytes that a call adds at its peak."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        ctypes.CDLL(None).malloc_trim(0)
        done, first = threading.Event(), resident()
        peak = first

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.002):
                peak = max(peak, resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        call()
        done.set()
        watcher.join()
        return peak - first


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def forward(module: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        module(x)


def step(module: nn.Module, x: torch.Tensor) -> None:
    """Forward and backward, to the input as well."""
    module.zero_grad()
    module(x.detach().requires_grad_()).square().mean().backward()


def randomised(module: nn.Module) -> nn.Module:
    """Relative positions begin at zero: give them numbers."""
    for name, parameter in module.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter, std=0.02)
    return module


def block(window: int) -> nn.Module:
    return randomised(Block(DIM, HEADS, use_rel_pos=True, window_size=window, input_size=(GRID, GRID)))


def attention(bench: Bench) -> None:
    for name, window in (("windowed", WINDOW), ("global", 0)):
        theirs = block(window).to(bench.device)
        ours = copy.deepcopy(theirs)
        fuse_attention(ours)
        tokens = torch.randn(1, GRID, GRID, DIM, device=bench.device)
        x = torch.randn(25, WINDOW, WINDOW, DIM, device=bench.device) if window else tokens
        bench.compare(f"{name} attention", partial(forward, theirs.attn, x), partial(forward, ours.attn, x))
        bench.compare(f"{name} attention, training", partial(step, theirs.attn, x), partial(step, ours.attn, x))
        bench.compare(f"{name} block", partial(forward, theirs, tokens), partial(forward, ours, tokens))
        bench.compare(f"{name} block, training", partial(step, theirs, tokens), partial(step, ours, tokens))
    theirs = randomised(sam_model_registry["vit_b"]().image_encoder).to(bench.device)
    ours = copy.deepcopy(theirs)
    fuse_attention(ours)
    image = torch.randn(1, 3, 1024, 1024, device=bench.device)
    bench.compare("encoder", partial(forward, theirs, image), partial(forward, ours, image))
    if bench.device.type == "cuda":
        bench.compare("encoder, training", partial(step, theirs, image), partial(step, ours, image))


def official_decoder() -> Sam:
    """The prompt encoder and mask decoder of every official model, and no image encoder."""
    prompt_encoder = PromptEncoder(
        embed_dim=256, image_embedding_size=(GRID, GRID), input_image_size=(1024, 1024), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return Sam(nn.Identity(), prompt_encoder, MaskDecoder(transformer_dim=256, transformer=transformer))


def package_decode(
    sam: Sam, embeddings: torch.Tensor, image_index: torch.Tensor, sparse: Any, dense: Any, *, multimask: bool
) -> Any:
    """The package's decoder on one image, in the form of ours."""
    return sam.mask_decoder(
        image_embeddings=embeddings,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense.expand(len(sparse), -1, -1, -1),
        multimask_output=multimask,
    )


def decoder(bench: Bench) -> None:
    sam = official_decoder().to(bench.device)
    embeddings = torch.randn(1, 256, GRID, GRID, device=bench.device)
    most = max(32, *bench.arguments.prompts)
    low = torch.rand(most, 2, device=bench.device) * 600
    boxes = torch.cat([low, low + 20 + 300 * torch.rand(most, 2, device=bench.device)], dim=1)

    def run(function: Any, count: int, chunk: int, training: bool, multimask: bool = False) -> None:
        sam.zero_grad()
        with torch.inference_mode(not training):
            for start in range(0, count, chunk):
                given = boxes[start : min(start + chunk, count)]
                sparse, dense = sam.prompt_encoder(points=None, boxes=given, masks=None)
                index = torch.zeros(len(given), dtype=torch.int64, device=bench.device)
                masks, quality = function(sam, embeddings, index, sparse, dense, multimask=multimask)
                if training:
                    (masks.sigmoid().mean() + quality.mean()).backward()

    for training in (False, True):
        word = ", training" if training else ""
        for count in bench.arguments.prompts:
            calls = [partial(run, function, count, count, training) for function in (package_decode, decode)]
            bench.compare(f"{count} prompts{word}", *calls)
        if not training:
            calls = [partial(run, function, 4, 4, False, True) for function in (package_decode, decode)]
            bench.compare("4 prompts, three masks", *calls)
        for chunk in (1, 2, 4, 8, 16, 32):
            calls = [partial(run, function, 32, chunk, training) for function in (package_decode, decode)]
            bench.compare(f"32 prompts by {chunk}{word}", *calls)


def lora(bench: Bench) -> None:
    if importlib.util.find_spec("peft") is None:
        print("peft is missing: make peers, and run this with .venv-peers/bin/python")
        return
    import peft

    tiny = randomised(Block(192, 4, use_rel_pos=True, window_size=8, input_size=(32, 32)))
    for name, module, grid, dim in (("tiny", tiny, 32, 192), ("ViT-B windowed", block(WINDOW), GRID, DIM)):
        ours = Sam(nn.Sequential(module), nn.Identity(), nn.Identity()).requires_grad_(False)
        theirs = copy.deepcopy(ours)
        add_adapters(ours, bench.arguments.rank, ["qkv", "proj"])
        config = peft.LoraConfig(
            r=bench.arguments.rank, lora_alpha=bench.arguments.rank, target_modules=["qkv", "proj"]
        )
        theirs = peft.inject_adapter_in_model(config, theirs)
        ours, theirs = ours.image_encoder.to(bench.device), theirs.image_encoder.to(bench.device)
        x = torch.randn(1, grid, grid, dim, device=bench.device)
        bench.compare(f"{name} block", partial(forward, theirs, x), partial(forward, ours, x))
        bench.compare(f"{name} block, training", partial(step, theirs, x), partial(step, ours, x))
    sam = official_decoder().requires_grad_(False)
    sam.image_encoder = nn.Sequential(block(WINDOW))
    start = time.perf_counter()
    add_adapters(sam, bench.arguments.rank, TARGETS)
    merge_adapters(sam)
    print(f"adding and merging ours: {(time.perf_counter() - start) * 1e3:.0f} ms")
    code = "import sys, time, torch; start = time.perf_counter(); count = len(sys.modules); import peft; "
    code += "print(f'{time.perf_counter() - start:.2f} s, {len(sys.modules) - count} modules')"
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    print(f"import peft, after torch: {' | '.join(run.stdout.strip() for run in done)}")


if __name__ == "__main__":
    main()
