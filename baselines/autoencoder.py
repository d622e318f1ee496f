"""Convolutional autoencoder: what it cannot redraw, having seen only good images, is taken for a defect.

    maskbridge train autoencoder datasets/bottle runs/bottle-autoencoder-0 --fold 0

The L2 autoencoder of Bergmann et al., MVTec AD, CVPR 2019
(https://openaccess.thecvf.com/content_CVPR_2019/html/Bergmann_MVTec_AD_--_A_Comprehensive_Real-World_Dataset_for_Unsupervised_Anomaly_CVPR_2019_paper.html),
smaller. The anomaly map is the squared residual of each pixel, smoothed; the image score is the map's largest
value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baselines._maps import smooth
from baselines._torch import (
    choose_device,
    load_checkpoint,
    load_images,
    load_network,
    parameter_count,
    read_square,
    require_at_least,
    require_finite_loss,
    require_multiple,
    require_training_images,
    save_checkpoint,
    seed_everything,
    shuffled_batches,
    to_tensor,
)
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

SUPERVISED = False
PREDICT_OPTIONS = ("blur",)

#: The encoder halves height and width this many times.
STAGES = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the autoencoder."""

    image_size: int = 128
    """side of the square the images are resized to, in pixels; a multiple of 16"""
    channels: int = 16
    """channels of the first layer; each further one has twice as many, up to four times this"""
    bottleneck: int = 64
    """channels of the smallest layer, which is image_size / 16 wide"""
    epochs: int = 50
    """passes over the training images"""
    batch_size: int = 16
    """images in a training step"""
    learning_rate: float = 1e-3
    """learning rate of Adam"""
    blur: float = 8.0
    """standard deviation of the Gaussian that smooths the residual map, in its pixels; 0 for none"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_at_least(
            self, image_size=16, channels=1, bottleneck=1, epochs=1, batch_size=1, learning_rate=1e-12, blur=0
        )
        require_multiple(self, image_size=2**STAGES)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Learn to redraw good images; writes the network to `model.safetensors`."""
    import torch

    require_training_images(data)
    device = choose_device(context.device)
    order = seed_everything(context.seed)
    images = load_images(data.dataset, data.train, config.image_size, context)
    held_out_ids = [i for i in data.val if data.dataset.image_by_id[i].is_good]
    held_out = load_images(data.dataset, held_out_ids, config.image_size, context)
    network = build_network(config).to(device).to(memory_format=torch.channels_last)

    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    losses: list[float] = []
    for epoch in context.track(range(config.epochs), "training autoencoder", total=config.epochs):
        network.train()
        total = 0.0
        for batch in shuffled_batches(len(images), config.batch_size, order):
            target = to_tensor(images[batch], device)
            loss = torch.nn.functional.mse_loss(network(target), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(images))
        require_finite_loss(losses[-1], epoch)

    facts = {
        "loss_by_epoch": losses,
        "train_loss": _loss(network, images, config.batch_size, device),
        "held_out_loss": _loss(network, held_out, config.batch_size, device) if held_out_ids else None,
        "held_out_good_images": len(held_out_ids),
    }
    save_checkpoint(weights, network.state_dict(), {"approach": "autoencoder", "options": asdict(config)})
    return Trained(parameters=parameter_count(network), weights_from="none", facts=facts)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Give each image, one by one, its smoothed residual map and the map's largest value."""
    import numpy as np
    import torch

    device = choose_device(context.device)
    tensors, _ = load_checkpoint(weights)
    network = build_network(config)
    load_network(network, tensors, weights)
    network.to(device).to(memory_format=torch.channels_last)
    for image_id in data.image_ids:
        images = read_square(data.dataset, image_id, config.image_size)[np.newaxis]
        anomaly_map = smooth(_residuals(network, images, device)[0], config.blur)
        yield Prediction(image_id=image_id, score=float(anomaly_map.max()), map=anomaly_map)


def build_network(config: Config) -> torch.nn.Sequential:
    """Encoder and decoder: N x 3 x size x size, float32, 0 to 1 -> the same."""
    from torch import nn

    widths = [config.channels * factor for factor in (1, 2, 4)] + [config.bottleneck]
    encoder: list[nn.Module] = []
    decoder: list[nn.Module] = []
    for before, after in zip([3, *widths], widths, strict=False):
        encoder += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for before, after in zip(widths[::-1], [*widths[-2::-1], 3], strict=True):
        decoder += [nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*encoder, *decoder[:-1], nn.Sigmoid())


def _residuals(
    network: torch.nn.Module, images: npt.NDArray[np.uint8], device: torch.device
) -> npt.NDArray[np.float32]:
    """Squared error of each pixel, mean over the channels: N x H x W x 3, uint8 -> N x H x W, float32."""
    import torch

    network.eval()
    with torch.inference_mode():
        target = to_tensor(images, device)
        residuals: npt.NDArray[np.float32] = (network(target) - target).square().mean(dim=1).cpu().numpy()
    return residuals


def _loss(network: torch.nn.Module, images: npt.NDArray[np.uint8], batch_size: int, device: torch.device) -> float:
    """Mean squared error over images with the network as it is at prediction."""
    batches = range(0, len(images), batch_size)
    total = sum(float(_residuals(network, images[i : i + batch_size], device).sum()) for i in batches)
    return total / (images.size / 3)
