from __future__ import annotations

import pytest
import torch

from finetune._sam_decoder import decode
from finetune._sam_lora import TARGETS, LowRank, adapter_state, add_adapters, merge_adapters
from finetune._sam_model import build
from maskbridge.errors import OptionError

SIZE = 64


@pytest.fixture
def sam():
    """A tiny SAM, frozen."""
    torch.manual_seed(0)
    return build("tiny", backbone="", image_size=SIZE).sam.requires_grad_(False)


def train_a_bit(parameters):
    """Random numbers for A and B, as after a training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))


def outputs(sam, decoder=decode):
    """Masks and quality of two boxes on two images, from pixels to logits."""
    torch.manual_seed(2)
    x = torch.randn(2, 3, SIZE, SIZE)
    boxes = torch.tensor([[3.0, 5, 40, 30], [20, 8, 60, 63]])
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    return decoder(sam, sam.image_encoder(x), torch.tensor([1, 0]), sparse, dense, multimask=True)


def package(sam, embeddings, image_index, sparse, dense, *, multimask):
    parts = [
        sam.mask_decoder(
            image_embeddings=embeddings[i][None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse[n][None],
            dense_prompt_embeddings=dense[n][None],
            multimask_output=multimask,
        )
        for n, i in enumerate(image_index.tolist())
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def same(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_nothing_changes_at_first(sam):
    before = outputs(sam)
    add_adapters(sam, 3, TARGETS)
    same(outputs(sam), before)
    same(outputs(sam, package), before)


def test_adapters_begin_where_they_can_learn(sam):
    """With A and B both at zero every gradient would be zero for ever."""
    parameters = add_adapters(sam, 3, TARGETS)
    before = outputs(sam)
    (before[0].tanh().mean() + before[1].sum()).backward()
    moved = {name: p.grad for name, p in sam.named_parameters() if p.requires_grad and name.endswith(".lora_b")}
    assert all(gradient.any() for gradient in moved.values()), [name for name, g in moved.items() if not g.any()]
    torch.optim.SGD(parameters, lr=1.0).step()
    with torch.no_grad():
        after = outputs(sam)
    assert (after[0] - before[0]).abs().max() > 1e-3


def test_gradients_go_to_the_adapters_of_both_parts_alone(sam):
    parameters = add_adapters(sam, 3, TARGETS)
    names = {name for name, parameter in sam.named_parameters() if parameter.requires_grad}
    assert {id(p) for p in parameters} == {id(p) for p in sam.parameters() if p.requires_grad}
    assert all(name.endswith((".lora_a", ".lora_b")) for name in names)
    train_a_bit(parameters)
    masks, quality = outputs(sam)
    (masks.tanh().mean() + quality.sum()).backward()
    found = {name for name, parameter in sam.named_parameters() if parameter.grad is not None}
    assert found == names
    for part in ("image_encoder.blocks.0.attn.qkv", "image_encoder.blocks.1.attn.proj"):
        assert dict(sam.named_parameters())[f"{part}.lora_a"].grad.any(), part
    for part in ("q", "k", "v", "out"):
        for attention in ("layers.1.self_attn", "layers.0.cross_attn_image_to_token", "final_attn_token_to_image"):
            name = f"mask_decoder.transformer.{attention}.{part}_proj.lora_b"
            assert dict(sam.named_parameters())[name].grad.any(), name


def test_the_decoder_gives_the_packages_outputs_and_gradients_with_adapters(sam):
    parameters = add_adapters(sam, 2, TARGETS, alpha=5)
    train_a_bit(parameters)
    results = []
    for decoder in (decode, package):
        sam.zero_grad()
        masks, quality = outputs(sam, decoder)
        (masks.tanh().mean() + quality.sum()).backward()
        results.append((masks.detach(), quality.detach(), *(parameter.grad for parameter in parameters)))
    same(*results, tolerance=1e-4)


def test_merged_layers_give_the_same_under_plain_keys(sam):
    plain = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    parameters = add_adapters(sam, 3, TARGETS, alpha=6)
    train_a_bit(parameters)
    before = outputs(sam)
    merge_adapters(sam)
    same(outputs(sam), before)
    same(outputs(sam, package), before)
    assert {name: t.shape for name, t in sam.state_dict().items()} == {name: t.shape for name, t in plain.items()}
    changed = {name for name, tensor in sam.state_dict().items() if not torch.equal(tensor, plain[name])}
    weights = {name for name in plain if name.split(".")[-2] in TARGETS and name.endswith(".weight")}
    assert changed == weights - {"image_encoder.patch_embed.proj.weight"}
    merge_adapters(sam)
    assert adapter_state(sam) == {}


def test_the_adapters_alone_bring_a_fresh_model_to_the_same_state(sam):
    torch.manual_seed(0)
    other = build("tiny", backbone="", image_size=SIZE).sam
    train_a_bit(add_adapters(sam, 3, TARGETS))
    add_adapters(other, 3, TARGETS)
    state = adapter_state(sam)
    assert len(state) == len(adapter_state(other)) == 2 * (2 * 2 + 7 * 4)
    result = other.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    same(outputs(other), outputs(sam), tolerance=0)


def test_only_the_named_linear_layers_get_adapters(sam):
    add_adapters(sam, 1, ["proj", "q_proj"], alpha=0.5)
    found = {name: layer for name, layer in sam.named_modules() if isinstance(layer, LowRank)}
    assert {name.split(".")[-1] for name in found} == {"proj", "q_proj"}
    assert "image_encoder.patch_embed.proj" not in found
    assert {name.split(".")[0] for name in found} == {"image_encoder", "mask_decoder"}
    assert {layer.scale for layer in found.values()} == {0.5}


def test_alpha_over_rank_scales_what_is_added(sam):
    [attention, x] = [sam.image_encoder.blocks[0].attn, torch.randn(3, 192)]
    base = attention.proj(x)
    add_adapters(sam, 4, ["proj"], alpha=2)
    train_a_bit([attention.proj.lora_b])
    expected = base + 0.5 * x @ attention.proj.lora_a.T @ attention.proj.lora_b.T
    assert torch.allclose(attention.proj(x), expected, atol=1e-6)
    assert torch.allclose(
        torch.nn.functional.linear(x, attention.proj.weight, attention.proj.bias), expected, atol=1e-6
    )


@pytest.mark.parametrize(
    ("rank", "targets", "words"),
    [
        (0, TARGETS, "too small; found 0"),
        (
            2,
            ["qkv", "nowhere"],
            "found nowhere; expected some of k_proj, lin1, lin2, out_proj, proj, q_proj",
        ),
        (2, [], "found no name"),
    ],
)
def test_what_cannot_work_is_one_line_and_changes_nothing(sam, rank, targets, words):
    keys = list(sam.state_dict())
    with pytest.raises(OptionError, match=words) as caught:
        add_adapters(sam, rank, targets)
    assert "\n" not in str(caught.value)
    assert list(sam.state_dict()) == keys


def test_a_convolutional_encoder_is_told_to_train_in_full():
    sam = build("backbone", backbone="mobilenet_v2", image_size=SIZE).sam
    with pytest.raises(OptionError, match="BackboneEncoder; use a ViT such as --arch vit_b, or --train full"):
        add_adapters(sam, 2, TARGETS)


def test_adapters_are_added_once(sam):
    add_adapters(sam, 2, TARGETS)
    with pytest.raises(ValueError, match="already"):
        add_adapters(sam, 2, TARGETS)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_outputs_gradients_and_merged_weights_are_those_of_peft(sam):
    import peft

    torch.manual_seed(0)
    theirs = build("tiny", backbone="", image_size=SIZE).sam
    names = [name for name, layer in theirs.named_modules() if isinstance(layer, torch.nn.Linear)]
    names = [name for name in names if name.split(".")[-1] in TARGETS]  # peft refuses the convolution of this name
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=names)
    theirs = peft.inject_adapter_in_model(config, theirs)
    parameters = add_adapters(sam, 3, TARGETS, alpha=6)
    train_a_bit(parameters)
    peers = dict(theirs.named_parameters())
    pairs = {}
    for name, parameter in sam.named_parameters():
        if parameter.requires_grad:
            peer = peers[f"{name[:-1]}{name[-1].upper()}.default.weight"]
            pairs[name] = (parameter, peer)
            peer.data.copy_(parameter.data)
    assert len(pairs) == sum(peer.requires_grad for peer in peers.values())
    results = []
    for model, which in ((sam, 0), (theirs, 1)):
        masks, quality = outputs(model, package)
        (masks.tanh().mean() + quality.sum()).backward()
        results.append((masks.detach(), quality.detach(), *(pair[which].grad for pair in pairs.values())))
    same(*results)
    merge_adapters(sam)
    state = sam.state_dict()
    for name, layer in theirs.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.merge()
            assert torch.allclose(state[f"{name}.weight"], layer.base_layer.weight, atol=1e-6), name
