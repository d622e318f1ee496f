"""Pretrained networks by their torchvision or timm name, without their head, and their feature maps by stride.

    backbone = load_backbone("mobilenet_v2", "auto", seed=0)
    backbone.maps(images)[16]                # images N x 3 x S x S, [0, 1] -> N x C x S/16 x S/16, float32

Of each stride the last map is taken, as features of a stage are in PatchCore and PaDiM. A network of timm is read only
where these maps have the channels that timm states for it: what lays its maps out otherwise (channels last, a row of
tokens) is refused.
Networks: https://docs.pytorch.org/vision/stable/models.html, https://huggingface.co/docs/timm.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines._torch import load_network
from maskbridge.errors import OptionError, WeightsError
from maskbridge.start_weights import source_name
from maskbridge.weights import AUTO, NONE, Download, find_backbone, find_local, stated_download

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
#: What networks raise at an image of a size that they were not made for, or when they cannot do without their head.
_UNFIT = (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError)
#: Input and output of a part of a network: N x C x h x w each.
_Shapes = tuple["torch.Size", "torch.Size"]


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


def load_backbone(name: str, weights: str, *, seed: int, image_size: int = _TRIAL_SIDE) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: A supported name.
        weights: `auto`, `none` (random initialisation) or a path.
        seed: Seed of the random initialisation.
        image_size: Side of the images that it will be given, in pixels.

    Raises:
        OptionError: When the network has no feature maps, others than timm states, or does not take such images; before
            its weights are looked for.
        WeightsError: When the weights cannot be had, cannot be read or do not fit.
    """
    import torch

    torch.manual_seed(seed)
    network, head, download = _build(name)
    taps = _taps(name, network.eval(), image_size)
    path = find_backbone(name, weights, download=download, remedy=_alternative(network))
    if path is not None:
        state = _read_state(path)
        if not set(network.state_dict()) & set(state):  # the state dict of `.features` alone
            state = {f"features.{key}": tensor for key, tensor in state.items()}
        load_network(network, {key: t for key, t in state.items() if key.split(".")[0] not in head}, path)
    return _frozen(name, network, source_name(path) if path else NONE, taps)


def restore_backbone(name: str, weights_from: str, tensors: Mapping[str, torch.Tensor], where: Path) -> Backbone:
    """Rebuild a backbone from the tensors of a checkpoint.

    Raises:
        WeightsError: When they do not fit.
    """
    network, _, _ = _build(name)
    taps = _taps(name, network.eval(), _TRIAL_SIDE)
    load_network(network, tensors, where)
    return _frozen(name, network, weights_from, taps)


def _torchvision_names() -> list[str]:
    from torchvision import models

    return [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def _build(name: str) -> tuple[torch.nn.Module, tuple[str, ...], Download | None]:
    """A network of random weights without its head, the names of the head's parts, and how its weights are fetched."""
    choose_backbone(name, NONE)  # a name from a checkpoint may be anything, to timm also one to fetch
    if name in _torchvision_names():
        import torch
        from torchvision import models

        whole = models.get_model(name, weights=None)
        parts = OrderedDict((part, module) for part, module in whole.named_children() if part not in HEAD)
        return torch.nn.Sequential(parts), HEAD, stated_download(models.get_model_weights(name).DEFAULT.url)
    import timm

    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    except _UNFIT as error:
        raise _unfit(name, "it cannot do without its head and pooling") from error
    classifiers = network.pretrained_cfg.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    address = network.pretrained_cfg.get("url") or ""
    return network, tuple(head.split(".")[0] for head in heads), stated_download(address)


def _frozen(name: str, network: torch.nn.Module, weights_from: str, taps: Mapping[int, str]) -> Backbone:
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
        taps=taps,
        mean=tuple(card.get("mean", MEAN)),
        std=tuple(card.get("std", STD)),
    )


def _taps(name: str, network: torch.nn.Module, image_size: int) -> dict[int, str]:
    """The last block of each stride: a module is a block unless it shrinks its input more than once.

    Raises:
        OptionError: When the network has no feature maps, others than timm states, or does not take such images.
    """
    shapes = _trial(name, network, _TRIAL_SIDE)
    if "" not in shapes:
        raise _unfit(name, "its output is no feature map")
    blocks = set(_blocks(network, "", shapes))
    taps = {_TRIAL_SIDE // out[2]: each for each, (_, out) in shapes.items() if each in blocks}
    last = shapes[""][1]
    stated = _stated(network, _TRIAL_SIDE // last[2])
    if stated:
        taps = {stride: each for stride, each in taps.items() if stride in stated}
        there = [(stride, shapes[each][1][1]) for stride, each in taps.items()] + [(_TRIAL_SIDE // last[2], last[1])]
        for stride, channels in there:
            if channels not in stated[stride]:
                expected = " or ".join(map(str, sorted(stated[stride])))
                raise _unfit(name, f"{channels} channels at stride {stride}, where timm states {expected}")
    if not taps:
        raise _unfit(name, "it has no feature maps")
    if image_size != _TRIAL_SIDE:
        seen = _trial(name, network, image_size)
        if any(each not in seen or seen[each][1][1] != shapes[each][1][1] for each in ("", *taps.values())):
            raise _unfit(name, f"other feature maps at {image_size} pixels than at {_TRIAL_SIDE}")
    return dict(sorted(taps.items()))


def _trial(name: str, network: torch.nn.Module, side: int) -> dict[str, _Shapes]:
    """Shapes of all parts with one 4-D input and output, in the order of their ends; the network's own under "".

    Raises:
        OptionError: When the network does not take an image of this size.
    """
    import torch

    shapes: dict[str, _Shapes] = {}

    def note(module_name: str, inputs: Any, output: Any) -> None:
        if all(isinstance(each, torch.Tensor) and each.ndim == 4 for each in (*inputs[:1], output)) and inputs:
            shapes.pop(module_name, None)
            shapes[module_name] = inputs[0].shape, output.shape

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=each: note(name, inputs, output))
        for each, module in network.named_modules()
    ]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, side, side))
    except _UNFIT as error:
        raise _unfit(name, f"it takes no image of {side} x {side} pixels") from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _stated(network: torch.nn.Module, last: int) -> dict[int, set[int]]:
    """Channels of the maps of each stride as timm states them; nothing for a network of torchvision.

    Args:
        network: The network.
        last: Stride of its output, whose channels are stated apart.
    """
    features = getattr(network, "num_features", None)
    if features is None:
        return {}
    info = getattr(network, "feature_info", None) or ()
    stated: dict[int, set[int]] = {last: {features, getattr(network, "head_hidden_size", None) or features}}
    for entry in getattr(info, "info", info):
        stated.setdefault(entry["reduction"], set()).add(entry["num_chs"])
    return stated


def _unfit(name: str, found: str) -> OptionError:
    return OptionError(
        "cannot be used as a backbone",
        found=f"{name}: {found}",
        expected="a network of feature maps, channels first, such as resnet18",
    )


def _blocks(module: torch.nn.Module, name: str, shapes: Mapping[str, _Shapes]) -> list[str]:
    before, after = (shape[2] for shape in shapes[name]) if name in shapes else (1, 0)
    children = list(module.named_children())
    if name and (before <= 2 * after or not children):
        return [name]
    return [block for part, child in children for block in _blocks(child, f"{name}.{part}".lstrip("."), shapes)]


def _alternative(network: torch.nn.Module) -> str:
    hub = getattr(network, "pretrained_cfg", {}).get("hf_hub_id")
    there = f" (https://huggingface.co/{hub} has one for timm)" if hub else ""
    return f"or ask for random initialisation with --backbone-weights none{there}"


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
