"""What the mask decoder is asked in training: prompts drawn from true defects, and from places without one.

    items = draw(Truths(dataset, model).of(image_id), kinds=("none", "box"), instances=4, …)
    sparse = encode(model.sam, items)               # N x T x 256

Kinds of prompts: `none`, no token at all, whose target is all defects together; `box`, jittered; `point`, one
to three inside; `mask`, a box and the mask that the decoder itself made of it. An image is also asked with a box or
point where it has no defect: then the predicted IoU shall be zero. Frames are those of `_sam_embeddings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam

from finetune._sam_embeddings import low_resolution_target, turn
from finetune._sam_model import Model
from maskbridge import geometry
from maskbridge.dataset import Dataset

#: Points drawn for one prompt at most.
MOST_POINTS = 3
#: Largest standard deviation of a box's sides, in parts of the input's side: SAM's 20 pixels of 1024.
MOST_JITTER = 20 / 1024
#: How surely a box is a mask, where it is given as one.
BOX_LOGIT = 10.0
#: Bytes of truth that are kept in memory at most; beyond, it is made again each time.
_MOST_KEPT = 2 * 1024**3
#: Tries to place a box where there is no defect.
_TRIES = 10
#: Label of SAM's points that lie inside.
_INSIDE = 1

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """An image's defects in the low-resolution frame.

    Attributes:
        masks: Share of each cell that each defect covers, D x L x L, float16, [0, 1].
        union: The same of all defects together, L x L.
        inside: Share of each cell that is image, not padding, L x L.
        boxes: Left, top, right, bottom of each defect in the input frame, D x 4.
        cell: Side of a cell in the input frame, pixels.
    """

    masks: npt.NDArray[np.float16]
    union: npt.NDArray[np.float16]
    inside: npt.NDArray[np.float16]
    boxes: Floats
    cell: int

    @property
    def side(self) -> int:
        """Side of the input frame, pixels."""
        return self.cell * len(self.inside)


@dataclass(frozen=True)
class Item:
    """One question to the mask decoder, and the right answer.

    Attributes:
        kind: One of `finetune.sam.PROMPT_KINDS`.
        points: Points or the two corners of a box, T x 2, x and y in the input frame; none for `none`.
        target: L x L, float16, [0, 1].
        inside: L x L, float16, [0, 1].
    """

    kind: str
    points: Floats
    target: npt.NDArray[np.float16]
    inside: npt.NDArray[np.float16]

    @property
    def alike(self) -> tuple[str, int]:
        """Items that are equal in this fit into one batch of the decoder."""
        return self.kind, len(self.points)


class Truths:
    """Low-resolution truth of images, made when first asked for and kept while there is room.

    Args:
        dataset: The dataset.
        model: Gives the frames.
    """

    def __init__(self, dataset: Dataset, model: Model) -> None:
        """Nothing is made yet."""
        self._dataset, self._size = dataset, model.image_size
        self._low = 4 * int(model.sam.prompt_encoder.image_embedding_size[0])
        self._kept: dict[tuple[int, int], Truth] = {}
        self._bytes = 0

    def of(self, image_id: int, view: int = 0) -> Truth:
        """The truth of an image in one of its views."""
        if (image_id, view) in self._kept:
            return self._kept[image_id, view]
        masks = [turn(mask, view) for mask in masks_of(self._dataset, image_id)]
        height, width = self._dataset.image_by_id[image_id].size_hw
        truth = self.make(masks, (width, height) if view % 2 else (height, width))
        self._bytes += truth.masks.nbytes + truth.union.nbytes + truth.inside.nbytes
        if self._bytes <= _MOST_KEPT:
            self._kept[image_id, view] = truth
        return truth

    def make(self, masks: Sequence[npt.NDArray[np.uint8]], size_hw: tuple[int, int]) -> Truth:
        """The truth of masks, H x W each, 0 or 1, turned frame; there may be none."""
        union, inside = self._lowered(np.maximum.reduce([np.zeros(size_hw, np.uint8), *masks]))
        lowered = [self._lowered(mask)[0] for mask in masks]
        boxes = np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4)
        return Truth(
            masks=np.stack(lowered) if lowered else np.zeros((0, self._low, self._low), np.float16),
            union=union,
            inside=inside,
            boxes=boxes * np.float32(self._size / max(size_hw)),
            cell=self._size // self._low,
        )

    def _lowered(self, mask: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float16]]:
        return [share.astype(np.float16) for share in low_resolution_target(mask, self._size, self._low)]


def masks_of(dataset: Dataset, image_id: int) -> list[npt.NDArray[np.uint8]]:
    """Mask of each defect of an image, H x W, 0 or 1, original frame."""
    return [geometry.decode(annotation["segmentation"]) for annotation in dataset.annotations_by_image[image_id]]


def draw(
    truth: Truth,
    *,
    kinds: Sequence[str],
    instances: int,
    jitter: float,
    sizes: Floats,
    rng: np.random.Generator,
) -> list[Item]:
    """The items of one image in one step.

    Args:
        truth: The image's truth.
        kinds: Kinds to draw from.
        instances: Defects that are prompted for at most, drawn anew.
        jitter: Standard deviation of a box's sides in parts of its width and height.
        sizes: Widths and heights of defects in the input frame, M x 2, for prompts where there is none.
        rng: Decides everything random.
    """
    items = [whole(truth)] if "none" in kinds else []
    prompted = [kind for kind in kinds if kind != "none"]
    if not prompted:
        return items
    for index in rng.permutation(len(truth.masks))[:instances]:
        kind = prompted[rng.integers(len(prompted))]
        if kind == "point":
            points = _points(truth.masks[index] > 0.5, rng.integers(1, MOST_POINTS + 1), truth.cell, rng)
            if points is None:  # a defect too small to cover half a cell
                points = _inside(truth.masks[index], truth.cell, rng)
        else:
            points = _jittered(truth.boxes[index], jitter, MOST_JITTER * truth.side, _extent(truth), rng)
        items.append(Item(kind, points, truth.masks[index], truth.inside))
    nowhere_kinds = [kind for kind in ("box", "point") if kind in prompted] or ["box"]
    nowhere = _nowhere(truth, nowhere_kinds[rng.integers(len(nowhere_kinds))], sizes, rng)
    return items if nowhere is None else [*items, nowhere]


def whole(truth: Truth) -> Item:
    """The question without a prompt: where all defects are."""
    return Item("none", np.zeros((0, 2), np.float32), truth.union, truth.inside)


def boxed(truth: Truth) -> list[Item]:
    """Every defect asked for by its own box."""
    pairs = zip(truth.boxes, truth.masks, strict=True)
    return [Item("box", box.reshape(2, 2), mask, truth.inside) for box, mask in pairs]


def pointed(truth: Truth) -> list[Item]:
    """Every defect asked for by one point in a cell that it covers most, always the same one."""
    points = [_inside(mask, truth.cell, np.random.default_rng(0)) for mask in truth.masks]
    return [Item("point", xy, mask, truth.inside) for xy, mask in zip(points, truth.masks, strict=True)]


def encode(sam: Sam, items: Sequence[Item]) -> torch.Tensor:
    """Prompt tokens of items that are alike, N x T x 256; points get SAM's padding token, boxes and `none` do not."""
    device = sam.device
    if items[0].kind == "none":
        return torch.zeros(len(items), 0, sam.prompt_encoder.embed_dim, device=device)
    points = torch.from_numpy(np.stack([item.points for item in items])).to(device)
    if items[0].kind == "point":
        labels = torch.full(points.shape[:2], float(_INSIDE), device=device)
        sparse: torch.Tensor = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)[0]
    else:
        sparse = sam.prompt_encoder(points=None, boxes=points.reshape(-1, 4), masks=None)[0]
    return sparse


