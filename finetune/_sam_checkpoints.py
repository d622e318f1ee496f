"""Where a SAM's start weights come from: whole checkpoints, the decoder alone, and pretrained backbones.

model, weights_from = start(Config(arch="backbone"))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torchvision import models

from finetune._sam_model import Model, build
from maskbridge.errors import WeightsError
from maskbridge.weights import AUTO, NONE, Download, find_backbone, find_local, find_weights

if TYPE_CHECKING:
    from finetune.sam import Config

#: Official checkpoints: name and SHA-256.
CHECKPOINTS = {
    "vit_b": ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}
CHECKPOINTS_URL = "https://dl.fbaipublicfiles.com/segment_anything"
#: A file of the prompt encoder and mask decoder alone, looked for before a whole checkpoint.
DECODER_NAME = "sam_prompt_encoder_and_mask_decoder"
#: Width of the patch embedding, which tells the image encoders apart.
_ARCH_OF_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h", 192: "tiny"}


def start(config: Config) -> tuple[Model, str]:
    """Build the model and load its start weights.

    Returns:
        The model, and the names of the files its weights are from; `none` marks what is random.

    Raises:
        OptionError: When an option does not fit.
        WeightsError: When weights cannot be found or do not fit.
    """
    arch = resolve_arch(config)
    model = build(arch, backbone=config.backbone, image_size=config.image_size)
    if arch in CHECKPOINTS:
        name, pin = CHECKPOINTS[arch]
        remedy = "or choose --arch backbone or --arch tiny --weights none"
        whole = find_weights(
            config.weights,
            names=[name],
            what=f"SAM {arch}",
            url=f"{CHECKPOINTS_URL}/{name}",
            sha256=pin,
            remedy=remedy,
        )
        if whole is not None:
            load_sam(model, whole)
        return model, _source(whole)
    names = [DECODER_NAME, *(name for name, _ in CHECKPOINTS.values())]
    name, pin = CHECKPOINTS["vit_b"]
    part = find_weights(
        config.weights,
        names=names,
        what="SAM's prompt encoder and mask decoder",
        url=f"{CHECKPOINTS_URL}/{name}",
        sha256=pin,
    )
    if part is not None:
        load_prompt_encoder_and_decoder(model, part)
    if arch == "tiny":
        return model, f"{_source(part)}, image encoder: {NONE}" if part else NONE
    backbone = find_backbone(config.backbone, config.backbone_weights, download=backbone_download(config.backbone))
    if backbone is not None:
        load_backbone(model, backbone)
    return model, f"{_source(part)}, image encoder: {_source(backbone)}" if part or backbone else NONE


def resolve_arch(config: Config) -> str:
    """The arch that `auto` stands for, by the weights that are at hand."""
    if config.arch != AUTO:
        return config.arch
    if config.weights == NONE:
        return "tiny"
    named = re.search(r"vit_[blh]", Path(config.weights).name)
    if named:
        return named.group()
    if config.weights == AUTO and find_local([CHECKPOINTS["vit_b"][0]]):
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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are no checkpoint
        raise WeightsError("cannot be read as a checkpoint", where=path, found=type(error).__name__) from error
    if not isinstance(state, dict):
        raise WeightsError("is not a state dict", where=path, found=type(state).__name__)
    return cast(dict[str, Any], state)


def load_sam(model: Model, path: Path) -> None:
    """Load a whole SAM checkpoint.

    Raises:
        WeightsError: When it is one of another architecture; says which it looks like.
    """
    state = read_state(path)
    try:
        model.sam.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            "is a checkpoint of another architecture",
            where=path,
            found=_looks_like(state),
            expected=model.arch,
        ) from error


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
    """Torchvision's own pinned download of a backbone's weights; None where it has none."""
    try:
        weights = models.get_model_weights(backbone).DEFAULT
    except (ValueError, AttributeError):
        return None

    def download(folder: Path) -> Path:
        weights.get_state_dict(check_hash=True, model_dir=str(folder))
        return folder / str(weights.url).rsplit("/", 1)[-1]

    return download


def _under(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _looks_like(state: Mapping[str, Any]) -> str:
    if "PromtEncoder" in state:
        return "a prompt encoder and mask decoder alone"
    if any(name.startswith("image_encoder.stages.") for name in state):
        return "a SAM on a backbone"
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None:
        return "no SAM"
    return _ARCH_OF_WIDTH.get(len(patches), "a SAM of its own kind")


def _source(path: Path | None) -> str:
    return NONE if path is None else path.name
