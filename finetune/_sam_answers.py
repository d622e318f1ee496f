"""What the mask decoder says to items, and what that is worth.

logits, quality = answer(model, embeddings, items, places)
each = losses(logits, quality, *tensors(items, device), focal_weight=20.0)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from finetune._sam_decoder import decode
from finetune._sam_examples import Step
from finetune._sam_model import Model
from finetune._sam_prompts import Item, dense, encode

FOCAL_GAMMA = 2.0
#: Against division by nothing, cells.
_LEAST = 1e-6


def answer(
    model: Model, embeddings: torch.Tensor, items: Sequence[Item], places: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder says to items that are alike.

    Args:
        model: The model.
        embeddings: Image embeddings, B x 256 x h x w.
        items: The items.
        places: Which image each item is of.

    Returns:
        Low-resolution logits, N x L x L, and predicted IoU, N.
    """
    index = torch.tensor(places, device=embeddings.device)
    sparse = encode(model.sam, items)
    boxes = None
    if items[0].kind in ("box", "mask"):
        boxes = torch.from_numpy(np.stack([item.points for item in items])).reshape(-1, 4).to(embeddings.device)
    added = dense(model, boxes)
    if items[0].kind == "mask":
        with torch.no_grad():
            earlier = decode(model.sam, embeddings.detach(), index, sparse, added, multimask=False)[0]
            added = model.sam.prompt_encoder(points=None, boxes=None, masks=earlier.float())[1]
    logits, quality = decode(model.sam, embeddings, index, sparse, added, multimask=False)
    return logits[:, 0].float(), quality[:, 0].float()


def losses(
    logits: torch.Tensor,
    quality: torch.Tensor,
    target: torch.Tensor,
    inside: torch.Tensor,
    shown: torch.Tensor,
    judged: torch.Tensor,
    *,
    focal_weight: float,
) -> torch.Tensor:
    """Loss of each prompt.

    Args:
        logits: N x L x L.
        quality: Predicted IoU, N.
        target: N x L x L, [0, 1].
        inside: N x L x L, [0, 1]: what is image, not padding.
        shown: Whether the mask counts, N, 0 or 1: not where a prompt points at no defect, whose mask is nobody's.
        judged: Whether the predicted IoU counts, N, 0 or 1: not where there is no prompt and no defect.
        focal_weight: What the focal loss weighs beside the dice loss.

    Returns:
        N.
    """
    p = torch.sigmoid(logits)
    focal = (target - p).abs() ** FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (focal * inside).sum((1, 2)) / inside.sum((1, 2))
    p = p * inside
    area = p.sum((1, 2)) + target.sum((1, 2))
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (area + 1)
    iou, _ = agreement(logits, target, inside)
    return (focal_weight * focal + dice) * shown + (quality - iou * shown) ** 2 * judged


def agreement(logits: torch.Tensor, target: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and Dice of masks, where cells count by the share that is covered: what is thin keeps its area.

    Args:
        logits: N x L x L; above 0 is defect.
        target: Share of each cell that is defective, N x L x L, [0, 1].
        inside: Share of each cell that is image, N x L x L, [0, 1].

    Returns:
        IoU and Dice, N each; 0 where neither has a defect.
    """
    found = (logits > 0) * inside
    overlap, areas = torch.minimum(found, target).sum((1, 2)), (found + target).sum((1, 2)).clamp(min=_LEAST)
    return overlap / (areas - overlap), 2 * overlap / areas


def calls(step: Step, piece: Sequence[int], chunk: int) -> Iterator[tuple[list[Item], list[int]]]:
    """Items of some images that are alike, at most `chunk` at once, and the place of each one's image in the piece."""
    pairs = [(item, place) for place, index in enumerate(piece) for item in step.items[index]]
    for alike in sorted({item.alike for item, _ in pairs}):
        same = [pair for pair in pairs if pair[0].alike == alike]
        for start in range(0, len(same), chunk):
            some = same[start : start + chunk]
            yield [item for item, _ in some], [place for _, place in some]


def tensors(items: Sequence[Item], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Targets and insides, N x L x L, and whether mask and predicted IoU count, N each."""
    target, inside = (
        torch.from_numpy(np.stack([getattr(item, name) for item in items]).astype(np.float32)).to(device)
        for name in ("target", "inside")
    )
    there = [bool(item.target.any()) for item in items]
    prompted = [item.kind != "none" for item in items]
    shown, judged = (
        torch.tensor(flags, dtype=torch.float32, device=device)
        for flags in (
            [not asked or defect for asked, defect in zip(prompted, there, strict=True)],
            [asked or defect for asked, defect in zip(prompted, there, strict=True)],
        )
    )
    return target, inside, shown, judged
