"""What the baselines in PyTorch share: small square images, device, checkpoints, checked options.

images = load_images(dataset, image_ids, 64, context)       # N x 64 x 64 x 3, uint8
network(to_tensor(images[:32], device))
save_checkpoint(weights, network.state_dict(), {"approach": "deep-svdd"})
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from maskbridge.approach import Context, TrainData
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError, OptionError, WeightsError
from maskbridge.files import write_bytes

if TYPE_CHECKING:
    import torch

CHECKPOINT = "model.safetensors"


def require_at_least(config: object, **minima: float) -> None:
    """Refuse options below their minimum, and NaN.

    Raises:
        OptionError: Names the option as it is written on the command line.
    """
    for name, minimum in minima.items():
        value = getattr(config, name)
        if not value >= minimum:
            raise OptionError(f"{_flag(name)} cannot be used", found=value, expected=f"at least {minimum:g}")


def require_multiple(config: object, **divisors: int) -> None:
    """Refuse options that are no multiple of what they must be divided by.

    Raises:
        OptionError: Names the option as it is written on the command line.
    """
    for name, divisor in divisors.items():
        value = getattr(config, name)
        if value % divisor:
            raise OptionError(f"{_flag(name)} cannot be used", found=value, expected=f"a multiple of {divisor}")


def require_choices(config: object) -> None:
    """Refuse values of an option that are not among its choices.

    Args:
        config: A dataclass; choices are the `Literal` types of its fields.

    Raises:
        OptionError: Names the option as it is written on the command line.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise OptionError(f"{_flag(name)} is unknown", found=value, expected=", ".join(get_args(kind)))


def require_training_images(data: TrainData) -> None:
    """Refuse to train on nothing.

    Raises:
        MaskbridgeError: When the training part has no good image.
    """
    if not data.train:
        raise MaskbridgeError(
            f"no good image in the training part of fold {data.fold}",
            where=data.dataset.path,
            remedy="add some, or take another fold; near-duplicates are one group, which lies in one part",
        )


def read_square(dataset: Dataset, image_id: int, size: int) -> npt.NDArray[np.uint8]:
    """Read one image and resize it by pixel area, aspect ratio not kept: size x size x 3, uint8, RGB."""
    image = dataset.read_image(image_id)
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def load_images(dataset: Dataset, image_ids: Sequence[int], size: int, context: Context) -> npt.NDArray[np.uint8]:
    """Read images into memory: N x size x size x 3, uint8, RGB, in the order of `image_ids`."""
    images = np.empty((len(image_ids), size, size, 3), dtype=np.uint8)
    for index, image_id in enumerate(context.track(image_ids, "reading images", total=len(image_ids))):
        images[index] = read_square(dataset, image_id, size)
    return images


def to_tensor(images: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Turn N x H x W x 3, uint8, into N x 3 x H x W, float32, 0 to 1, channels last in memory."""
    import torch

    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255.0


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cut a sequence into pieces of at most `size`, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def choose_device(name: str) -> torch.device:
    """Find the device to work on.

    Args:
        name: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        OptionError: When there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError("no such device", found=name, expected="auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            "no such GPU",
            found=name,
            expected=f"{torch.cuda.device_count()} GPUs",
            remedy="take --device cpu",
        )
    return device


def require_finite_loss(loss: float, epoch: int) -> None:
    """Stop a training that has diverged.

    Raises:
        MaskbridgeError: When the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise MaskbridgeError(
            "training diverged", found=f"loss {loss} in epoch {epoch}", remedy="lower --learning-rate"
        )


def parameter_count(network: torch.nn.Module) -> int:
    """Number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


class Facts(TypedDict, total=False):
    """What is relied on in the header of a checkpoint; it holds more."""

    approach: str
    backbone: str | None
    weights_from: str


class Tensors(dict[str, Any]):
    """Tensors of a checkpoint by name; asking for one that it has not raises a WeightsError."""

    def __init__(self, where: Path, tensors: Mapping[str, Any]) -> None:
        """Keep where they are from."""
        super().__init__(tensors)
        self.where = where

    def __missing__(self, name: str) -> Any:
        """What is asked for and not there."""
        raise WeightsError("is a checkpoint without a tensor", where=self.where, expected=name, remedy="train again")


def save_checkpoint(weights: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write `model.safetensors` into a folder, whole or not at all; `facts` go into its header as JSON."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(weights / CHECKPOINT, save(whole, metadata={"maskbridge": json.dumps(facts, sort_keys=True)}))


def load_checkpoint(weights: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        WeightsError: When it is missing, damaged or of another origin.
    """
    from safetensors import SafetensorError, safe_open

    path = weights / CHECKPOINT
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["maskbridge"])
            msgspec.convert(facts, Facts)
            return Tensors(path, {name: file.get_tensor(name) for name in file.keys()}), facts  # noqa: SIM118
    except FileNotFoundError as error:
        raise WeightsError("no such checkpoint", where=path, remedy="train again") from error
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise WeightsError(
            "cannot be read as a checkpoint", where=path, found=repr(error), remedy="train again"
        ) from error


def load_network(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Load parameters and buffers, all of them and no others.

    Raises:
        WeightsError: When names or shapes differ from the network's.
    """
    try:
        network.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        there = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        unlike = [
            *(
                f"{key} of {there[key]}, not {wanted[key]}"
                for key in wanted
                if there.get(key, wanted[key]) != wanted[key]
            ),
            *(f"no {key}" for key in wanted if key not in there),
            *(f"{key}, which the network has not" for key in there if key not in wanted),
        ]
        fits = sum(there.get(key) == shape for key, shape in wanted.items())
        raise WeightsError(
            "the weights do not fit the network",
            where=where,
            found=f"{fits} of {len(wanted)} tensors that fit; {unlike[0] if unlike else error}",
        ) from error


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
