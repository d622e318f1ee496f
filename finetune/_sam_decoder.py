"""SAM's mask decoder for many prompts on several images, without a copy of the image for each product.

    masks, quality = decode(sam, embeddings, image_index, sparse, dense, multimask=False)

The numbers are those of `sam.mask_decoder`, called image by image; submodules and parameters are its own. Exact
savings, for N prompts with T tokens each, h heads of d channels and C channels of the image:

* Between few tokens and many pixels the projections of the pixels move to the tokens:
  `q (W x) = (W' q) x`, and `sum p (W x) = W sum p x`. A prompt's h·T rows of C channels replace matrices
  of h·d channels for every pixel, and a bias that adds the same to each pixel's logit drops out of the softmax.
* Up to the first layer's end all prompts on one image read one copy of it.
* The last attention is computed only for the tokens whose masks are asked for, and only those masks.
* A transposed convolution with kernel = stride is a product per pixel: pixels stay in rows until the masks are there.

Source: Kirillov et al., Segment Anything (2023), appendix A; moving projections: DeepSeek-V2 (2024), section 2.1.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F


def decode(
    sam: Sam, embeddings: Tensor, image_index: Tensor, sparse: Tensor, dense: Tensor, *, multimask: bool
) -> tuple[Tensor, Tensor]:
    """Masks of N prompts on B images.

    Parameters without an effect get no gradient (None): heads of masks that are not asked for, to which the package
    gives zeros, and the key bias of tokens that read pixels, to which it gives rounding errors. An optimizer leaves
    them alone, and its weight decay does not shrink them.

    Args:
        sam: The model; its linear layers may be adapters that have `weight` and `bias` (`_sam_lora`).
        embeddings: Image embeddings, BxCxhxw, float.
        image_index: The image of each prompt, N, int64, in [0, B). With B = 1 it is only counted.
        sparse: Tokens of points and boxes, NxTxC, float; T may be 0.
        dense: What is added to the image: one for all prompts, of a shape that broadcasts to Cxhxw, or one for
            each, NxCxhxw. The prompt encoder's own output without masks, an expanded view, counts as one for all.
        multimask: Three masks for an ambiguous prompt (whole, part, subpart) instead of one.

    Returns:
        Logits in the low-resolution frame, NxMx4hx4w, and predicted IoU, NxM; M = 3 if multimask, else 1.

    Raises:
        ValueError: When the prompts' numbers differ.
    """
    count, (height, width) = len(image_index), embeddings.shape[2:]
    if dense.ndim == 4 and len(dense) and (len(dense) == 1 or dense.stride(0) == 0):
        dense = dense[0]
    if len(sparse) != count or (dense.ndim == 4 and len(dense) != count):
        raise ValueError(f"{count} image indices, {len(sparse)} sparse prompts, dense {tuple(dense.shape)}")
    decoder, transformer = sam.mask_decoder, sam.mask_decoder.transformer
    if dense.ndim < 4:
        images = embeddings + dense
        images = images if len(images) == 1 else images.index_select(0, image_index)
    else:
        images = embeddings.index_select(0, image_index) + dense
    pixels = images.flatten(2).transpose(1, 2)  # 1 or N x hw x C
    position = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    prompt = torch.cat([own.expand(count, -1, -1), sparse], dim=1)

    tokens = prompt
    for layer in transformer.layers:
        placed = pixels + position
        if layer.skip_first_layer_pe:
            tokens = layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens))
        else:
            q = tokens + prompt
            tokens = layer.norm1(tokens + layer.self_attn(q=q, k=q, v=tokens))
        tokens = layer.norm2(tokens + _read(layer.cross_attn_token_to_image, tokens + prompt, placed, pixels))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        pixels = layer.norm4(pixels + _spread(layer.cross_attn_image_to_token, tokens + prompt, tokens, placed))

    masks = slice(1, decoder.num_mask_tokens) if multimask else slice(0, 1)
    tokens, prompt = tokens[:, : 1 + masks.stop], prompt[:, : 1 + masks.stop]  # the first is that of the quality
    read = _read(transformer.final_attn_token_to_image, tokens + prompt, pixels + position, pixels)
    tokens = transformer.norm_final_attn(tokens + read)
    heads = list(decoder.output_hypernetworks_mlps)[masks]
    weights = torch.stack([head(tokens[:, 1 + masks.start + i]) for i, head in enumerate(heads)], dim=2)
    logits = _upscaled(decoder.output_upscaling, pixels).flatten(1, -2) @ weights  # N x (h w 2 2 2 2) x M
    logits = torch.unflatten(logits, 1, (height, width, 2, 2, 2, 2)).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return logits.reshape(count, len(heads), 4 * height, 4 * width), decoder.iou_prediction_head(tokens[:, 0])[:, masks]


def _read(attention: Any, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What tokens read from pixels: q NxTxC, keys and values (1 or N)xPxC -> NxTxC."""
    heads = attention.num_heads
    shares = _logits(_split(attention.q_proj(q), heads), attention.k_proj, keys).softmax(-1)  # N x hT x P
    read = torch.unflatten(_products(shares, values), 1, (heads, -1))
    weight = torch.unflatten(attention.v_proj.weight, 0, (heads, -1))  # h x d x C
    out = (read @ weight.mT).transpose(1, 2).flatten(2)
    return attention.out_proj(out + attention.v_proj.bias)  # type: ignore[no-any-return]


