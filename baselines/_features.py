"""Pooled features of a pretrained torchvision backbone, each computed once and kept on disk.

    backbone = load_backbone("mobilenet_v2", "auto", seed=0)
    features = pooled_features(backbone, dataset, image_ids, 256, context)      # N x 1280, float32

A feature belongs to (backbone, its weights, the bytes of the image, the size), so folds and approaches share
one pass over the images. Backbones: https://docs.pytorch.org/vision/stable/models.html.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from baselines._torch import choose_device, chunks, load_network, read_square, to_tensor
from maskbridge.approach import Context
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError, OptionError, WeightsError
from maskbridge.files import write_bytes
from maskbridge.progress import say
from maskbridge.weights import AUTO, NONE, cache_folder, find_backbone, find_local

if TYPE_CHECKING:
    import torch

DEFAULT_BACKBONE = "resnet18"
#: Families of torchvision whose networks are a chain of blocks, then pooling, then a classifier.
FAMILIES = (
    "convnext", "efficientnet", "mnasnet", "mobilenet", "regnet",
    "resnet", "resnext", "shufflenet", "vgg", "wide_resnet",
)  # fmt: skip
#: Parts of those networks that come after the last block.
HEAD = ("avgpool", "fc", "classifier")
#: Goes into the cache's folder name; to be raised when the way from image to feature changes.
CACHE_VERSION = 1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 16

Features = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without its head.

    Attributes:
        name: Its torchvision name.
        network: N x 3 x H x W, float32, ImageNet-normalised -> N x D x h x w, float32.
        sha256: Hash of its parameters and buffers.
        weights_from: Name of the file they came from, or `none` for random initialisation.
    """

    name: str
    network: torch.nn.Module
    sha256: str
    weights_from: str


def supported_backbones() -> list[str]:
    """Names that `--backbone` takes."""
    from torchvision import models

    return [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]


def choose_backbone(name: str, weights: str) -> str:
    """Settle `--backbone auto`.

    Args:
        name: A torchvision name, or `auto`: the one that a file given by `weights` is named after, else
            `resnet18`, unless only the weights of another supported backbone are at hand.
        weights: `auto`, `none` or a path.

    Raises:
        OptionError: When the name is unknown; the nearest ones are named.
    """
    known = supported_backbones()
    if name in known:
        return name
    if name != AUTO:
        near = difflib.get_close_matches(name, known, n=3) or ["resnet18", "mobilenet_v2"]
        raise OptionError("unknown backbone", found=name, expected=f"a torchvision name such as {', '.join(near)}")
    if weights == NONE:
        return DEFAULT_BACKBONE
    candidates = [DEFAULT_BACKBONE, *(other for other in known if other != DEFAULT_BACKBONE)]
    if weights != AUTO:
        file_name = Path(weights).name.removeprefix("tf_")
        named = [candidate for candidate in candidates if file_name.startswith(candidate)]
        return max(named, key=len, default=DEFAULT_BACKBONE)
    return next((c for c in candidates if find_local([c, f"tf_{c}"])), DEFAULT_BACKBONE)


