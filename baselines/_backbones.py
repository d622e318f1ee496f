"""Pretrained networks by their torchvision or timm name, without their head, and their feature maps by stride.

    backbone = load_backbone("mobilenet_v2", "auto", seed=0)
    backbone.maps(images)[16]                # images N x 3 x S x S, [0, 1] -> N x C x S/16 x S/16, float32

Of each stride the last map is taken, as features of a stage are in PatchCore and PaDiM.
Networks: https://docs.pytorch.org/vision/stable/models.html, https://huggingface.co/docs/timm.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from baselines._torch import load_network
from maskbridge.errors import OptionError, WeightsError
from maskbridge.progress import say
from maskbridge.weights import AUTO, NONE, find_backbone, find_local

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
#: Normalisation of images, R, G, B, unless timm says otherwise.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Side of the image that strides are found with, pixels.
_TRIAL_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without its head.

    Attributes:
        name: Its torchvision or timm name.
        network: N x 3 x S x S, float32, normalised -> N x C x h x w, float32.
        sha256: Hash of its parameters and buffers.
        weights_from: Name of the file they came from, or `none` for random initialisation.
        taps: Module whose output is the last map of each stride, ascending.
        mean: Mean of a normalised image before it was, R, G, B.
        std: Its standard deviation.
    """

    name: str
    network: torch.nn.Module
    sha256: str
    weights_from: str
    taps: Mapping[int, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def maps(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        """Feature maps by stride, ascending; without gradients.

        Args:
            images: N x 3 x S x S, float32, RGB, [0, 1].

        Returns:
            N x C x h x w each.
        """
        import torch

        found: dict[int, torch.Tensor] = {}
        mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in (self.mean, self.std))
        hooks = [
            self.network.get_submodule(module).register_forward_hook(
                lambda _module, _inputs, output, stride=stride: found.__setitem__(stride, output)
            )
            for stride, module in self.taps.items()
        ]
        try:
            with torch.inference_mode():
                self.network((images - mean) / std)
        finally:
            for hook in hooks:
                hook.remove()
        return {stride: found[stride] for stride in self.taps}


def supported_backbones() -> list[str]:
    """Names that `--backbone` takes: torchvision's, then timm's others."""
    own = _torchvision_names()
    return [*own, *sorted(set(_timm_names()) - set(own))]


def choose_backbone(name: str, weights: str) -> str:
    """Settle `--backbone auto`.

    Args:
        name: A torchvision or timm name, or `auto`: the one that a file given by `weights` is named after, else
            `resnet18`, unless only the weights of another torchvision backbone are at hand.
        weights: `auto`, `none` or a path.

    Raises:
        OptionError: When the name is unknown; the nearest ones are named.
    """
    known = _torchvision_names()
    if name in known:
        return name
    if name != AUTO:
        others = _timm_names()
        if name in others:
            return name
        near = difflib.get_close_matches(name, sorted({*known, *others}), n=3) or ["resnet18", "mobilenet_v2"]
        expected = f"a torchvision or timm name such as {', '.join(near)}"
        raise OptionError("unknown backbone", found=name, expected=expected)
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
        name: A supported name.
        weights: `auto`, `none` (random initialisation) or a path.
        seed: Seed of the random initialisation.

    Raises:
        OptionError: When the network has no feature maps.
        WeightsError: When the weights cannot be had, cannot be read or do not fit.
    """
    import torch

    torch.manual_seed(seed)
    network, head, fetch = _build(name)
    path = find_backbone(name, weights, download=fetch)
    if path is not None:
        state = _read_state(path)
        if not set(network.state_dict()) & set(state):  # the state dict of `.features` alone
            state = {f"features.{key}": tensor for key, tensor in state.items()}
        load_network(network, {key: t for key, t in state.items() if key.split(".")[0] not in head}, path)
    return _frozen(name, network, path.name if path else NONE)


def restore_backbone(name: str, weights_from: str, tensors: Mapping[str, torch.Tensor], where: Path) -> Backbone:
    """Rebuild a backbone from the tensors of a checkpoint.

    Raises:
        WeightsError: When they do not fit.
    """
    network, _, _ = _build(name)
    load_network(network, tensors, where)
    return _frozen(name, network, weights_from)


def _torchvision_names() -> list[str]:
    from torchvision import models

    return [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def _build(name: str) -> tuple[torch.nn.Module, tuple[str, ...], Any]:
    """A network of random weights without its head, the names of the head's parts, and how its weights are fetched."""
    choose_backbone(name, NONE)  # a name from a checkpoint may be anything, to timm also one to fetch
    if name in _torchvision_names():
        import torch
        from torchvision import models

        whole = models.get_model(name, weights=None)
        parts = OrderedDict((part, module) for part, module in whole.named_children() if part not in HEAD)
        return torch.nn.Sequential(parts), HEAD, lambda folder: _fetch_torchvision(name, folder)
    import timm

    network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    classifiers = network.pretrained_cfg.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    address = network.pretrained_cfg.get("url") or ""
    hashed = re.search(r"-[0-9a-f]{8,}\.pth$", address)
    fetch = (lambda folder: _fetch(address, folder)) if hashed else None
    return network, tuple(head.split(".")[0] for head in heads), fetch


def _frozen(name: str, network: torch.nn.Module, weights_from: str) -> Backbone:
    network.eval().requires_grad_(False)
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    card = getattr(network, "pretrained_cfg", {})
    return Backbone(
        name=name,
        network=network,
        sha256=digest.hexdigest(),
        weights_from=weights_from,
        taps=_taps(name, network),
        mean=tuple(card.get("mean", MEAN)),
        std=tuple(card.get("std", STD)),
    )


def _taps(name: str, network: torch.nn.Module) -> dict[int, str]:
    """The last block of each stride: a module is a block unless it shrinks its input more than once.

    Raises:
        OptionError: When the network has no feature maps.
    """
    import torch

    sides: dict[str, tuple[int, int]] = {}  # height of input and output, in the order of their ends

    def note(module_name: str, inputs: Any, output: Any) -> None:
        if all(isinstance(each, torch.Tensor) and each.ndim == 4 for each in (*inputs[:1], output)) and inputs:
            sides.pop(module_name, None)
            sides[module_name] = inputs[0].shape[2], output.shape[2]

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=each: note(name, inputs, output))
        for each, module in network.named_modules()
    ]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, _TRIAL_SIDE, _TRIAL_SIDE))
    except (RuntimeError, AssertionError) as error:
        raise OptionError("cannot be used as a backbone", found=name, expected="a network for any size") from error
    finally:
        for hook in hooks:
            hook.remove()
    blocks = set(_blocks(network, "", sides))
    taps = {_TRIAL_SIDE // out: each for each, (_, out) in sides.items() if each in blocks}
    if not taps:
        raise OptionError("has no feature maps", found=name, expected="a convolutional network such as resnet18")
    return dict(sorted(taps.items()))


def _blocks(module: torch.nn.Module, name: str, sides: Mapping[str, tuple[int, int]]) -> list[str]:
    before, after = sides.get(name, (1, 0))
    children = list(module.named_children())
    if name and (before <= 2 * after or not children):
        return [name]
    return [block for part, child in children for block in _blocks(child, f"{name}.{part}".lstrip("."), sides)]


def _fetch_torchvision(name: str, folder: Path) -> Path:
    """Torchvision's own download; the hash is part of the file's name."""
    from torchvision import models

    return _fetch(models.get_model_weights(name).DEFAULT.url, folder)


def _fetch(address: str, folder: Path) -> Path:
    from torch.hub import load_state_dict_from_url

    say(f"fetching {address} into {folder}")
    try:
        load_state_dict_from_url(address, model_dir=str(folder), check_hash=True, progress=False, weights_only=True)
    except RuntimeError as error:
        raise WeightsError("the download cannot be used", where=address, found=str(error)) from error
    return folder / PurePosixPath(address).name


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    import pickle
    import warnings

    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
            return tensors
        with warnings.catch_warnings(action="ignore"):  # of foreign pickles, which are refused or read all the same
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text proposes to run what is in the file
        raise WeightsError("cannot be read as weights", where=path, expected="a PyTorch file of tensors") from error
    except Exception as error:  # torch's reader stumbles over a foreign file in any way
        raise WeightsError("cannot be read as weights", where=path, found=str(error)[:200] or repr(error)) from error
    if not isinstance(state, Mapping) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        found = (
            f"a dict of {', '.join(map(str, list(state)[:3]))}" if isinstance(state, Mapping) else type(state).__name__
        )
        raise WeightsError("is not a state dict", where=path, found=found, expected="names and tensors alone")
    return dict(state)
