"""Anomalies made of good images, with masks of what has changed.

    make = maker("cutpaste", images, fabric, context)        # images N x S x S x 3, uint8: what a GAN learns from
    changed, mask = make(image, rng)                          # H x W x 3, uint8, of any size -> the same, and H x W

* `cutpaste`: a piece of the image, or a thin scar, somewhere else in it: Li et al., CutPaste, CVPR 2021
  (https://arxiv.org/abs/2104.04015).
* `perlin`: pieces of the image in another order, blended in where Perlin noise is high: Zavrtanik, Kristan and Skocaj,
  DRAEM, ICCV 2021 (https://arxiv.org/abs/2108.07610), which blends in foreign textures.
* `gan`: what a small GAN changes when its latents are perturbed, see `baselines._gan`.

A mask is where the change can be seen; what is too small for a region of its own is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.approach import Context
from maskbridge.errors import MaskbridgeError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Image = npt.NDArray[np.uint8]
#: Of an image, H x W x 3, uint8, and random numbers: the changed image and its mask, H x W, uint8, 0 or 1.
Maker = Callable[[Image, np.random.Generator], tuple[Image, Image]]

Method = Literal["gan", "cutpaste", "perlin"]
#: Change of a channel that can be seen, in grey levels.
VISIBLE = 12
#: Smallest region, as a part of the image.
LEAST_SHARE = 5e-4
#: Draws until one can be seen.
TRIES = 50


def maker(method: Method, images: Image, fabric: Fabric, context: Context, least: int = 1) -> Maker:
    """What makes anomalies of good images.

    Args:
        method: How.
        images: Good images, N x S x S x 3, uint8, RGB; only `gan` learns from them.
        fabric: Where the GAN is trained.
        context: Its seed, progress and scratch folder.
        least: Regions of fewer pixels are undone too.
    """
    if method == "gan":
        from baselines._gan import perturbed_latents

        draw = perturbed_latents(images, fabric, context)
    else:
        draw = {"cutpaste": cut_and_paste, "perlin": blend_along_noise}[method]

    def make(image: Image, rng: np.random.Generator) -> tuple[Image, Image]:
        for _ in range(TRIES):
            changed, mask = visible_change(image, draw(image, rng), least)
            if mask.any():
                return changed, mask
        raise MaskbridgeError(
            f"no visible anomaly came of {TRIES} tries with {method}",
            remedy="are all images of one colour? take another way of making them",
        )

    return make


def visible_change(image: Image, changed: Image, least: int = 1) -> tuple[Image, Image]:
    """What of a change can be seen, and where.

    Args:
        image: H x W x 3, uint8.
        changed: The same shape.
        least: Pixels of a region at least.

    Returns:
        The image with the changes inside the mask alone, and the mask, H x W, uint8, 0 or 1: its 8-connected regions
        have `least` pixels and `LEAST_SHARE` of the image at least; gaps narrower than a twentieth of its side are
        closed.
    """
    apart = (cv2.absdiff(image, changed).max(axis=2) > VISIBLE).astype(np.uint8)
    reach = 1 + 2 * (min(image.shape[:2]) // 40)
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    closed = cv2.morphologyEx(apart, cv2.MORPH_CLOSE, around)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    enough = max(least, LEAST_SHARE * closed.size)
    large = np.array([label > 0 and stats[label, cv2.CC_STAT_AREA] >= enough for label in range(count)])
    mask = large[labels].astype(np.uint8)
    return np.where(mask[..., None] > 0, changed, image), mask


def cut_and_paste(image: Image, rng: np.random.Generator) -> Image:
    """A piece of 2 to 15 % of the image, or a scar, its colours changed by up to a tenth, somewhere else.

    H x W x 3, uint8, two rows and columns at least -> the same shape.
    """
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        area, aspect = rng.uniform(0.02, 0.15) * height * width, np.exp(rng.uniform(-1, 1) * np.log(3.3))
        angle = 0.0
    else:  # lengths are the paper's at 256 pixels
        unit = min(height, width) / 256
        thick, long = rng.uniform(2, 16) * unit, rng.uniform(10, 25) * unit
        area, aspect = max(thick * long, 4), long / thick
        angle = rng.uniform(-45, 45)
    h = int(np.clip(np.sqrt(area / aspect), 2, height - 1))
    w = int(np.clip(np.sqrt(area * aspect), 2, width - 1))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    piece = _recoloured(image[top : top + h, left : left + w], rng)
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 1.0)
    side = int(np.ceil(np.hypot(h, w))) if angle else 0
    size = (max(side, w), max(side, h))
    turn[:, 2] += np.array([(size[0] - w) / 2, (size[1] - h) / 2])
    turned = cv2.warpAffine(piece, turn, size, borderMode=cv2.BORDER_REFLECT)
    inside = cv2.warpAffine(np.ones((h, w), np.uint8), turn, size, flags=cv2.INTER_NEAREST)
    y, x = rng.integers(-size[1] // 4, height - size[1] // 2), rng.integers(-size[0] // 4, width - size[0] // 2)
    rows, columns = slice(max(y, 0), min(y + size[1], height)), slice(max(x, 0), min(x + size[0], width))
    part = slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)
    changed = image.copy()
    changed[rows, columns] = np.where(inside[part][..., None] > 0, turned[part], changed[rows, columns])
    return changed


def blend_along_noise(image: Image, rng: np.random.Generator) -> Image:
    """Pieces of the image in another order, blended in by 20 to 100 % where Perlin noise is above .5.

    H x W x 3, uint8 -> the same shape.
    """
    height, width = image.shape[:2]
    cells = 2 ** rng.integers(1, 4, size=2)
    noise = perlin((height, width), (int(cells[0]), int(cells[1])), rng)
    texture = _recoloured(_shuffled(image, rng), rng)
    weight = (noise > 0.5) * rng.uniform(0.2, 1.0)
    blended = image + weight[..., None] * (texture.astype(np.float32) - image)
    return np.asarray(np.clip(np.rint(blended), 0, 255), dtype=np.uint8)


def perlin(size_hw: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Perlin noise: K. Perlin, Improving Noise, SIGGRAPH 2002 (https://doi.org/10.1145/566654.566636).

    Args:
        size_hw: Height and width in pixels.
        cells: Number of gradient cells down and across.
        rng: Random numbers.

    Returns:
        H x W, float32, about -1 to 1.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    places = [(np.arange(n, dtype=np.float64) + 0.5) * c / n for n, c in zip(size_hw, cells, strict=True)]
    (iy, fy), (ix, fx) = ((p.astype(np.int64), p % 1) for p in places)
    rise_y, rise_x = (f**3 * (f * (6 * f - 15) + 10) for f in (fy, fx))
    total = np.zeros(size_hw)
    for dy in (0, 1):
        for dx in (0, 1):
            angle = angles[np.ix_(iy + dy, ix + dx)]
            slope = np.sin(angle) * (fy - dy)[:, None] + np.cos(angle) * (fx - dx)
            total += slope * np.abs(1 - dy - rise_y)[:, None] * np.abs(1 - dx - rise_x)
    return np.asarray(np.sqrt(2) * total, dtype=np.float32)


def _shuffled(image: Image, rng: np.random.Generator, pieces: int = 8) -> Image:
    """The image cut into a grid whose pieces change places."""
    height, width = image.shape[:2]
    whole = cv2.resize(image, (-(-width // pieces) * pieces, -(-height // pieces) * pieces))
    h, w = whole.shape[0] // pieces, whole.shape[1] // pieces
    grid = whole.reshape(pieces, h, pieces, w, 3).swapaxes(1, 2).reshape(-1, h, w, 3)
    again = rng.permutation(grid).reshape(pieces, pieces, h, w, 3).swapaxes(1, 2).reshape(whole.shape)
    return np.ascontiguousarray(again[:height, :width])


def _recoloured(image: Image, rng: np.random.Generator) -> Image:
    """Brightness and contrast changed by up to a tenth."""
    gain, shift = rng.uniform(0.9, 1.1), rng.uniform(-25.5, 25.5)
    changed = (image.astype(np.float32) - 127.5) * gain + 127.5 + shift
    return np.asarray(np.clip(np.rint(changed), 0, 255), dtype=np.uint8)
