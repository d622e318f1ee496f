from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block
from torch import nn

from finetune import _sam_attention
from finetune._sam_attention import FusedAttention, fuse_attention
from finetune._sam_lora import add_adapters, merge_adapters
from finetune._sam_model import build


def pair(module):
    """A module with random numbers in every parameter (relative positions begin at zero), and the fused one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    fused = copy.deepcopy(module)
    fuse_attention(fused)
    assert any(isinstance(m, FusedAttention) for m in fused.modules())
    return module, fused


def same(found, expected, tolerance=1e-5):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("size_hw", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("use_rel_pos", [True, False])
@pytest.mark.parametrize("part", [1, 60, 2**21])
def test_numbers_are_those_of_the_package(monkeypatch, size_hw, use_rel_pos, part):
    monkeypatch.setattr(_sam_attention, "PART", part)
    package, ours = pair(Attention(24, num_heads=3, use_rel_pos=use_rel_pos, input_size=size_hw))
    x = torch.randn(5, *size_hw, 24)
    with torch.inference_mode():
        same(ours(x), package(x))
    same(ours(x).detach(), package(x).detach())


@pytest.mark.parametrize("size_hw", [(4, 4), (3, 7), (2, 5)], ids=str)
@pytest.mark.parametrize("use_rel_pos", [True, False])
def test_gradients_are_those_of_the_package(size_hw, use_rel_pos):
    modules = pair(Attention(24, num_heads=3, use_rel_pos=use_rel_pos, input_size=size_hw))
    gradients = []
    for module in modules:
        torch.manual_seed(1)
        x = torch.randn(2, *size_hw, 24, requires_grad=True)
        module(x).sin().sum().backward()
        gradients.append({"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}})
    assert set(gradients[0]) == set(gradients[1])
    for name, expected in gradients[0].items():
        same(gradients[1][name], expected, 1e-4)


def test_positions_alone_get_gradients_where_the_rest_is_frozen():
    gradients = []
    for module in pair(Attention(24, num_heads=3, use_rel_pos=True, input_size=(3, 5))):
        module.requires_grad_(False)
        module.rel_pos_w.requires_grad_()
        torch.manual_seed(1)
        module(torch.randn(2, 3, 5, 24)).sin().sum().backward()
        gradients.append(module.rel_pos_w.grad)
    same(gradients[1], gradients[0], 1e-4)


@pytest.mark.parametrize("size_hw", [(6, 9), (2, 3)], ids=str)
def test_tables_of_another_size_are_interpolated_as_by_the_package(size_hw):
    package, ours = pair(Attention(24, num_heads=3, use_rel_pos=True, input_size=(4, 5)))
    x = torch.randn(2, *size_hw, 24)
    with torch.inference_mode():
        same(ours(x), package(x))
    same(ours(x).detach(), package(x).detach())


@pytest.mark.parametrize("window", [0, 3, 4])
def test_windows_that_are_padded_are_the_same(window):
    block = Block(24, 3, use_rel_pos=True, window_size=window, input_size=(5, 7))
    package, ours = pair(block)
    x = torch.randn(2, 5, 7, 24)
    with torch.inference_mode():
        same(ours(x), package(x))
    same(ours(x).detach(), package(x).detach())


@pytest.mark.parametrize("gradients", [True, False])
def test_a_whole_encoder_gives_the_same(gradients):
    encoder = ImageEncoderViT(
        img_size=80, patch_size=8, embed_dim=48, depth=4, num_heads=3, out_chans=16, use_rel_pos=True, window_size=4,
        global_attn_indexes=(1, 3), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    package, ours = pair(encoder.eval())
    assert list(ours.state_dict()) == list(package.state_dict())
    assert all(type(block.attn) is FusedAttention for block in ours.blocks)
    x = torch.randn(2, 3, 80, 80)
    with torch.set_grad_enabled(gradients):
        same(ours(x).detach(), package(x).detach())


@pytest.mark.parametrize("gradients", [True, False])
def test_half_precision_is_as_near_as_the_packages_own(gradients):
    package, ours = pair(Attention(48, num_heads=3, use_rel_pos=True, input_size=(6, 9)))
    x = torch.randn(2, 6, 9, 48)
    expected = package(x).detach()
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
        found = [module(x).detach().float() for module in (ours, package)]
    errors = [float((y - expected).abs().max() / expected.abs().max()) for y in found]
    assert errors[0] < 2 * errors[1] < 0.1


def test_adapters_work_inside():
    torch.manual_seed(0)
    sam = build("tiny", backbone="", image_size=64).sam.requires_grad_(False)
    fuse_attention(sam.image_encoder)
    parameters = add_adapters(sam, 2, ["qkv", "proj"])
    x = torch.randn(1, 3, 64, 64)
    before = sam.image_encoder(x)
    before.sin().sum().backward()
    assert all(p.grad is not None for p in parameters)
    assert all(p.grad.any() for p in parameters[1::2])  # A has none while B is zero
    merge_adapters(sam)
    same(sam.image_encoder(x), before.detach())


def test_other_modules_stay_and_twice_is_once():
    encoder = build("backbone", backbone="mobilenet_v2", image_size=64).sam.image_encoder
    kinds = [type(module) for module in encoder.modules()]
    fuse_attention(encoder)
    assert [type(module) for module in encoder.modules()] == kinds
    _, fused = pair(Attention(8, num_heads=2))
    fuse_attention(fused)
    assert type(fused) is FusedAttention
