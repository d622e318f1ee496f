"""SAM's parts as we calculate them beside the package's own and peft's: `sam.py attention`, `decoder` and `lora`.

    attention(Bench(arguments))

Weights are random, of the real size. Both sides are interleaved in one run; printed are the median ratio (theirs /
ours: above 1 ours is faster) with its range, median times, and the memory that a call adds at its peak (on a CPU:
resident memory of this process). With `--peak-tflops` also which share of the device's peak both would be with the
package's number of operations.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch
from _sam_rounds import VIT_B, Bench, Shape
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Block
from torch import nn

from finetune._sam_attention import fuse_attention
from finetune._sam_decoder import decode
from finetune._sam_lora import TARGETS, add_adapters, merge_adapters


def forward(module: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        module(x)


def step(module: nn.Module, x: torch.Tensor) -> None:
    """Forward and backward, to the input as well."""
    module(x.detach().requires_grad_()).square().mean().backward()
    module.zero_grad()


def randomised(module: nn.Module) -> nn.Module:
    """Relative positions begin at zero: give them numbers."""
    for name, parameter in module.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter, std=0.02)
    return module


def block(shape: Shape, window: int) -> nn.Module:
    size = (shape.grid, shape.grid)
    return randomised(Block(shape.dim, shape.heads, use_rel_pos=True, window_size=window, input_size=size))


def encoder(shape: Shape) -> nn.Module:
    """The package's, as its registry builds it."""
    return randomised(
        ImageEncoderViT(
            img_size=16 * shape.grid,
            embed_dim=shape.dim,
            depth=shape.depth,
            num_heads=shape.heads,
            out_chans=256,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=shape.window,
            global_attn_indexes=shape.everywhere,
        )
    )


def attention(bench: Bench) -> None:
    shape = bench.shape
    for name, window in (("windowed", shape.window), ("global", 0)):
        theirs = block(shape, window).to(bench.device)
        ours = copy.deepcopy(theirs)
        fuse_attention(ours)
        tokens = torch.randn(1, shape.grid, shape.grid, shape.dim, device=bench.device)
        windows = math.ceil(shape.grid / window) ** 2 if window else 0
        x = torch.randn(windows, window, window, shape.dim, device=bench.device) if window else tokens
        bench.compare(f"{name} attention", partial(forward, theirs.attn, x), partial(forward, ours.attn, x))
        bench.compare(f"{name} attention, training", partial(step, theirs.attn, x), partial(step, ours.attn, x))
        bench.compare(f"{name} block", partial(forward, theirs, tokens), partial(forward, ours, tokens))
        bench.compare(f"{name} block, training", partial(step, theirs, tokens), partial(step, ours, tokens))
    theirs = encoder(shape).to(bench.device)
    ours = copy.deepcopy(theirs)
    fuse_attention(ours)
    image = torch.randn(1, 3, 16 * shape.grid, 16 * shape.grid, device=bench.device)
    bench.compare("encoder", partial(forward, theirs, image), partial(forward, ours, image))
    if bench.device.type == "cuda":
        bench.compare("encoder, training", partial(step, theirs, image), partial(step, ours, image))


def official_decoder(grid: int) -> Sam:
    """The prompt encoder and mask decoder of every official model (grid 64), and no image encoder."""
    size, side = (grid, grid), 16 * grid
    prompt_encoder = PromptEncoder(
        embed_dim=256, image_embedding_size=size, input_image_size=(side, side), mask_in_chans=16
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


def random_boxes(count: int, side: int) -> torch.Tensor:
    """Left, top, right, bottom in an image of that side, N x 4."""
    low = 0.6 * side * torch.rand(count, 2)
    return torch.cat([low, low + side * (0.02 + 0.3 * torch.rand(count, 2))], dim=1)


def decoder(bench: Bench) -> None:
    grid = bench.shape.grid
    sam = official_decoder(grid).to(bench.device)
    embeddings = torch.randn(1, 256, grid, grid, device=bench.device)
    boxes = random_boxes(max(32, *bench.arguments.prompts), 16 * grid).to(bench.device)

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
        print("lora: peft is missing: make peers, and run this with .venv-peers/bin/python")
        return
    import peft

    tiny = randomised(Block(192, 4, use_rel_pos=True, window_size=8, input_size=(32, 32)))
    windowed = block(VIT_B, VIT_B.window)
    for name, module, grid, dim in (("tiny", tiny, 32, 192), ("ViT-B windowed", windowed, VIT_B.grid, VIT_B.dim)):
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
    sam = official_decoder(VIT_B.grid).requires_grad_(False)
    sam.image_encoder = nn.Sequential(block(VIT_B, VIT_B.window))
    start = time.perf_counter()
    add_adapters(sam, bench.arguments.rank, TARGETS)
    merge_adapters(sam)
    print(f"adding and merging ours: {(time.perf_counter() - start) * 1e3:.0f} ms")
    code = "import sys, time, torch; start = time.perf_counter(); count = len(sys.modules); import peft; "
    code += "print(f'{time.perf_counter() - start:.2f} s, {len(sys.modules) - count} modules')"
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    print(f"import peft, after torch: {' | '.join(run.stdout.strip() for run in done)}")