def _spread(attention: Any, keys: Tensor, values: Tensor, q: Tensor) -> Tensor:
    """What pixels read from tokens: keys and values NxTxC, q (1 or N)xPxC -> NxPxC."""
    heads = attention.num_heads
    k, v = _split(attention.k_proj(keys), heads), _split(attention.v_proj(values), heads)
    bias = (k @ attention.q_proj.bias.view(heads, -1, 1)) / k.shape[-1] ** 0.5  # differs from token to token
    logits = torch.unflatten(_logits(k, attention.q_proj, q), 1, (heads, -1)) + bias
    shares = logits.softmax(2).flatten(1, 2)  # N x hT x P
    weight = torch.unflatten(attention.out_proj.weight, 1, (heads, -1)).permute(1, 2, 0)  # h x d x C
    rows = v @ weight + attention.out_proj.bias / heads  # a pixel's shares add up to h
    return shares.mT @ rows.flatten(1, 2)  # type: ignore[no-any-return]


def _logits(rows: Tensor, linear: Any, pixels: Tensor) -> Tensor:
    """Scaled products of token rows Nxhxtxd and projected pixels, without the bias: N x hT x P."""
    weight = torch.unflatten(linear.weight, 0, (rows.shape[1], -1)) / rows.shape[-1] ** 0.5
    return _products((rows @ weight).flatten(1, 2), pixels.mT)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """NxIxJ times (1 or N)xJxK; one matrix product where b is shared."""
    return a @ (b[0] if len(b) == 1 else b)


def _split(x: Tensor, heads: int) -> Tensor:
    """NxTxhd -> NxhxTxd."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def _upscaled(layers: Any, pixels: Tensor) -> Tensor:
    """Four times finer pixels, as rows: NxPxC -> NxPx2x2x2x2x(C/8); y and x of the first step, then of the second."""
    first, norm, activation, second, last = layers
    x = activation(F.layer_norm(_transposed(first, pixels), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    return last(_transposed(second, x))  # type: ignore[no-any-return]


def _transposed(convolution: Any, x: Tensor) -> Tensor:
    """A transposed convolution with kernel and stride 2 on rows: …xC -> …x2x2xO."""
    weight = convolution.weight.permute(2, 3, 1, 0)  # 2 x 2 x O x C
    rows = F.linear(x, weight.flatten(0, 2), convolution.bias.repeat(4))
    return torch.unflatten(rows, -1, weight.shape[:3])