def dense(model: Model, boxes: torch.Tensor | None) -> torch.Tensor:
    """What prompts add to the image: SAM's embedding of no mask, or of boxes as masks where the model wants these.

    Args:
        model: The model.
        boxes: Left, top, right, bottom in the input frame, N x 4; None where the prompts are no boxes.

    Returns:
        256 x 1 x 1, or N x 256 x h x w.
    """
    encoder = model.sam.prompt_encoder
    if boxes is None or not model.box_mask:
        none: torch.Tensor = encoder.no_mask_embed.weight.reshape(-1, 1, 1)
        return none
    height, width = encoder.mask_input_size
    masks = box_logits(boxes, height, width, model.image_size)
    masked: torch.Tensor = encoder(points=None, boxes=None, masks=masks)[1]
    return masked


def box_logits(boxes: torch.Tensor, height: int, width: int, image_size: int) -> torch.Tensor:
    """Boxes as masks for the prompt encoder, or for `SamPredictor.predict(mask_input=...)`.

    Args:
        boxes: Left, top, right, bottom in the input frame, N x 4.
        height: Rows of the low-resolution frame.
        width: Its columns.
        image_size: Side of the input frame, pixels.

    Returns:
        N x 1 x height x width: `BOX_LOGIT` inside, minus that outside, in between where a cell is covered in part.
    """
    shares = []
    for count, first in ((height, 1), (width, 0)):
        cell = image_size / count
        edges = torch.arange(count, device=boxes.device) * cell
        low, high = boxes[:, first, None], boxes[:, first + 2, None]
        shares.append((torch.minimum(high, edges + cell) - torch.maximum(low, edges)).clamp(min=0) / cell)
    return ((2 * shares[0][:, :, None] * shares[1][:, None, :] - 1) * BOX_LOGIT)[:, None]


