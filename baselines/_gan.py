"""A small GAN of good images whose latents, perturbed, give defective ones.

    draw = perturbed_latents(images, fabric, context)        # N x S x S x 3, uint8
    changed = draw(image, rng)                               # H x W x 3, uint8, of any size -> the same

The generator is that of DCGAN (Radford, Metz and Chintala, ICLR 2016, https://arxiv.org/abs/1511.06434) for 64 pixels
with fewer filters and a latent of 64 numbers, the discriminator is spectrally normalised with a hinge loss (Miyato et
al., ICLR 2018, https://arxiv.org/abs/1802.05957). A latent and the same one perturbed give two images; where they
differ most, one region, their difference is laid over the real image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from baselines._loop import LoopConfig, Player, optimise
from baselines._torch import to_tensor
from maskbridge.approach import Context
from maskbridge.progress import say

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

Image = npt.NDArray[np.uint8]

#: Side of the GAN's images, numbers of a latent, filters of the widest layer's eighth.
SIDE, LATENT, WIDTH = 64, 64, 24
#: Steps of training, images in each.
STEPS, BATCH = 700, 32
#: Standard deviation of the perturbation; latents have 1.
PERTURBATION = 1.0
#: Share of the pixels where two images differ most.
REGION = 0.1


def perturbed_latents(
    images: Image, fabric: Fabric, context: Context, steps: int = STEPS
) -> Callable[[Image, np.random.Generator], Image]:
    """Train the GAN, and return what changes an image by it.

    Args:
        images: Good images, N x S x S x 3, uint8, RGB.
        fabric: Where to.
        context: Seed, progress, scratch folder.
        steps: Training steps.
    """
    import torch

    device = fabric.device
    small = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in images])
    real = to_tensor(small, device) * 2 - 1
    torch.manual_seed(context.seed)
    generator, discriminator = build_generator().to(device), build_discriminator().to(device)

    def latents(count: int) -> torch.Tensor:
        return torch.randn(count, LATENT, 1, 1, device=device)

    def tell_apart(networks: Sequence[torch.nn.Module], rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            made = networks[1](latents(len(rows)))
        good, bad = networks[0](torch.cat([real[rows.to(device)], made])).chunk(2)
        return torch.relu(1 - good) + torch.relu(1 + bad)

    def deceive(networks: Sequence[torch.nn.Module], rows: torch.Tensor) -> torch.Tensor:
        told: torch.Tensor = -networks[0](networks[1](latents(len(rows))))
        return told

    epochs = -(-steps // -(-len(real) // BATCH))
    if fabric.global_rank == 0:
        say(f"gan: learns {len(real)} good images first, {epochs} epochs")
    config = LoopConfig(epochs=epochs, batch_size=BATCH, learning_rate=2e-4)
    players = [Player(network, losses, betas=(0.5, 0.999)) for network, losses in (
        (discriminator, tell_apart), (generator, deceive))]  # fmt: skip
    optimise(fabric, players, len(real), "gan", config, context)
    generator.eval()

    def change(image: Image, rng: np.random.Generator) -> Image:
        z = torch.from_numpy(rng.standard_normal((2, LATENT, 1, 1), dtype=np.float32)).to(device)
        with torch.no_grad():
            before, after = generator(torch.stack([z[0], z[0] + PERTURBATION * z[1]]))
        apart = 127.5 * (after - before).permute(1, 2, 0).cpu().numpy()
        return lay_over(image, apart)

    return change


def lay_over(image: Image, difference: npt.NDArray[np.float32]) -> Image:
    """Add the region where a difference is greatest to an image.

    Args:
        image: H x W x 3, uint8.
        difference: S x S x 3, float32, grey levels; enlarged to the image.

    Returns:
        H x W x 3, uint8.
    """
    strength = cv2.GaussianBlur(np.abs(difference).max(axis=2), (0, 0), 1.5)
    above = (strength >= np.quantile(strength, 1 - REGION)).astype(np.uint8)
    count, labels = cv2.connectedComponents(above, connectivity=8)
    sums = [strength[labels == label].sum() for label in range(1, count)]
    region = (labels == 1 + int(np.argmax(sums))).astype(np.float32)
    size = (image.shape[1], image.shape[0])
    soft = cv2.resize(cv2.GaussianBlur(region, (0, 0), 1.0), size, interpolation=cv2.INTER_CUBIC)
    change = cv2.resize(difference, size, interpolation=cv2.INTER_CUBIC) * soft[..., None]
    return np.asarray(np.clip(np.rint(image + change), 0, 255), dtype=np.uint8)


def build_generator() -> torch.nn.Sequential:
    """N x LATENT x 1 x 1 -> N x 3 x 64 x 64, [-1, 1]."""
    from torch import nn

    widths = [8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH]
    layers: list[nn.Module] = [nn.ConvTranspose2d(LATENT, widths[0], 4, bias=False)]
    for before, after in zip(widths, [*widths[1:], 3], strict=True):
        layers += [nn.BatchNorm2d(before), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=after == 3))
    return nn.Sequential(*layers, nn.Tanh())


def build_discriminator() -> torch.nn.Sequential:
    """N x 3 x 64 x 64, [-1, 1] -> N, above 0 for a real image."""
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    widths = [3, WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 4)), nn.Flatten(0))
