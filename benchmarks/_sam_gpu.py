"""SAM's training on one GPU: time, share of the device's peak, images a second, memory: `sam.py gpu --data DIR`.

The share is that of operations which the model needs as the package writes it down (`encoder_flops`, `decoder_flops`),
so that a faster way to the same numbers shows as a higher share. A step with gradients counts three times. DIR gets
made-up images of 1024 x 1024 pixels, and is used again.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from _sam_parts import attention, forward, step
from _sam_rounds import MIB, Bench
from _sam_runs import chosen, timed_training
from _sam_steps import MadeUp
from segment_anything.modeling.image_encoder import Attention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune import sam
from finetune._sam_model import build
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.sample import make_sample

#: Tokens of a prompt that is a box: quality, four masks, two corners.
BOX_TOKENS = 7
_WITH_GRADIENTS = 3


def encoder_flops(encoder: Any) -> int:
    """Operations of a ViT image encoder for one image, two for each multiplication with addition.

    Of each block, with P tokens, w x w of them in a window (padded ones included), C channels: qkv and projection
    8 C² for each token of a window; products of queries with keys and of shares with values 4 w⁴ C for each window;
    relative positions 4 w³ C for each; MLP 4 C H for each of P. Patches and neck are convolutions.
    """
    grid, channels = encoder.pos_embed.shape[1], encoder.pos_embed.shape[-1]
    tokens = grid**2
    total = 2 * tokens * encoder.patch_embed.proj.weight.numel()
    for block in encoder.blocks:
        side = block.window_size or grid
        windows, inside = math.ceil(grid / side) ** 2, side**2
        total += 2 * windows * inside * (block.attn.qkv.weight.numel() + block.attn.proj.weight.numel())
        total += windows * (4 * inside**2 * channels + 4 * inside * side * channels)
        total += 2 * tokens * (block.mlp.lin1.weight.numel() + block.mlp.lin2.weight.numel())
    return total + sum(2 * tokens * layer.weight.numel() for layer in encoder.neck if isinstance(layer, nn.Conv2d))


def decoder_flops(model: Any, grid: int, prompts: int, tokens: int) -> int:
    """Operations of SAM's mask decoder for prompts of some tokens on an image of grid x grid, counted in the same way.

    As the package does it: all four masks, and each prompt reads a copy of the image of its own. Left out are the
    codes of positions, .02 %.
    """
    pixels = grid**2

    def attended(layer: Any, queries: int, keys: int) -> int:
        ends = layer.q_proj.weight.numel() + layer.out_proj.weight.numel()
        pair = layer.k_proj.weight.numel() + layer.v_proj.weight.numel()
        return 2 * (queries * ends + keys * pair) + 4 * queries * keys * layer.internal_dim

    def dense(module: nn.Module) -> int:
        return 2 * sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear))

    total = attended(model.transformer.final_attn_token_to_image, tokens, pixels)
    for layer in model.transformer.layers:
        total += attended(layer.self_attn, tokens, tokens) + tokens * dense(layer.mlp)
        total += attended(layer.cross_attn_token_to_image, tokens, pixels)
        total += attended(layer.cross_attn_image_to_token, pixels, tokens)
    first, second = (each for each in model.output_upscaling if isinstance(each, nn.ConvTranspose2d))
    total += 2 * pixels * first.weight.numel() + 2 * 4 * pixels * second.weight.numel()
    total += dense(model.output_hypernetworks_mlps) + dense(model.iou_prediction_head)
    return prompts * (total + 2 * model.num_mask_tokens * 16 * pixels * second.out_channels)


def counted(encoder: nn.Module) -> int:
    """What PyTorch counts in the package's own encoder; nothing is calculated."""
    package = copy.deepcopy(encoder).to("meta")
    for module in package.modules():
        if isinstance(module, Attention):
            module.__class__ = Attention
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        package(torch.zeros(1, 3, package.img_size, package.img_size, device="meta"))
    return int(counter.get_total_flops())


