"""What goes into one step of training: images, as cached features or as pixels, and the items asked of them.

    step = Examples(dataset, model, embeddings, config, train, seed=0).step([4, 7], epoch=0)
    step.inputs([0, 1])         # features or normalised images of both
    step.items[0]               # what is asked of image 4

Augmentation respects the cache, by a fixed number of views that are cached each, or does without it: `augment` turns,
mirrors, crops and lights every image anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from finetune._sam_embeddings import VIEWS, Embeddings, to_input, turn
from finetune._sam_model import Model
from finetune._sam_prompts import Item, Truth, Truths, boxed, draw, masks_of, pointed, whole
from maskbridge.dataset import Dataset

if TYPE_CHECKING:
    from finetune.sam import Config

#: Smallest part of a side that a crop keeps, and largest change of contrast and of brightness.
_CROP, _CONTRAST, _BRIGHTNESS = 0.75, 0.2, 25.0

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Step:
    """Images of a step and what is asked of each.

    Attributes:
        images: Image ids, B.
        items: Items of each image, B.
        inputs: Makes a tensor of some images, by their places: trunk features, b x C x h x w, where they are cached,
            else normalised images, b x 3 x S x S.
    """

    images: tuple[int, ...]
    items: tuple[list[Item], ...]
    inputs: Callable[[Sequence[int]], torch.Tensor] = field(repr=False)

    def count(self, *, prompted: bool) -> int:
        """Number of items without a prompt, or of prompts that point at a defect."""
        items = [item for items in self.items for item in items if (item.kind != "none") == prompted]
        return sum(not prompted or bool(item.target.any()) for item in items)


class Examples:
    """Steps of a dataset's images.

    Args:
        dataset: The dataset.
        model: The model.
        embeddings: The cache of trunk features; None: images go in as pixels.
        config: How images are changed and prompts are drawn.
        seed: Seed of everything random.
        train: Ids of the images to train on, whose defects tell how large a box may be.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: Model,
        embeddings: Embeddings | None,
        config: Config,
        train: Sequence[int],
        *,
        seed: int,
    ) -> None:
        """Read the boxes; nothing else is done yet."""
        self._dataset, self._model, self._embeddings = dataset, model, embeddings
        self._config, self._seed = config, seed
        self._truths = Truths(dataset, model)
        sizes = [
            np.array(annotation["bbox"][2:], np.float32)
            * (model.image_size / max(dataset.image_by_id[image_id].size_hw))
            for image_id in train
            for annotation in dataset.annotations_by_image[image_id]
        ]
        self._sizes = np.stack(sizes)

    def step(self, image_ids: Sequence[int], epoch: int) -> Step:
        """A training step; what is random in an image depends on the seed, the epoch and the image alone."""
        rngs = [np.random.default_rng([self._seed, epoch, image_id]) for image_id in image_ids]
        if self._config.augment:
            changed = [self._augmented(image_id, rng) for image_id, rng in zip(image_ids, rngs, strict=True)]
            items = [self._draw(truth, rng) for (_, truth), rng in zip(changed, rngs, strict=True)]
            return Step(tuple(image_ids), tuple(items), lambda some: self._stack([changed[i][0] for i in some]))
        views = [int(rng.integers(self._config.views)) for rng in rngs]
        pairs = list(zip(image_ids, views, strict=True))
        items = [self._draw(self._truths.of(*pair), rng) for pair, rng in zip(pairs, rngs, strict=True)]
        return Step(tuple(image_ids), tuple(items), lambda some: self._inputs([pairs[i] for i in some]))

    def validation(self, image_ids: Sequence[int]) -> Step:
        """Images as they are, asked as trained: without a prompt, by the boxes of all defects or a point in each."""
        prompted = [kind for kind in self._config.trained_prompts if kind != "none"]
        items = []
        for image_id in image_ids:
            truth = self._truths.of(image_id)
            each = (pointed if prompted == ["point"] else boxed)(truth) if prompted else []
            items.append([whole(truth)] * ("none" in self._config.trained_prompts) + each)
        pairs = [(image_id, 0) for image_id in image_ids]
        return Step(tuple(image_ids), tuple(items), lambda some: self._inputs([pairs[i] for i in some]))

    def embed(self, step: Step, places: Sequence[int], device: torch.device) -> torch.Tensor:
        """Image embeddings of some images of a step, b x 256 x h x w; a frozen trunk sees one image at a time."""
        x = step.inputs(places).to(device)
        if self._embeddings is not None:
            return self._model.neck(x)
        if self._model.trunk_is_frozen:
            return self._model.neck(torch.cat([self._model.trunk(one[None]) for one in x]))
        return self._model.encode(x)

    def _draw(self, truth: Truth, rng: np.random.Generator) -> list[Item]:
        how = self._config
        return draw(
            truth, kinds=how.trained_prompts, instances=how.instances, jitter=how.jitter, sizes=self._sizes, rng=rng
        )

    def _inputs(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        if self._embeddings is not None:
            return self._embeddings.batch(self._dataset, pairs)
        return self._stack([turn(self._dataset.read_image(i), view) for i, view in pairs])

    def _stack(self, images: Sequence[Pixels]) -> torch.Tensor:
        return torch.stack([to_input(self._model, image) for image in images])

    def _augmented(self, image_id: int, rng: np.random.Generator) -> tuple[Pixels, Truth]:
        """An image changed at random, H x W x 3, and its truth."""
        image = self._dataset.read_image(image_id)
        masks = masks_of(self._dataset, image_id)
        view = int(rng.integers(VIEWS))
        image, masks = turn(image, view), [turn(mask, view) for mask in masks]
        size = np.array(image.shape[:2])
        kept = np.maximum(np.round(size * rng.uniform(_CROP, 1, 2)), 1).astype(int)
        top, left = (int(rng.integers(room + 1)) for room in size - kept)
        window = (slice(top, top + int(kept[0])), slice(left, left + int(kept[1])))
        masks = [mask[window] for mask in masks if mask[window].any()]
        light = image[window].astype(np.float32)
        light = (light - light.mean()) * rng.uniform(1 - _CONTRAST, 1 + _CONTRAST) + light.mean()
        light += rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
        pixels = np.clip(np.round(light), 0, 255).astype(np.uint8)
        return pixels, self._truths.make(masks, (pixels.shape[0], pixels.shape[1]))
