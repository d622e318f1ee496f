from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from finetune._sam_decoder import decode

CHANNELS, GRID_HW = 64, (5, 7)


@pytest.fixture
def sam():
    """A small decoder of SAM's classes, every parameter random."""
    torch.manual_seed(0)
    prompt_encoder = PromptEncoder(
        embed_dim=CHANNELS, image_embedding_size=GRID_HW, input_image_size=(80, 112), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=96, num_heads=4)
    decoder = MaskDecoder(transformer_dim=CHANNELS, transformer=transformer, iou_head_hidden_dim=48)
    model = Sam(nn.Identity(), prompt_encoder, decoder).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def package(sam, embeddings, image_index, sparse, dense, multimask):
    """The package's own decoder, image by image, in the order of the prompts."""
    count = len(image_index)
    dense = (dense if dense.ndim == 4 else dense[None]).expand(count, CHANNELS, *GRID_HW)
    outputs = [
        sam.mask_decoder(
            image_embeddings=embeddings[image_index[i]][None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse[i : i + 1],
            dense_prompt_embeddings=dense[i : i + 1],
            multimask_output=multimask,
        )
        for i in range(count)
    ]
    return tuple(torch.cat(part) for part in zip(*outputs, strict=True))


def prompts(sam, kind, count):
    """Sparse and dense embeddings of made-up prompts."""
    boxes = torch.rand(count, 4) * 40 + torch.tensor([0, 0, 40, 40])
    points = (torch.rand(count, 3, 2) * 80, torch.tensor([[1, 0, 1]] * count))
    masks = torch.randn(count, 1, 4 * GRID_HW[0], 4 * GRID_HW[1])
    given = {
        "boxes": {"boxes": boxes},
        "points": {"points": points},
        "boxes and points": {"boxes": boxes, "points": points},
        "masks": {"masks": masks},
        "boxes and masks": {"boxes": boxes, "masks": masks},
        "nothing": {},
    }[kind]
    sparse, dense = sam.prompt_encoder(**{"points": None, "boxes": None, "masks": None, **given})
    return sparse.expand(count, -1, -1), dense.expand(count, -1, -1, -1)


def difference(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["boxes", "points", "boxes and points", "masks", "boxes and masks", "nothing"])
@pytest.mark.parametrize("index", [[0], [0, 0, 0], [2, 0, 1, 0, 2], [0, 1]], ids=str)
def test_masks_and_quality_are_those_of_the_package(sam, index, kind, multimask):
    torch.manual_seed(1)
    embeddings, image_index = torch.randn(max(index) + 1, CHANNELS, *GRID_HW), torch.tensor(index)
    with torch.no_grad():
        sparse, dense = prompts(sam, kind, len(index))
        found = decode(sam, embeddings, image_index, sparse, dense, multimask=multimask)
        expected = package(sam, embeddings, image_index, sparse, dense, multimask)
    assert found[0].shape == (len(index), 3 if multimask else 1, 4 * GRID_HW[0], 4 * GRID_HW[1])
    assert found[1].shape == found[0].shape[:2]
    assert difference(found[0], expected[0]) < 1e-5
    assert (found[1] - expected[1]).abs().max() < 1e-5


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["boxes", "boxes and masks", "nothing"])
@pytest.mark.parametrize("index", [[0, 0, 0], [1, 0, 1]], ids=str)
def test_gradients_are_those_of_the_package(sam, index, kind, multimask):
    torch.manual_seed(1)
    embeddings = torch.randn(max(index) + 1, CHANNELS, *GRID_HW)
    weight = torch.randn(4 * GRID_HW[0], 4 * GRID_HW[1])
    gradients = []
    for function in (lambda *args: decode(*args, multimask=multimask), lambda *args: package(*args, multimask)):
        torch.manual_seed(2)
        sam.zero_grad()
        x = embeddings.clone().requires_grad_()
        masks, quality = function(sam, x, torch.tensor(index), *prompts(sam, kind, len(index)))
        ((masks * weight).tanh().sum() + quality.square().sum()).backward()
        gradients.append({"image": x.grad, **{name: p.grad for name, p in sam.named_parameters()}})
    found, expected = gradients
    heads = {name for name in expected if "hypernetworks_mlps.0." in name if multimask}
    heads |= {name for name in expected for i in "123" if f"hypernetworks_mlps.{i}." in name if not multimask}
    for name, gradient in expected.items():
        if name in heads:  # not asked for: nothing instead of zeros
            assert found[name] is None
            assert not gradient.any()
        elif name.endswith("k_proj.bias"):  # adds the same to each logit of a softmax: no effect but rounding errors
            assert gradient.abs().max() < 1e-4 * expected[name.replace("bias", "weight")].abs().max() + 1e-5
            assert (found[name] is None) == ("token_to_image" in name)
        elif gradient is None:
            assert found[name] is None
        else:
            assert difference(found[name], gradient) < 1e-4, name


@pytest.mark.parametrize("shape", [(CHANNELS, 1, 1), (1, CHANNELS, 1, 1), (CHANNELS, *GRID_HW)], ids=str)
@pytest.mark.parametrize("index", [[0, 0], [1, 0]], ids=str)
def test_one_dense_embedding_serves_all_prompts(sam, index, shape):
    embeddings, dense, sparse = (
        torch.randn(max(index) + 1, CHANNELS, *GRID_HW),
        torch.randn(shape),
        torch.randn(2, 2, 64),
    )
    with torch.no_grad():
        found = decode(sam, embeddings, torch.tensor(index), sparse, dense, multimask=True)
        expected = package(sam, embeddings, torch.tensor(index), sparse, dense, True)
    assert difference(found[0], expected[0]) < 1e-5


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("per_prompt", [False, True])
def test_no_prompts_give_no_masks(sam, per_prompt, multimask):
    dense = torch.randn(0, CHANNELS, *GRID_HW) if per_prompt else torch.randn(CHANNELS, 1, 1)
    none = torch.zeros(0, dtype=torch.int64)
    for images in (1, 2):
        embeddings = torch.randn(images, CHANNELS, *GRID_HW)
        masks, quality = decode(sam, embeddings, none, torch.randn(0, 2, CHANNELS), dense, multimask=multimask)
        assert masks.shape == (0, 3 if multimask else 1, 20, 28)
        assert quality.shape == masks.shape[:2]


def test_half_precision_is_as_near_as_the_packages_own(sam):
    torch.manual_seed(1)
    embeddings, image_index = torch.randn(2, CHANNELS, *GRID_HW), torch.tensor([1, 0, 1])
    with torch.no_grad():
        given = (sam, embeddings, image_index, *prompts(sam, "boxes", 3))
        expected = package(*given, True)[0]
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = decode(*given, multimask=True)[0].float(), package(*given, True)[0].float()
    assert difference(ours, expected) < 2 * difference(theirs, expected) < 0.2


@pytest.mark.parametrize(("sparse", "dense"), [(2, None), (3, 2)])
def test_numbers_of_prompts_that_differ_are_refused(sam, sparse, dense):
    given = torch.randn(CHANNELS, 1, 1) if dense is None else torch.randn(dense, CHANNELS, *GRID_HW)
    with pytest.raises(ValueError, match="3 image indices"):
        decode(
            sam, torch.randn(1, CHANNELS, *GRID_HW), torch.zeros(3, dtype=torch.int64),
            torch.randn(sparse, 2, CHANNELS), given, multimask=False,
        )  # fmt: skip