def made_up(folder: Path, size_hw: tuple[int, int]) -> Dataset:
    """The sample, enlarged."""
    out = folder / f"plates-{size_hw[0]}x{size_hw[1]}"
    if not (out / "annotations.json").is_file():
        source = folder / "sample"
        make_sample(source, overwrite=True)
        for path in sorted(source.rglob("*.png")):
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_NEAREST))
        convert("mvtec", source, out, ConvertOptions())
        shutil.rmtree(source)
    return Dataset.open(out)


def gpu(arguments: argparse.Namespace) -> None:
    if not arguments.small and not torch.cuda.is_available():
        print("gpu: no GPU here, not measured (--small tries the command on a CPU)")
        return
    if arguments.small:
        arguments.device = "cpu"
    arguments.data.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    archs = ["tiny"] if arguments.small else arguments.arch
    for arch in archs:
        encoder(bench, arch)
    decoder(bench)
    dataset = made_up(arguments.data, (64, 80) if arguments.small else (1024, 1024))
    for arch in archs:
        for what in ("decoder", "lora", "full"):
            training(bench, dataset, arch, what)
    print("attention, the package's : fused")
    attention(bench)


def encoder(bench: Bench, arch: str) -> None:
    model = build(arch, backbone="", image_size=64)
    module, flops = model.sam.image_encoder, encoder_flops(model.sam.image_encoder)
    side = model.image_size
    print(f"{arch}: encoder, {flops / 1e12:.4g} TFLOP an image, : PyTorch's count {flops / counted(module):.4f}")
    module.to(bench.device).requires_grad_(False)
    for count in bench.arguments.images:
        x = torch.randn(count, 3, side, side, device=bench.device)
        bench.alone(f"{arch}: encoder, {count} images", bench.cast(partial(forward, module, x)), count * flops)
    module.requires_grad_(True)
    for count in bench.arguments.images:
        x = torch.randn(count, 3, side, side, device=bench.device)
        name = f"{arch}: encoder, with gradients, {count} images"
        try:
            bench.alone(name, bench.cast(partial(step, module, x)), _WITH_GRADIENTS * count * flops)
        except torch.cuda.OutOfMemoryError:
            print(f"{name}: does not fit", flush=True)


def decoder(bench: Bench) -> None:
    """Of every official model alike."""
    for count in (1, 16):
        made = MadeUp(bench, count)
        stepper, grid = made.stepper(16), bench.shape.grid
        flops = decoder_flops(made.model.sam.mask_decoder, grid, count, BOX_TOKENS)
        name = f"decoder: a training step with {count} boxes"
        bench.alone(name, partial(stepper.take, made.step(slice(count))), _WITH_GRADIENTS * flops)


def training(bench: Bench, dataset: Dataset, arch: str, what: str) -> None:
    """A whole training of defective images; its first epoch warms up."""
    given = bench.arguments
    ids = chosen(dataset, 2 * given.batch)
    config = sam.Config(
        arch=arch, weights="none", image_size=64, train=what, precision="bf16" if given.dtype == "bf16" else "32",
        batch=given.batch, accumulate=given.accumulate, epochs=given.epochs, negatives="0",
    )  # fmt: skip
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        done = timed_training(dataset, ids, config, device=given.device, folder=given.data)
    except torch.cuda.OutOfMemoryError:
        print(f"{arch}: --train {what}, {given.batch} images in a step: does not fit; try --accumulate", flush=True)
        return
    seconds = done.epochs[1:] or done.epochs
    rates = [len(ids) / each for each in seconds]
    line = (
        f"{arch}: --train {what:7} {statistics.median(rates):.2f} [{min(rates):.2f}, {max(rates):.2f}] images a second"
    )
    if what == "decoder":
        line += f", {len(ids) / done.embedding_seconds:.2f} into the cache (hash of the trunk included)"
    if bench.device.type == "cuda":
        line += f"   {torch.cuda.max_memory_allocated() / MIB:,.0f} MiB at the peak"
    print(line, flush=True)
