"""SAM's image encoder with PyTorch's fused attention, where the package builds every N x N matrix several times.

    fuse_attention(sam.image_encoder)          # in place: the same parameters, keys and numbers

The logit of tokens (y, x) and (y', x') is `q·k / sqrt(d) + h[y, x, y'] + w[x, y, x']`, a sum that fused kernels do not
know. It is kept exactly, in one of two ways:

* Extended: q gets the vectors h[y, x, :] and w[y, x, :], k the one-hot codes of y' and x'. Then the product of both is
  the whole logit, and no N x N matrix exists. This is for CUDA, and for gradients everywhere: memory grows with N.
* In parts: a mask of a few rows of logits at a time, which stays in the cache. Without gradients on a CPU this is the
  faster way, since its kernel wants q, k and v of one length.

Source: Li et al., MViTv2 (2021), section 4.1, decomposed relative positions; Dao et al., FlashAttention (2022).
"""

from __future__ import annotations

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from torch.nn import functional as F

#: Logits of one mask, about: 8 MiB in float32.
PART = 2**21
#: Channels of q and k are a multiple of this, for kernels on CUDA.
_ALIGNED = 8


class FusedAttention(Attention):  # type: ignore[misc]
    """The package's attention, calculated in another way."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens BxHxWxC, float -> BxHxWxC; B are images, or their windows."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.use_rel_pos:
            q, k, v = qkv.flatten(1, 2)  # B·heads x N x d
            rows = q.view(-1, height, width, q.shape[-1])
            vertical = torch.einsum("ghwc,hkc->ghwk", rows, _relative(self.rel_pos_h, height))
            horizontal = torch.einsum("ghwc,wkc->ghwk", rows, _relative(self.rel_pos_w, width))
            gradients = q.requires_grad or vertical.requires_grad
            attend = _extended if gradients or q.device.type != "cpu" else _in_parts
            out = torch.unflatten(attend(q, k, v, vertical, horizontal), 0, (batch, -1))
        else:
            out = F.scaled_dot_product_attention(*qkv)
        out = out.transpose(1, 2).reshape(batch, height, width, -1)
        return self.proj(out)  # type: ignore[no-any-return]


def fuse_attention(encoder: nn.Module) -> None:
    """Turn each `Attention` of a ViT image encoder into a `FusedAttention`, in place; others stay what they are."""
    for module in encoder.modules():
        if type(module) is Attention:
            module.__class__ = FusedAttention


def _relative(table: Tensor, size: int) -> Tensor:
    """Entries of a table of relative positions, (2·size-1)xd, for each pair of query and key: size x size x d."""
    if len(table) != 2 * size - 1:  # as the package: for images of another size
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position + size - 1]


def _extended(q: Tensor, k: Tensor, v: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Attention without a mask.

    Args:
        q: GxNxd, float, N = H·W tokens row by row.
        k: Likewise.
        v: Likewise.
        vertical: Relative logits of each token and each row, GxHxWxH.
        horizontal: Of each token and each column, GxHxWxW.

    Returns:
        GxNxd.
    """
    groups, height, width, _ = vertical.shape
    channels = q.shape[-1]
    fill = -(channels + height + width) % _ALIGNED
    y, x = torch.eye(height, dtype=k.dtype, device=k.device), torch.eye(width, dtype=k.dtype, device=k.device)
    code = torch.cat([y.repeat_interleave(width, 0), x.repeat(height, 1)], dim=1)
    q = torch.cat([q * channels**-0.5, vertical.flatten(1, 2), horizontal.flatten(1, 2)], dim=-1)
    q, k = F.pad(q, (0, fill)), F.pad(torch.cat([k, code.expand(groups, -1, -1)], dim=-1), (0, fill))
    if q.device.type == "cpu":  # its fused kernel wants one length
        v = F.pad(v, (0, q.shape[-1] - channels))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0, ..., :channels]


def _in_parts(q: Tensor, k: Tensor, v: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """The same with a mask of about `PART` logits at a time, without gradients."""
    _, height, width, _ = vertical.shape
    count = q.shape[1]
    step = max(1, PART // count**2)  # heads and windows at a time, or rows of one
    rows = min(height, max(1, PART // (width * count)))
    vertical, horizontal, out = vertical.contiguous(), horizontal.contiguous(), torch.empty_like(q)
    for start in range(0, len(q), step):
        group = slice(start, start + step)
        for y in range(0, height, rows):
            part = (group, slice(y, y + rows))
            mask = vertical[part][..., :, None] + horizontal[part][..., None, :]
            tokens = (group, slice(y * width, (y + rows) * width))
            mask = mask.view(-1, mask.shape[1] * width, count).to(q.dtype)
            out[tokens] = F.scaled_dot_product_attention(
                q[tokens][None], k[group][None], v[group][None], attn_mask=mask[None]
            )[0]
    return out
