"""Convolutional autoencoder: what it cannot redraw, having seen only good images, is taken for a defect.

    maskbridge train autoencoder datasets/bottle runs/bottle-autoencoder-0 --fold 0
    maskbridge train autoencoder datasets/bottle runs/bottle-autoencoder-resnet18-0 --preset resnet18

The L2 and SSIM autoencoders of Bergmann et al., Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders, VISAPP 2019 (https://arxiv.org/abs/1807.02011), smaller; or a pretrained encoder, trained
along, with a decoder of our own. The anomaly map is the loss of each pixel, smoothed, so its mean is the loss of the
image; the image score is the map's largest value. SSIM is torchmetrics'.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from baselines._augment import AugmentConfig, view
from baselines._encoder import EncoderConfig, blank_encoder, normalised, start_encoder
from baselines._loop import LoopConfig, Player, in_processes, optimise
from baselines._maps import smooth
from baselines._torch import (
    choose_device,
    load_checkpoint,
    load_images,
    load_network,
    parameter_count,
    read_square,
    require_at_least,
    require_choices,
    require_multiple,
    require_training_images,
    save_checkpoint,
    to_tensor,
)
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import OptionError
from maskbridge.weights import NONE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from lightning_fabric import Fabric

    from baselines._backbones import Backbone

SUPERVISED = False
PREDICT_OPTIONS = ("blur",)
_PRETRAINED = {"backbone": "auto"}
PRESETS: dict[str, dict[str, Any]] = {
    "conv": {},
    "conv-aug": {"flip": True, "rotation": 5.0},
    "conv-ssim": {"loss": "ssim"},
    "resnet18": _PRETRAINED,
    "resnet18-lr5e-4": {**_PRETRAINED, "learning_rate": 5e-4},
}

#: Our own encoder halves height and width this many times.
STAGES = 4


@dataclass(frozen=True, kw_only=True)
class Config(LoopConfig, AugmentConfig, EncoderConfig):
    """Options of the autoencoder."""

    image_size: int = 128
    """side of the square the images are resized to, in pixels; a multiple of 16, of 32 with a pretrained encoder"""
    channels: int = 16
    """channels of the finest layer; each coarser one has twice as many, up to four times this"""
    bottleneck: int = 64
    """channels of the smallest layer, which is image_size / 16 wide"""
    loss: Literal["l2", "ssim"] = "l2"
    """what is made small: the squared error of a pixel, or 1 - SSIM around it, which also makes the anomaly map"""
    epochs: int = 50
    """passes over the training images"""
    batch_size: int = 16
    """images in a training step, over all devices"""
    learning_rate: float = 1e-3
    """learning rate of Adam"""
    blur: float = 8.0
    """standard deviation of the Gaussian that smooths the residual map, in its pixels; 0 for none"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        LoopConfig.__post_init__(self)
        AugmentConfig.__post_init__(self)
        EncoderConfig.__post_init__(self)
        require_at_least(self, image_size=16 if self.backbone == NONE else 64, channels=1, bottleneck=1, blur=0)
        require_choices(self)
        require_multiple(self, image_size=2**STAGES if self.backbone == NONE else 32)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Learn to redraw good images; writes the network to `model.safetensors`."""
    require_training_images(data)
    return in_processes(_train, data, weights, config=config, context=context)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Give each image, one by one, its smoothed residual map and the map's largest value."""
    import numpy as np
    import torch

    device = choose_device(context.device)
    tensors, header = load_checkpoint(weights)
    backbone = blank_encoder(header.get("backbone"))
    network = build_network(config, backbone)
    load_network(network, tensors, weights)
    network.to(device).to(memory_format=torch.channels_last)
    for image_id in data.image_ids:
        images = read_square(data.dataset, image_id, config.image_size)[np.newaxis]
        anomaly_map = smooth(_residuals(network, images, config, device, backbone)[0], config.blur)
        yield Prediction(image_id=image_id, score=float(anomaly_map.max()), map=anomaly_map)


