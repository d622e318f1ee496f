"""From images to the trunk's features, computed once and kept on disk; and the frames of a padded input.

Frames: *original* H x W; *turned*, the original in one of its eight views; *input*, resized to a longest side of S and
padded at the bottom and right to S x S; *low resolution*, the decoder's logits, L x L over the whole padded input.

    embeddings = Embeddings(model, device)
    embeddings.features(dataset, image_id)          # C x h x w, float16, memory-mapped

A cache entry is `embeddings/<hash of trunk, input size and precision>/<sha256 of the image file>-<view>.npy`, so that
all folds share it. Its own SHA-256 comes after the array, where NumPy does not look.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional as F
from torchvision.transforms.functional import resize, to_pil_image

from finetune._sam_model import Model, state_hash
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, MaskbridgeError
from maskbridge.files import NO_ARRAY, open_regular, sha256_file, write_bytes
from maskbridge.progress import say
from maskbridge.weights import CACHE_VARIABLE, cache_folder

#: Views of an image: quarter turns, and the same mirrored.
VIEWS = 8
#: Part of the cache key; raised when features come out differently for the same weights.
_FORMAT = "3"

_DIGEST = hashlib.sha256().digest_size

Precision = Literal["fp16", "fp32"]


class Embeddings:
    """The trunk's features of a dataset's images.

    Args:
        model: The model whose trunk to run.
        device: Where it lies.
        precision: What the cache keeps.
        autocast: Type that the trunk is computed in on the device; none: float32.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        *,
        precision: Precision = "fp16",
        autocast: torch.dtype | None = None,
    ) -> None:
        """Nothing is computed yet."""
        self._model, self._device, self._autocast = model, device, autocast
        self._dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self._key = f"{_FORMAT} {model.arch} {model.image_size} {precision} {autocast}"
        self._shape: tuple[int, ...] | None = None
        self._sound: set[Path] = set()
        self._hashes: dict[Path, str] = {}

    @cached_property
    def folder(self) -> Path:
        """Where entries lie, by the hash of the trunk as it is when this is first asked for."""
        return cache_folder() / "embeddings" / state_hash(self._model.trunk_state(), self._key)[:32]

    def features(self, dataset: Dataset, image_id: int, view: int = 0) -> npt.NDArray[np.floating[Any]]:
        """Features of one image, C x h x w, from the cache or into it. A damaged entry is computed again.

        Raises:
            DatasetError: When the image cannot be decoded.
            MaskbridgeError: When the cache cannot be written.
        """
        path = self.folder / f"{self._hash(dataset.image_path(image_id))}-{view}.npy"
        cached = self._read(path)
        if cached is not None:
            return cached
        features = self.compute(dataset, image_id, view)
        self._shape = features.shape
        try:
            write_bytes(path, _sealed(features))
        except OSError as error:
            remedy = f"free some space, set {CACHE_VARIABLE} to another folder, or train with --cache off"
            raise MaskbridgeError("cannot be cached", where=path, found=error.strerror, remedy=remedy) from error
        return features

    def batch(self, dataset: Dataset, images: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Features of several images, given by id and view, on the model's device: BxCxhxw, float32."""
        features = np.stack([self.features(dataset, image_id, view) for image_id, view in images])
        return torch.from_numpy(features).to(self._device).float()

    def compute(self, dataset: Dataset, image_id: int, view: int = 0) -> npt.NDArray[np.floating[Any]]:
        """Features of one image, C x h x w, without the cache."""
        image = turn(dataset.read_image(image_id), view)
        with torch.inference_mode(), _autocast(self._device, self._autocast):
            x = to_input(self._model, image).to(self._device)[None]
            features = self._model.trunk(x)[0].float().cpu().numpy()
        return features.astype(self._dtype)

    def _hash(self, image: Path) -> str:
        """SHA-256 of an image as it is now."""
        if image not in self._hashes:
            try:
                self._hashes[image] = sha256_file(image)
            except OSError as error:
                raise DatasetError("cannot be read", where=image, found=error.strerror) from error
        return self._hashes[image]

    def _read(self, path: Path) -> npt.NDArray[np.floating[Any]] | None:
        try:
            with open_regular(path) as file:
                sound = path in self._sound or _is_sealed(file.read())
            array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError:
            return None
        except NO_ARRAY as error:
            say(f"{path}: damaged cache entry ({error}), computed again")
            return None
        fits = array.dtype == self._dtype and array.ndim == 3 and self._shape in (None, array.shape)
        if not fits or not sound:
            say(f"{path}: damaged cache entry ({'another hash' if fits else array.shape}), computed again")
            return None
        self._shape = array.shape
        self._sound.add(path)
        return array


def turn(image: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """One of the eight views of an image: `view % 4` quarter turns counter-clockwise, mirrored from 4 on.

    Args:
        image: H x W or H x W x 3, original frame.
        view: 0 (as it is) to 7.

    Returns:
        The turned frame; odd views swap height and width.
    """
    turned = np.rot90(image, view % 4)
    return np.ascontiguousarray(turned[:, ::-1] if view >= 4 else turned)


def turn_xy(x: Any, y: Any, size_hw: tuple[float, float], view: int) -> tuple[Any, Any]:
    """Where places of an image lie in one of its views.

    Args:
        x: Distances from the left, arrays or tensors of any shape, original frame.
        y: Distances from the top.
        size_hw: Height and width of the image in the same unit.
        view: As for `turn`.

    Returns:
        The same in the turned frame.
    """
    height, width = size_hw
    for _ in range(view % 4):
        x, y, height, width = y, width - x, width, height
    return (width - x if view >= 4 else x), y


def turn_back(logits: torch.Tensor, size_hw: tuple[int, int], view: int, image_size: int) -> torch.Tensor:
    """Answers to a view as answers to the image.

    Args:
        logits: N x L x L, low-resolution frame of the view.
        size_hw: Height and width of the image, original frame.
        view: As for `turn`.
        image_size: Side of the input, S.

    Returns:
        N x L x L, low-resolution frame of the image; between cells, bilinear.
    """
    if view == 0:
        return logits
    low = logits.shape[-1]
    height, width = (side * low / image_size for side in input_size(size_hw, image_size))
    centres = torch.arange(low, device=logits.device) + 0.5
    x, y = turn_xy(centres.expand(low, -1), centres[:, None].expand(-1, low), (height, width), view)
    grid = torch.stack([x, y], dim=-1) * (2 / low) - 1
    grid = grid.expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def input_size(size_hw: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Height and width of an image in the input frame, without padding; at least one pixel each."""
    height, width = ResizeLongestSide.get_preprocess_shape(*size_hw, image_size)
    return max(height, 1), max(width, 1)


def to_input(model: Model, image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Resize, normalise and pad an image as SAM does.

    Args:
        model: Gives the input size and the normalisation.
        image: H x W x 3, uint8, RGB, original frame.

    Returns:
        3 x S x S, float32, on the CPU, input frame.
    """
    size = input_size((image.shape[0], image.shape[1]), model.image_size)
    resized = np.array(resize(to_pil_image(image), list(size)))
    x = torch.from_numpy(resized).permute(2, 0, 1).to(model.sam.device)
    return cast(torch.Tensor, model.sam.preprocess(x).cpu())


def low_resolution_target(
    mask: npt.NDArray[np.uint8], image_size: int, low_size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the low-resolution logits shall say of a mask.

    Args:
        mask: H x W, 0 or 1, original or turned frame.
        image_size: Side of the input, S.
        low_size: Side of the logits, L.

    Returns:
        Share of each cell that is defective, and share that is image, not padding; both L x L, [0, 1].
    """
    height, width = input_size((mask.shape[0], mask.shape[1]), image_size)
    defect = np.zeros((image_size, image_size), dtype=np.float32)
    inside = np.zeros((image_size, image_size), dtype=np.float32)
    defect[:height, :width] = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    inside[:height, :width] = 1
    cell = image_size // low_size
    shape = (low_size, cell, low_size, cell)
    return defect.reshape(shape).mean(axis=(1, 3)), inside.reshape(shape).mean(axis=(1, 3))


def crop_padding(values: torch.Tensor, size_hw: tuple[int, int], image_size: int) -> torch.Tensor:
    """Cut the padding off a low-resolution map, at fractions of a cell.

    Args:
        values: L x L over the padded input.
        size_hw: Height and width of the image, original frame.
        image_size: Side of the input, S.

    Returns:
        h x w over the image alone, at the resolution of `values`.
    """
    height, width = input_size(size_hw, image_size)
    low = values.shape[0]
    out_hw = [max(round(side * low / image_size), 1) for side in (height, width)]
    y, x = height / image_size, width / image_size
    theta = torch.tensor([[[x, 0, x - 1], [0, y, y - 1]]], dtype=values.dtype, device=values.device)
    grid = F.affine_grid(theta, [1, 1, *out_hw], align_corners=False)
    return F.grid_sample(values[None, None], grid, padding_mode="border", align_corners=False)[0, 0]


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _sealed(array: npt.NDArray[Any]) -> bytes:
    """An array as `.npy`, and the SHA-256 of that."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


def _is_sealed(content: bytes) -> bool:
    return hashlib.sha256(memoryview(content)[:-_DIGEST]).digest() == content[-_DIGEST:]
