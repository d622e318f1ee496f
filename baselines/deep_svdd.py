"""Deep SVDD: a small CNN learns to map good images close to one point; the score is the distance to it.

    maskbridge train deep-svdd datasets/bottle runs/bottle-deep-svdd-0 --fold 0

The one-class objective of Ruff et al., Deep One-Class Classification, ICML 2018
(https://proceedings.mlr.press/v80/ruff18a.html), with the paper's three-block LeNet at half its
width (`--channels 32` is the paper's). No bias terms, no bounded activations, and a centre that is fixed
before training and away from zero: otherwise the network could map every image to the centre. Image score
only, no anomaly map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from maskbridge.progress import say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

SUPERVISED = False

#: Entries of the centre nearer to zero than this are moved away from it: zero weights would match a zero.
CENTRE_EPSILON = 0.1
#: Collapsed: the distances' standard deviation is below this part of their mean before training.
COLLAPSE_RATIO = 1e-6
#: Each block halves height and width and has twice the filters of the one before.
BLOCKS = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Deep SVDD."""

    image_size: int = 64
    """side of the square the images are resized to, in pixels; a multiple of 8"""
    channels: int = 16
    """filters of the first of three blocks, each further one has twice as many; the paper has 32"""
    embedding: int = 128
    """number of dimensions of the embedding"""
    epochs: int = 20
    """passes over the training images"""
    batch_size: int = 32
    """images in a training step"""
    learning_rate: float = 1e-4
    """learning rate of Adam"""
    weight_decay: float = 1e-6
    """L2 penalty on the weights"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_at_least(
            self,
            image_size=8,
            channels=1,
            embedding=1,
            epochs=1,
            batch_size=1,
            learning_rate=1e-12,
            weight_decay=0,
        )
        require_multiple(self, image_size=2**BLOCKS)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Learn from good images; writes the network and its centre to `model.safetensors`."""
    import torch

    require_training_images(data)
    device = choose_device(context.device)
    order = seed_everything(context.seed)
    images = load_images(data.dataset, data.train, config.image_size, context)
    network = build_network(config).to(device).to(memory_format=torch.channels_last)
    centre = fix_centre(_embed(network, images, config.batch_size, device))
    start = _distances(_embed(network, images, config.batch_size, device), centre)

    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    losses: list[float] = []
    for epoch in context.track(range(config.epochs), "training deep-svdd", total=config.epochs):
        network.train()
        total = 0.0
        for batch in shuffled_batches(len(images), config.batch_size, order):
            loss = _distances(network(prepare(images[batch], device)), centre).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(images))
        require_finite_loss(losses[-1], epoch)

    end = _distances(_embed(network, images, config.batch_size, device), centre)
    collapsed = len(images) > 1 and float(end.std(correction=0)) <= COLLAPSE_RATIO * float(start.mean())
    if collapsed:
        say("deep-svdd has collapsed: all training images are equally far from the centre")
    facts = {
        "loss_by_epoch": losses,
        "distance_mean": float(end.mean()),
        "distance_std": float(end.std(correction=0)),
        "collapsed": collapsed,
    }
    save_checkpoint(
        weights,
        {**{f"network.{name}": tensor for name, tensor in network.state_dict().items()}, "centre": centre},
        {"approach": "deep-svdd", "options": asdict(config)},
    )
    return Trained(parameters=parameter_count(network), weights_from="none", facts=facts)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Score images, one by one, by their squared distance to the centre."""
    import numpy as np

    device = choose_device(context.device)
    tensors, _ = load_checkpoint(weights)
    centre = tensors.pop("centre").to(device)
    network = build_network(config)
    load_network(network, {name.removeprefix("network."): t for name, t in tensors.items()}, weights)
    network.to(device)
    for image_id in data.image_ids:
        images = read_square(data.dataset, image_id, config.image_size)[np.newaxis]
        distances = _distances(_embed(network, images, 1, device), centre)
        yield Prediction(image_id=image_id, score=float(distances[0]))


def build_network(config: Config) -> torch.nn.Sequential:
    """The paper's LeNet: N x 3 x size x size, float32 -> N x embedding, float32; no bias anywhere."""
    from torch import nn

    layers: list[nn.Module] = []
    before = 3
    for channels in (config.channels * 2**block for block in range(BLOCKS)):
        layers += [
            nn.Conv2d(before, channels, kernel_size=5, padding=2, bias=False),
            nn.BatchNorm2d(channels, eps=1e-4, affine=False),
            nn.LeakyReLU(),
            nn.MaxPool2d(2),
        ]
        before = channels
    side = config.image_size // 2**BLOCKS
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side**2, config.embedding, bias=False))


def fix_centre(embeddings: torch.Tensor) -> torch.Tensor:
    """The centre: the mean of the untrained network's outputs, its entries kept away from zero.

    Args:
        embeddings: N x D, float32.

    Returns:
        D, float32; no entry is nearer to zero than `CENTRE_EPSILON`.
    """
    import torch

    centre = embeddings.mean(dim=0)
    pushed = torch.where(centre < 0, -CENTRE_EPSILON, CENTRE_EPSILON)
    return torch.where(centre.abs() < CENTRE_EPSILON, pushed, centre)


def prepare(images: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Global contrast normalisation of each image, as in the paper: zero mean, unit mean absolute value.

    Args:
        images: N x H x W x 3, uint8, RGB.
        device: Where the result shall lie.

    Returns:
        N x 3 x H x W, float32.
    """
    tensor = to_tensor(images, device)
    tensor = tensor - tensor.mean(dim=(1, 2, 3), keepdim=True)
    return tensor / tensor.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)


def _embed(
    network: torch.nn.Module, images: npt.NDArray[np.uint8], batch_size: int, device: torch.device
) -> torch.Tensor:
    """Embeddings of all images, N x D, with the network as it is at prediction."""
    import torch

    network.eval()
    with torch.inference_mode():
        batches = [
            network(prepare(images[start : start + batch_size], device)) for start in range(0, len(images), batch_size)
        ]
    return torch.cat(batches)


def _distances(embeddings: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Squared distance of each embedding to the centre: N x D, D -> N."""
    return (embeddings - centre).square().sum(dim=1)