def build_network(config: Config, backbone: Backbone | None = None) -> torch.nn.Sequential:
    """Encoder and decoder: N x 3 x size x size, float32, normalised for the encoder -> the same shape, [0, 1].

    Raises:
        OptionError: When the backbone does not halve the image a whole number of times.
    """
    import torch
    from torch import nn

    encoder: list[nn.Module] = []
    if backbone is None:
        widths = _widths(config, STAGES)
        for before, after in pairwise([3, *widths]):
            encoder += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    else:
        with torch.inference_mode():
            _, depth, side, _ = backbone.network(torch.zeros(1, 3, config.image_size, config.image_size)).shape
        stages = int(math.log2(config.image_size // side))
        if side * 2**stages != config.image_size:
            raise OptionError("the encoder's map does not fit", found=f"{side} pixels of {config.image_size}")
        widths = _widths(config, stages)
        encoder = [backbone.network, nn.Conv2d(depth, config.bottleneck, kernel_size=1)]
    decoder: list[nn.Module] = []
    for before, after in pairwise([*widths[::-1], 3]):
        decoder += [nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    parts = {"encoder": nn.Sequential(*encoder), "decoder": nn.Sequential(*decoder[:-1], nn.Sigmoid())}
    return nn.Sequential(OrderedDict(parts))


def residual(redrawn: torch.Tensor, images: torch.Tensor, loss: str) -> torch.Tensor:
    """Loss of each pixel: N x 3 x H x W, float32, [0, 1], twice -> N x H x W.

    Args:
        redrawn: What came out.
        images: What should have.
        loss: `l2`, squared error, mean over the channels; `ssim`, 1 - SSIM in a Gaussian window of 11 pixels, the same.
    """
    if loss == "l2":
        return (redrawn - images).square().mean(dim=1)
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    _, whole = ssim(redrawn, images, data_range=1.0, reduction="none", return_full_image=True)
    return 1 - whole.mean(dim=1)


def _widths(config: Config, stages: int) -> list[int]:
    return [config.channels * min(2**stage, 4) for stage in range(stages - 1)] + [config.bottleneck]


def _train(fabric: Fabric, data: TrainData, weights: Path, *, config: Config, context: Context) -> Trained:
    import torch

    device = fabric.device
    backbone = start_encoder("autoencoder", config, config.image_size, context.seed)
    images = load_images(data.dataset, data.train, config.image_size, context)
    held_out_ids = [i for i in data.val if data.dataset.image_by_id[i].is_good]
    held_out = load_images(data.dataset, held_out_ids, config.image_size, context)
    torch.manual_seed(context.seed)
    network = build_network(config, backbone).to(device).to(memory_format=torch.channels_last)

    def losses(networks: Sequence[torch.nn.Module], rows: torch.Tensor) -> torch.Tensor:
        target = view(to_tensor(images[rows.numpy()], device), config)
        return residual(networks[0](_prepared(target, backbone)), target, config.loss).mean(dim=(1, 2))

    [history] = optimise(fabric, [Player(network, losses)], len(images), "autoencoder", config, context)
    facts = {
        "backbone": None if backbone is None else backbone.name,
        "loss_by_epoch": history,
        "train_loss": _loss(network, images, config, device, backbone),
        "held_out_loss": _loss(network, held_out, config, device, backbone) if held_out_ids else None,
        "held_out_good_images": len(held_out_ids),
    }
    if fabric.global_rank == 0:
        header = {"approach": "autoencoder", "options": asdict(config), "backbone": facts["backbone"]}
        save_checkpoint(weights, network.state_dict(), header)
    weights_from = NONE if backbone is None else backbone.weights_from
    return Trained(parameters=parameter_count(network), weights_from=weights_from, facts=facts)


def _prepared(images: torch.Tensor, backbone: Backbone | None) -> torch.Tensor:
    return images if backbone is None else normalised(images, backbone)


def _residuals(
    network: torch.nn.Module,
    images: npt.NDArray[np.uint8],
    config: Config,
    device: torch.device,
    backbone: Backbone | None,
) -> npt.NDArray[np.float32]:
    """Loss of each pixel with the network as it is at prediction: N x H x W x 3, uint8 -> N x H x W, float32."""
    import torch

    network.eval()
    with torch.no_grad():
        target = to_tensor(images, device)
        found = residual(network(_prepared(target, backbone)), target, config.loss)
        residuals: npt.NDArray[np.float32] = found.cpu().numpy()
    return residuals


def _loss(
    network: torch.nn.Module,
    images: npt.NDArray[np.uint8],
    config: Config,
    device: torch.device,
    backbone: Backbone | None,
) -> float:
    """Mean loss over images with the network as it is at prediction."""
    size = config.batch_size
    batches = (images[i : i + size] for i in range(0, len(images), size))
    total = sum(float(_residuals(network, batch, config, device, backbone).sum()) for batch in batches)
    return total / (images.size / 3)
