"""Features of images by a pretrained backbone, each computed once and kept on disk.

    for feature in features(backbone, dataset, image_ids, 256, context, strides=(8, 16)):
        feature.pooled[32], feature.maps[8]         # C, float32; C x h x w, float16

A feature belongs to (backbone, its weights, the bytes of the image, the size), so folds and approaches share one pass
over the images. What an earlier pass took for an image counts as if it had been spent now (`Context.spared`), so that
seconds compare whoever came first.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from baselines._backbones import Backbone
from baselines._torch import choose_device, chunks, read_square, to_tensor
from maskbridge.approach import Context
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, MaskbridgeError
from maskbridge.files import NO_ARRAY, open_regular, sha256_file, write_bytes
from maskbridge.progress import say
from maskbridge.weights import cache_folder

if TYPE_CHECKING:
    import torch

#: Goes into the cache's folder name; to be raised when the way from image to feature changes.
CACHE_VERSION = 3
BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of one image.

    Attributes:
        image_id: The image.
        pooled: Mean of each stride's map, C, float32.
        maps: Maps of the strides that were asked for, C x h x w, float16.
        seconds: What the backbone took for them.
    """

    image_id: int
    pooled: Mapping[int, npt.NDArray[np.float32]]
    maps: Mapping[int, npt.NDArray[np.float16]]
    seconds: float


def features(
    backbone: Backbone,
    dataset: Dataset,
    image_ids: Sequence[int],
    size: int,
    context: Context,
    *,
    strides: Sequence[int] = (),
    batch: int = BATCH_SIZE,
) -> Iterator[Features]:
    """Features of images, in order.

    Args:
        backbone: The network.
        dataset: Where the images are.
        image_ids: The images.
        size: Side of the square each image is resized to, in pixels.
        context: Device, progress, and where spared seconds are counted.
        strides: Strides whose maps are wanted.
        batch: Images that go through the network together.

    Raises:
        DatasetError: When an image cannot be read.
        MaskbridgeError: When a feature is NaN or infinite; the image is named.
    """
    device = choose_device(context.device)
    cache = _Cache(backbone, size, strides)
    pieces = list(chunks(image_ids, batch))
    shown = context.track(pieces, f"features of {backbone.name}", total=len(pieces)) if batch > 1 else pieces
    for piece in shown:
        found = {image_id: cache.read(dataset, image_id) for image_id in piece}
        missing = [image_id for image_id, entry in found.items() if entry is None]
        for entry in _compute(backbone, dataset, missing, size, device, strides) if missing else ():
            cache.write(dataset, entry)
            found[entry.image_id] = entry
        for image_id in piece:
            feature = found[image_id]
            assert feature is not None, "it was computed"
            if image_id not in missing:
                context.spare(feature.seconds)
            yield feature


def pooled(feature: Features, stages: int) -> npt.NDArray[np.float32]:
    """Means of the last `stages` maps of an image side by side, D, float32."""
    return np.concatenate([feature.pooled[stride] for stride in sorted(feature.pooled)[-stages:]])


def _compute(
    backbone: Backbone,
    dataset: Dataset,
    image_ids: Sequence[int],
    size: int,
    device: torch.device,
    strides: Sequence[int],
) -> Iterator[Features]:
    start = time.perf_counter()
    backbone.network.to(device)
    images = np.stack([read_square(dataset, image_id, size) for image_id in image_ids])
    maps = backbone.maps(to_tensor(images, device))
    pooled = {stride: each.mean(dim=(2, 3)).cpu().numpy() for stride, each in maps.items()}
    wanted = {stride: maps[stride].half().cpu().numpy() for stride in strides}
    seconds = (time.perf_counter() - start) / len(image_ids)
    for row, image_id in enumerate(image_ids):
        one = {stride: each[row] for stride, each in pooled.items()}
        several = {stride: each[row] for stride, each in wanted.items()}
        if not all(np.isfinite(each).all() for each in (*one.values(), *several.values())):
            raise MaskbridgeError(
                "its features are not finite",
                where=dataset.image_path(image_id),
                found=f"NaN or infinity from {backbone.name} ({backbone.weights_from})",
                remedy="use other --backbone-weights",
            )
        yield Features(image_id=image_id, pooled=one, maps=several, seconds=seconds)


class _Cache:
    """Features on disk, an archive for each image; its checksums tell a damaged entry from a whole one."""

    def __init__(self, backbone: Backbone, size: int, strides: Sequence[int]) -> None:
        name = f"{backbone.name}-{backbone.sha256[:16]}-{size}-v{CACHE_VERSION}"
        self.folder = cache_folder() / "features" / name
        self.suffix = "".join(f"-{stride}" for stride in strides)
        self.usable = True
        self._pooled, self._maps = set(backbone.taps), set(strides)
        self._shapes: list[tuple[int, ...]] = []

    def read(self, dataset: Dataset, image_id: int) -> Features | None:
        try:
            with open_regular(self._path(dataset, image_id)) as file, np.load(file, allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
                found = Features(
                    image_id=image_id,
                    pooled=_under("pooled", content),
                    maps=_under("map", content),
                    seconds=float(content["seconds"]),
                )
        except NO_ARRAY:
            return None
        return found if self._fits(found) else None

    def _fits(self, feature: Features) -> bool:
        """Whether an entry is what `_compute` makes, and of the shapes of those before."""
        pooled, maps = feature.pooled, feature.maps
        arrays: list[npt.NDArray[Any]] = [*pooled.values(), *maps.values()]
        forms = [(each.dtype, each.ndim) for each in arrays]
        expected = [(np.dtype(np.float32), 1)] * len(self._pooled) + [(np.dtype(np.float16), 3)] * len(self._maps)
        if (set(pooled), set(maps), forms) != (self._pooled, self._maps, expected):
            return False
        if not all(each.size and np.isfinite(each).all() for each in arrays) or not 0 <= feature.seconds < float("inf"):
            return False
        shapes = [each.shape for each in arrays]
        self._shapes = self._shapes or shapes
        return shapes == self._shapes and all(len(each) == len(pooled[stride]) for stride, each in maps.items())

    def write(self, dataset: Dataset, feature: Features) -> None:
        if not self.usable:
            return
        arrays: dict[str, Any] = {f"pooled-{stride}": each for stride, each in feature.pooled.items()}
        arrays |= {f"map-{stride}": each for stride, each in feature.maps.items()}
        buffer = io.BytesIO()
        np.savez(buffer, seconds=np.float64(feature.seconds), **arrays)
        try:
            write_bytes(self._path(dataset, feature.image_id), buffer.getvalue())
        except OSError as error:
            self.usable = False
            say(f"{self.folder}: features are not kept ({error.strerror}); they will be computed again")

    def _path(self, dataset: Dataset, image_id: int) -> Path:
        image = dataset.image_path(image_id)
        try:
            return self.folder / f"{sha256_file(image)}{self.suffix}.npz"
        except OSError as error:
            raise DatasetError("cannot be read", where=image, found=error.strerror) from error


def _under(kind: str, content: Mapping[str, npt.NDArray[Any]]) -> dict[int, npt.NDArray[Any]]:
    return {int(name.split("-")[1]): each for name, each in content.items() if name.startswith(f"{kind}-")}