def load_backbone(name: str, weights: str, *, seed: int) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: A supported torchvision name.
        weights: `auto`, `none` (random initialisation) or a path.
        seed: Seed of the random initialisation.

    Raises:
        WeightsError: When the weights cannot be had, cannot be read or do not fit.
    """
    import torch

    path = find_backbone(name, weights, download=lambda folder: _download(name, folder))
    torch.manual_seed(seed)
    network = _trunk(name)
    if path is not None:
        state = _read_state(path)
        names = set(network.state_dict())
        if not names & set(state):  # the state dict of `.features` alone
            state = {f"features.{key}": tensor for key, tensor in state.items()}
        load_network(network, {key: t for key, t in state.items() if key.split(".")[0] not in HEAD}, path)
    return _frozen(name, network, path.name if path else NONE)


def restore_backbone(name: str, weights_from: str, tensors: Mapping[str, torch.Tensor], where: Path) -> Backbone:
    """Rebuild a backbone from the tensors of a checkpoint.

    Raises:
        WeightsError: When they do not fit.
    """
    network = _trunk(name)
    load_network(network, tensors, where)
    return _frozen(name, network, weights_from)


def pooled_features(
    backbone: Backbone,
    dataset: Dataset,
    image_ids: Sequence[int],
    size: int,
    context: Context,
    *,
    cached: bool = True,
) -> Features:
    """Mean of the last feature map over the image.

    Args:
        backbone: The network.
        dataset: Where the images are.
        image_ids: Images, in the order of the result.
        size: Side of the square each image is resized to, in pixels.
        context: Device, and progress.
        cached: Take features from the cache, and keep them there.

    Returns:
        N x D, float32, all finite; 0 x 0 for no images.

    Raises:
        MaskbridgeError: When a feature is NaN or infinite; the image is named.
    """
    cache = _Cache(backbone, size) if cached else None
    found = {i: cache.read(dataset.image_by_id[i].sha256) if cache else None for i in image_ids}
    features = {i: feature for i, feature in found.items() if feature is not None}
    missing = [image_id for image_id in found if image_id not in features]
    for image_id, feature in _compute(backbone, dataset, missing, size, context):
        if cache is not None:
            cache.write(dataset.image_by_id[image_id].sha256, feature)
        features[image_id] = feature
    return np.stack([features[i] for i in image_ids]) if image_ids else np.empty((0, 0), dtype=np.float32)


def _compute(
    backbone: Backbone, dataset: Dataset, image_ids: Sequence[int], size: int, context: Context
) -> Iterator[tuple[int, Features]]:
    import torch

    device = choose_device(context.device)
    network = backbone.network.to(device)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    batches = list(chunks(image_ids, BATCH_SIZE))
    for batch in context.track(batches, f"features of {backbone.name}", total=len(batches)):
        images = np.stack([read_square(dataset, image_id, size) for image_id in batch])
        with torch.inference_mode():
            maps = network((to_tensor(images, device) - mean) / std)
        for image_id, feature in zip(batch, maps.mean(dim=(2, 3)).cpu().numpy(), strict=True):
            if not np.isfinite(feature).all():
                raise MaskbridgeError(
                    "its features are not finite",
                    where=dataset.image_path(image_id),
                    found=f"NaN or infinity from {backbone.name} ({backbone.weights_from})",
                    remedy="use other --backbone-weights",
                )
            yield image_id, feature


class _Cache:
    """Features on disk: one zip archive per image; its checksum tells a damaged entry from a whole one."""

    def __init__(self, backbone: Backbone, size: int) -> None:
        name = f"{backbone.name}-{backbone.sha256[:16]}-{size}-v{CACHE_VERSION}"
        self.folder = cache_folder() / "features" / name
        self.usable = True

    def read(self, image_sha256: str) -> Features | None:
        try:
            with self._path(image_sha256).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                feature: Features = archive["feature"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return feature

    def write(self, image_sha256: str, feature: Features) -> None:
        if not self.usable:
            return
        buffer = io.BytesIO()
        np.savez(buffer, feature=feature)
        try:
            write_bytes(self._path(image_sha256), buffer.getvalue())
        except OSError as error:
            self.usable = False
            say(f"{self.folder}: features are not kept ({error.strerror}); they will be computed again")

    def _path(self, image_sha256: str) -> Path:
        return self.folder / f"{image_sha256}.npz"


def _trunk(name: str) -> torch.nn.Sequential:
    """The blocks of a network before its pooling, under the names they have in it."""
    import torch
    from torchvision import models

    network = models.get_model(name, weights=None)
    parts = OrderedDict((part, module) for part, module in network.named_children() if part not in HEAD)
    return torch.nn.Sequential(parts)


def _frozen(name: str, network: torch.nn.Module, weights_from: str) -> Backbone:
    network.eval().requires_grad_(False)
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    return Backbone(name=name, network=network, sha256=digest.hexdigest(), weights_from=weights_from)


def _download(name: str, folder: Path) -> Path:
    """Torchvision's own download; the hash is part of the file's name."""
    from torchvision import models

    entry = models.get_model_weights(name).DEFAULT
    say(f"fetching {entry.url} into {folder}")
    try:
        entry.get_state_dict(model_dir=str(folder), check_hash=True, progress=False, weights_only=True)
    except RuntimeError as error:
        raise WeightsError("the download cannot be used", where=entry.url, found=str(error)) from error
    return folder / PurePosixPath(entry.url).name


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
            return tensors
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise WeightsError("cannot be read as weights", where=path, found=str(error)[:200] or repr(error)) from error
    except safetensors.SafetensorError as error:
        raise WeightsError("cannot be read as weights", where=path, found=str(error)) from error
    if not isinstance(state, Mapping) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise WeightsError("is not a state dict", where=path, found=type(state).__name__, expected="names and tensors")
    return dict(state)