def _box(mask: npt.NDArray[np.uint8]) -> list[int]:
    rows, columns = geometry.frame(mask)
    return [columns.start, rows.start, columns.stop, rows.stop]


def _extent(truth: Truth) -> Floats:
    """Width and height of the image in the input frame."""
    height, width = (float(truth.inside.astype(np.float32).max(axis).sum()) * truth.cell for axis in (1, 0))
    return np.array([width, height], np.float32)


def _jittered(box: Floats, jitter: float, most: float, extent: Floats, rng: np.random.Generator) -> Floats:
    """Corners of a box, 2 x 2, each side moved and kept inside the image."""
    corners = box.reshape(2, 2)
    size = corners[1] - corners[0]
    moved = corners + rng.normal(0.0, 1.0, (2, 2)) * np.minimum(jitter * size, most)
    moved = np.clip(np.sort(moved, axis=0), 0, extent)
    return np.where(moved[1] - moved[0] < 1, corners, moved).astype(np.float32)


def _points(where: npt.NDArray[np.bool_], count: Any, cell: int, rng: np.random.Generator) -> Floats | None:
    """Points inside cells drawn at random, count x 2; None where there is no cell."""
    rows, columns = np.nonzero(where)
    if not len(rows):
        return None
    chosen = rng.integers(len(rows), size=int(count))
    cells = np.stack([columns[chosen], rows[chosen]], axis=1)
    return ((cells + rng.random(cells.shape)) * cell).astype(np.float32)


def _inside(mask: npt.NDArray[np.float16], cell: int, rng: np.random.Generator) -> Floats:
    """A point in a cell that a defect covers most, 1 x 2."""
    points = _points(mask >= mask.max(), 1, cell, rng)
    assert points is not None, "every mask has a cell that is its largest"
    return points


def _nowhere(truth: Truth, kind: str, sizes: Floats, rng: np.random.Generator) -> Item | None:
    """A prompt where there is no defect; None where no place was found."""
    empty = np.zeros_like(truth.union)
    free = (truth.union == 0) & (truth.inside == 1)
    if kind == "point":
        points = _points(free, rng.integers(1, MOST_POINTS + 1), truth.cell, rng)
        return None if points is None else Item(kind, points, empty, truth.inside)
    extent = _extent(truth)
    for _ in range(_TRIES):
        size = np.minimum(sizes[rng.integers(len(sizes))], extent)
        corner = rng.random(2) * (extent - size)
        box = np.stack([corner, corner + size])
        left, top = (box[0] / truth.cell).astype(int)
        right, bottom = np.ceil(box[1] / truth.cell).astype(int)
        if not truth.union[top:bottom, left:right].any():
            return Item(kind, box.astype(np.float32), empty, truth.inside)
    return None
