"""SAM with an exchangeable image encoder: a frozen trunk, whose output is cached, and maybe a trained neck.

    model = build("backbone", backbone="mobilenet_v2", image_size=512)
    embeddings = model.neck(model.trunk(x))        # what the mask decoder reads

Every model is a `segment_anything` `Sam`, so that its own predictor, preprocessing and checkpoints work.

| arch               | frozen trunk                              | neck that is trained |
| ------------------ | ----------------------------------------- | -------------------- |
| vit_b, vit_l, vit_h | the whole image encoder                  | none                 |
| vit_t              | the whole image encoder, MobileSAM's       | none                 |
| tiny               | a small ViT up to its last block          | SAM's own            |
| backbone           | a torchvision network at strides 8 and 16 | SAM's own form       |

MobileSAM: Zhang et al., Faster Segment Anything, 2023, https://arxiv.org/abs/2306.14289.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from finetune._sam_attention import fuse_attention
from finetune._sam_backbone import EMBEDDING_CHANNELS as EMBEDDING_CHANNELS
from finetune._sam_backbone import PATCH, BackboneEncoder
from maskbridge.errors import OptionError

#: Architectures that `segment_anything.sam_model_registry` builds.
REGISTERED = ("vit_b", "vit_l", "vit_h")
VIT_ARCHS = (*REGISTERED, "vit_t")
#: Input side of the official models, pixels.
OFFICIAL_IMAGE_SIZE = 1024

#: Strength of a random neck before a pretrained decoder: scale of its last normalisation.
NECK_START = 0.02

_TINY_PATCH = 8

_PIXEL_MEAN, _PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@dataclass(frozen=True)
class Model:
    """A `Sam`, taken apart into what is frozen and what is trained.

    Attributes:
        arch: Name of the architecture.
        sam: The model.
        box_mask: Whether it is told a box as a low-resolution mask too.
        trained_prompts: Kinds of prompts that it was trained on here; none for one that was not trained.
    """

    arch: str
    sam: Sam
    box_mask: bool = False
    trained_prompts: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        return int(self.sam.image_encoder.img_size)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen part: normalised, padded images Bx3xSxS, float -> BxCxhxw."""
        encoder = self.sam.image_encoder
        if self.arch in VIT_ARCHS:
            return cast(torch.Tensor, encoder(x))
        if isinstance(encoder, BackboneEncoder):
            return encoder.trunk(x)
        x = encoder.patch_embed(x) + encoder.pos_embed
        for block in encoder.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)

    def trunk_state(self) -> Mapping[str, torch.Tensor]:
        """Tensors that the trunk's output depends on."""
        state: Mapping[str, torch.Tensor] = self.sam.image_encoder.state_dict()
        if self.arch in VIT_ARCHS:
            return state
        return {name: tensor for name, tensor in state.items() if not name.startswith("neck.")}

    def neck(self, features: torch.Tensor) -> torch.Tensor:
        """Image embeddings from the trunk's output: BxCxhxw -> Bx256xhxw."""
        if self.arch in VIT_ARCHS:
            return features
        return cast(torch.Tensor, self.sam.image_encoder.neck(features))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Image embeddings of normalised, padded images: Bx3xSxS, float -> Bx256xhxw."""
        return self.neck(self.trunk(x))

    def soften_neck(self) -> None:
        """Let a random neck say little at first, so that a pretrained decoder answers by the prompts that it knows.

        At full strength noise drowns them: `python benchmarks/sam.py neck` prints the overlap that is left.
        """
        with torch.no_grad():
            self.sam.image_encoder.neck[-1].weight.fill_(NECK_START)

    @property
    def trunk_is_frozen(self) -> bool:
        """Whether nothing before the neck is trained."""
        parameters = dict(self.sam.image_encoder.named_parameters())
        return not any(parameters[name].requires_grad for name in self.trunk_state() if name in parameters)

    def train_only(self, what: str) -> None:
        """Freeze what is not trained: all but the mask decoder and the neck, or (`full`) the image encoder too.

        Batch normalisation keeps its statistics, and MobileSAM's attention biases, which it reads from a copy, stay.
        """
        self.sam.requires_grad_(False)
        self.sam.mask_decoder.requires_grad_(True)
        if what == "full":
            for name, parameter in self.sam.image_encoder.named_parameters():
                parameter.requires_grad_(not name.endswith("attention_biases"))
        elif self.arch not in VIT_ARCHS:
            self.sam.image_encoder.neck.requires_grad_(True)

    def own_neck(self) -> list[nn.Parameter]:
        """Parameters of a neck that is trained from scratch."""
        return [] if self.arch in VIT_ARCHS else list(self.sam.image_encoder.neck.parameters())

    def trained(self) -> list[nn.Parameter]:
        """Parameters that are not frozen."""
        return [parameter for parameter in self.sam.parameters() if parameter.requires_grad]


def state_hash(state: Mapping[str, torch.Tensor], key: str) -> str:
    """SHA-256 of tensors, their names, shapes and types, and a key, as 64 hexadecimal digits."""
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def build(arch: str, *, backbone: str, image_size: int) -> Model:
    """Build a model with random weights.

    Args:
        arch: `vit_b`, `vit_l`, `vit_h`, `vit_t`, `tiny` or `backbone`.
        backbone: Name of the torchvision network, for `backbone`.
        image_size: Side of the square input in pixels; the official models have their own, 1024.

    Raises:
        OptionError: When the size does not fit the encoder's grid, the backbone is not known, or the package of an
            architecture is not installed.
    """
    if arch == "vit_t":
        return Model(arch, _sam(_mobile_encoder(), OFFICIAL_IMAGE_SIZE, PATCH))
    if arch in VIT_ARCHS:
        sam = sam_model_registry[arch]().eval()
        fuse_attention(sam.image_encoder)
        return Model(arch, sam)
    patch = _TINY_PATCH if arch == "tiny" else PATCH
    if image_size < 4 * patch or image_size % (2 * PATCH):
        raise OptionError("--image-size does not fit", found=image_size, expected="a multiple of 32, at least 64")
    encoder = _tiny_encoder(image_size) if arch == "tiny" else BackboneEncoder(backbone, image_size)
    return Model(arch, _sam(encoder, image_size, patch))


def _sam(encoder: nn.Module, image_size: int, patch: int) -> Sam:
    """SAM as `segment_anything.build_sam` puts it together, around an image encoder."""
    grid = image_size // patch
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=_PIXEL_MEAN,
        pixel_std=_PIXEL_STD,
    )
    return sam.eval()


def _mobile_encoder() -> nn.Module:
    """MobileSAM's image encoder, a TinyViT.

    Importing its package puts its own networks over timm's of the same name and warns about it; timm's come back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from mobile_sam.modeling.tiny_vit_sam import TinyViT
            from timm.models import register_model, tiny_vit
        except ImportError as error:
            raise OptionError(
                "--arch vit_t needs MobileSAM's image encoder",
                found=str(error),
                remedy="pip install 'maskbridge[sam]'",
            ) from error
        for name in ("5m_224", "11m_224", "21m_224", "21m_384", "21m_512"):
            register_model(getattr(tiny_vit, f"tiny_vit_{name}"))
    return cast(
        nn.Module,
        TinyViT(
            img_size=OFFICIAL_IMAGE_SIZE,
            in_chans=3,
            num_classes=1000,
            embed_dims=[64, 128, 160, 320],
            depths=[2, 2, 6, 2],
            num_heads=[2, 4, 5, 10],
            window_sizes=[7, 7, 14, 7],
            mlp_ratio=4.0,
            drop_rate=0.0,
            drop_path_rate=0.0,
            use_checkpoint=False,
            mbconv_expand_ratio=4.0,
            local_conv_size=3,
            layer_lr_decay=0.8,
        ),
    )


def _tiny_encoder(image_size: int) -> ImageEncoderViT:
    encoder = ImageEncoderViT(
        depth=2,
        embed_dim=_TINY_PATCH * _TINY_PATCH * 3,
        img_size=image_size,
        mlp_ratio=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=4,
        patch_size=_TINY_PATCH,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=8,
        out_chans=EMBEDDING_CHANNELS,
    )
    fuse_attention(encoder)
    return encoder
