"""Where a SAM's start weights come from: whole checkpoints, the decoder alone, and pretrained backbones.

model, weights_from = start(Config(arch="backbone"))
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torchvision import models

from finetune._sam_model import Model, build
from maskbridge.errors import WeightsError
from maskbridge.files import read_json, write_bytes, write_json
from maskbridge.progress import say
from maskbridge.start_weights import source_name
from maskbridge.weights import (
    AUTO,
    NONE,
    Download,
    find_backbone,
    find_local,
    find_weights,
    local_backbone,
    local_weights,
    stated_download,
)

if TYPE_CHECKING:
    from finetune.sam import Config

_META = "https://dl.fbaipublicfiles.com/segment_anything"
#: Where official checkpoints are offered; the last part is the file's name. Neither publisher states a SHA-256 of them
#: (https://github.com/facebookresearch/segment-anything#model-checkpoints, https://github.com/ChaoningZhang/MobileSAM),
#: so none is fetched.
CHECKPOINTS = {
    "vit_b": f"{_META}/sam_vit_b_01ec64.pth",
    "vit_l": f"{_META}/sam_vit_l_0b3195.pth",
    "vit_h": f"{_META}/sam_vit_h_4b8939.pth",
    "vit_t": "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
}
#: A file of the prompt encoder and mask decoder alone, looked for before a whole checkpoint.
DECODER_NAME = "sam_prompt_encoder_and_mask_decoder"
#: Width of the patch embedding, which tells the image encoders apart.
_ARCH_OF_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h", 192: "tiny"}


def start(config: Config) -> tuple[Model, str]:
    """Build the model and load its start weights.

    Returns:
        The model, ready to predict, and the names of the files its weights are from; `none` marks what is random.

    Raises:
        OptionError: When an option does not fit.
        WeightsError: When weights cannot be found or do not fit.
    """
    arch = resolve_arch(config)
    model = build(arch, backbone=config.backbone, image_size=config.image_size)
    model = replace(model, box_mask=config.box_mask == "yes" or (config.box_mask == AUTO and bool(model.own_neck())))
    url = CHECKPOINTS.get(arch, CHECKPOINTS["vit_b"])
    if arch in CHECKPOINTS:
        what, remedy = f"SAM {arch}", "or choose --arch backbone or --arch tiny --weights none"
    else:
        what, remedy = "SAM's prompt encoder and mask decoder", "or ask for random ones with --weights none"
    offered = f"{what} (not fetched, as its publisher states no SHA-256; offered at {url})"
    path = find_weights(config.weights, names=_names(arch), what=offered, remedy=remedy)
    source = NONE if path is None else source_name(path)
    if arch in CHECKPOINTS:
        if path is not None and not load_weights(model, path):
            source += f", image encoder: {NONE}"
        return model, source
    if path is not None:
        load_prompt_encoder_and_decoder(model, path)
        model.soften_neck()
        if arch == "tiny":
            say(f"{path}: prompt encoder and mask decoder of {arch}; its image encoder is random")
    backbone = None
    if arch == "backbone":
        backbone = find_backbone(config.backbone, config.backbone_weights, download=backbone_download(config.backbone))
    if backbone is not None:
        load_backbone(model, backbone)
    if path is None and backbone is None:
        return model, NONE
    return model, f"{source}, image encoder: {NONE if backbone is None else source_name(backbone)}"


def local_files(config: Config) -> list[Path]:
    """The files that `start` reads, as far as they are at hand."""
    arch = resolve_arch(config)
    encoder = local_backbone(config.backbone, config.backbone_weights) if arch == "backbone" else []
    return local_weights(config.weights, _names(arch)) + encoder


def _names(arch: str) -> list[str]:
    """Names of files that an arch takes weights from, best first."""
    return [_name(arch)] if arch in CHECKPOINTS else [DECODER_NAME, *map(_name, CHECKPOINTS)]


def _name(arch: str) -> str:
    return CHECKPOINTS[arch].rsplit("/", 1)[-1]


def resolve_arch(config: Config) -> str:
    """The arch that `auto` stands for, by the weights that are at hand."""
    if config.arch != AUTO:
        return config.arch
    if config.weights == NONE:
        return "tiny" if config.backbone_weights == AUTO else "backbone"
    name = Path(config.weights).name
    named = re.search(r"vit_[blht]", name)
    if named or name.startswith("mobile_sam"):
        return named.group() if named else "vit_t"
    if config.weights == AUTO and find_local([_name("vit_b")]):
        return "vit_b"
    if config.backbone_weights != AUTO or find_local([config.backbone, f"tf_{config.backbone}"]):
        return "backbone"
    return "vit_b"


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling code.

    Raises:
        WeightsError: When it is not one.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of foreign pickles, which are refused or read all the same
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are no checkpoint
        raise WeightsError("cannot be read as a checkpoint", where=path, found=type(error).__name__) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise WeightsError("is not a state dict", where=path, found=type(state).__name__, expected="tensors by name")
    return cast(dict[str, Any], state)


def load_sam(model: Model, path: Path) -> None:
    """Load a whole SAM checkpoint.

    Raises:
        WeightsError: When it is one of another architecture; says which it looks like.
    """
    state = read_state(path)
    try:
        model.sam.load_state_dict(state)
        model.sam.eval()  # MobileSAM copies its attention biases here
    except RuntimeError as error:
        raise WeightsError(
            "is a checkpoint of another architecture",
            where=path,
            found=_looks_like(state),
            expected=model.arch,
        ) from error


def load_weights(model: Model, path: Path) -> bool:
    """Load a whole SAM checkpoint, or a prompt encoder and mask decoder alone, which is said.

    Returns:
        Whether the image encoder was in it; otherwise it stays random.

    Raises:
        WeightsError: When it is one of another architecture; says which it looks like.
    """
    state = read_state(path)
    if "PromtEncoder" not in state and any(name.startswith("image_encoder.") for name in state):
        load_sam(model, path)
        return True
    load_prompt_encoder_and_decoder(model, path)
    tensors = model.sam.state_dict()
    found = sum(not name.startswith("image_encoder.") for name in tensors)
    say(f"{path}: {found} of {len(tensors)} tensors of {model.arch}; its image encoder is random")
    return False


def load_prompt_encoder_and_decoder(model: Model, path: Path) -> None:
    """Load SAM's prompt encoder and mask decoder alone, from a whole checkpoint or one of just these two.

    Raises:
        WeightsError: When they are not in it.
    """
    state = read_state(path)
    prompt, decoder = state.get("PromtEncoder"), state.get("MaskDecoder")
    if prompt is None or decoder is None:
        prompt, decoder = _under(state, "prompt_encoder."), _under(state, "mask_decoder.")
    try:
        model.sam.prompt_encoder.load_state_dict(prompt)
        model.sam.mask_decoder.load_state_dict(decoder)
    except RuntimeError as error:
        expected = "SAM's prompt encoder and mask decoder"
        raise WeightsError("does not fit", where=path, found=_looks_like(state), expected=expected) from error


def load_backbone(model: Model, path: Path) -> None:
    """Load a torchvision network's weights, whole or `.features` alone, into the trunk of a `backbone` model.

    Raises:
        WeightsError: When they do not fit.
    """
    state = read_state(path)
    state = _under(state, "features.") or state
    own = model.sam.image_encoder.stages.state_dict()
    try:
        model.sam.image_encoder.stages.load_state_dict({k: v for k, v in state.items() if k in own})
    except RuntimeError as error:
        raise WeightsError("does not fit the backbone", where=path, found=f"{error}"[:200]) from error


def backbone_download(backbone: str) -> Download | None:
    """What fetches torchvision's weights of a backbone; None where it has none."""
    try:
        weights = models.get_model_weights(backbone).DEFAULT
    except (ValueError, AttributeError):
        return None
    return stated_download(weights.url)


def _under(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _looks_like(state: Mapping[str, Any]) -> str:
    if "PromtEncoder" in state:
        return "a prompt encoder and mask decoder alone"
    if any(name.startswith("image_encoder.stages.") for name in state):
        return "a SAM on a backbone"
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return "vit_t"
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None:
        return "no SAM"
    return _ARCH_OF_WIDTH.get(len(patches), "a SAM of its own kind")


def save_run(model: Model, backbone: str, weights: Path) -> None:
    """Write `sam.pt`, a plain state dict, and `sam.json`, how to build the model for it."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in model.sam.state_dict().items()}, buffer)
    write_bytes(weights / "sam.pt", buffer.getvalue())
    card = {
        "arch": model.arch,
        "backbone": backbone,
        "image_size": model.image_size,
        "box_mask": model.box_mask,
        "trained_prompts": model.trained_prompts,
    }
    write_json(weights / "sam.json", card)


def open_run(weights: Path) -> Model:
    """The model of a run's `weights` folder, on the CPU.

    Raises:
        WeightsError: When the checkpoint is not there or does not fit.
    """
    card = read_json(weights / "sam.json")
    try:
        model = build(str(card["arch"]), backbone=str(card["backbone"]), image_size=int(card["image_size"]))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:  # or of an absurd size
        where = weights / "sam.json"
        raise WeightsError("does not say how to build the model", where=where, found=repr(error)) from error
    load_sam(model, weights / "sam.pt")
    kinds = tuple(str(kind) for kind in card.get("trained_prompts") or ())
    return replace(model, box_mask=card.get("box_mask") is True, trained_prompts=kinds)
