"""What merging the folds of a cross-validation costs, simulated: `benchmarks/evaluation.py --folds`.

Five models, one for each fold, each of the same quality and on a scale of its own, judge 4 good and 13 defective images
as in bottle; `val` has 4 and 12 others. The truth is what one model reaches on very many images. Printed is of each
figure, within folds and pooled after the mapping to ranks in `val`, how far its mean is from the truth, how often its
interval holds it, and how often two runs of the same quality, the other one with equal scales, are called different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.comparison import LEVEL, p_value
from evaluation.image_metrics import POOLED, ImageMetrics
from evaluation.intervals import Resampling, measure
from evaluation.pixel_metrics import PixelMetrics
from maskbridge.derive import PredictionView
from maskbridge.fold_ranks import Rank, mapped
from maskbridge.predictions import Run

FOLDS = 5
TEST, VAL = (4, 13), (4, 12)
WARPS = ("none", "affine", "exponential", "sigmoid", "product")

#: Distance of good and defective images, and of pixels, in standard deviations.
IMAGE_SHIFT, PIXEL_SHIFT = 2.5, 1.5

#: Share of the variance that two runs have in common.
LIKENESS = 0.5

SIZE_HW = (16, 24)

#: Standard deviation of what all pixels of an image have in common.
IMAGE_EFFECT = 0.3

#: Images that the truth is taken from.
MANY = 4250

WITHIN, POOLED_TOO = "within folds", "mapped and pooled"

Array = npt.NDArray[Any]

#: By figure its truth and, of each round, its value, whether the interval holds the truth, and the test's call.
Found = dict[str, tuple[float, list[tuple[float, bool, bool]]]]
Warp = Callable[[Array], Array]


def fold_scales(rounds: int, samples: int) -> None:
    """Print the simulation for each kind of scale: so many rounds of maps, twice as many of image scores.

    What is compared within folds does not depend on the scale, so that its last rows are over all kinds together.
    """
    print("figure | scales | truth | bias ± standard error | interval holds it | equal runs called different")
    every: Found = {}
    for place, kind in enumerate(WARPS):
        for judged, times in ((_images, 2), (_pixels, 1)):
            found = _repeated(judged(kind, samples, place), times * rounds)
            _told(found, kind)
            for name, (truth, each) in found.items():
                if WITHIN in name:
                    every.setdefault(name, (truth, []))[1].extend(each)
    _told(every, "all of these")


def _told(found: Found, kind: str) -> None:
    for name, (truth, each) in found.items():
        values, held, called = np.array(each).T
        error = values.std(ddof=1) / len(values) ** 0.5
        shares = f"{100 * held.mean():.1f} % | {100 * called.mean():.1f} %"
        print(f"{name} | {kind} | {truth:.4f} | {values.mean() - truth:+.4f} ± {error:.4f} | {shares}", flush=True)


Round = dict[str, tuple[float, dict[str, Any], Array, Array]]


def _repeated(rounds: Iterator[Round], count: int) -> Found:
    """By figure its truth and, of each round, its value, whether the interval holds the truth, and the test's call."""
    found: Found = {}
    for _, each in zip(range(count), rounds, strict=False):
        for name, (truth, metric, sampled, other) in each.items():
            difference = sampled - other
            difference = difference[np.isfinite(difference)]
            different = bool(np.ptp(difference) > 1e-12 and p_value(difference) < LEVEL)
            held = metric["low"] <= truth <= metric["high"]
            found.setdefault(name, (truth, []))[1].append((metric["value"], held, different))
    return found


def warp(kind: str, shift: float, rng: np.random.Generator) -> Warp:
    """A scale that a model may have: grows everywhere."""
    middle = rng.normal(shift / 2, 0.8)
    if kind == "affine":
        factor, offset = np.exp(rng.normal(0, 0.7)), rng.normal()
        return lambda z: factor * z + offset
    if kind == "exponential":
        factor, offset = np.exp(rng.normal(-0.5, 0.4)), rng.normal(0, 0.7)
        return lambda z: np.exp(factor * z + offset)
    if kind == "sigmoid":  # confidences that saturate elsewhere in each model
        steepness = np.exp(rng.normal(np.log(2.5), 0.5))
        return lambda z: 1 / (1 + np.exp(-steepness * (z - middle)))
    if kind == "product":  # of a detector's confidence and a head's own estimate of the mask
        level, power = rng.uniform(0.5, 1), np.exp(rng.normal(0, 0.5))
        return lambda z: level * (1 / (1 + np.exp(-2 * (z - middle)))) ** power
    return lambda z: z


def _layout(times: int = 1) -> tuple[npt.NDArray[np.bool_], Array]:
    """Whether each image is defective, and its fold."""
    defective = np.tile(np.repeat([False, True], TEST), FOLDS * times)
    return defective, np.repeat(np.arange(FOLDS), sum(TEST) * times)


def _images(kind: str, samples: int, seed: int) -> Iterator[Round]:
    rng = np.random.default_rng([1, seed])
    defective, fold = _layout()
    validated = np.repeat([False, True], VAL)
    truth = NormalDist().cdf(IMAGE_SHIFT / 2**0.5)

    def run(own_kind: str, shared: Array, resampling: Resampling) -> Any:
        own = rng.normal(size=len(fold))
        scores = IMAGE_SHIFT * defective + np.sqrt(LIKENESS) * shared + np.sqrt(1 - LIKENESS) * own
        ranks: dict[str, Rank] = {}
        for number in range(FOLDS):
            scale = warp(own_kind, IMAGE_SHIFT, rng)
            scores[fold == number] = scale(scores[fold == number])
            ranks[str(number)] = Rank.among(scale(rng.normal(size=len(validated)) + IMAGE_SHIFT * validated))
        one_scale = mapped(ranks, fold.astype(str).tolist(), scores)
        family = ImageMetrics(scores, defective, None, "-", folds=fold, one_scale=one_scale)
        return measure(family, resampling, derived=False)

    while True:
        resampling = Resampling(
            np.arange(len(fold)), defective, samples=samples, seed=int(rng.integers(2**31)), folds=fold
        )
        shared = rng.normal(size=len(fold))
        (metrics, sampled), (_, other) = (run(each, shared, resampling) for each in (kind, "none"))
        names = {f"image AUROC {WITHIN}": "auroc", f"image AUROC {POOLED_TOO}": POOLED}
        yield {told: (truth, metrics[name], sampled[name], other[name]) for told, name in names.items()}


@dataclass(frozen=True)
class _Maps:
    """Made-up maps and masks of some images.

    Attributes:
        masks: N x H x W, uint8.
        noise: What is added to the defects, N x H x W.
    """

    masks: Array
    noise: Array

    @classmethod
    def drawn(cls, defective: npt.NDArray[np.bool_], rng: np.random.Generator) -> _Maps:
        """One or two rectangles in each defective image."""
        height, width = SIZE_HW
        masks = np.zeros((len(defective), *SIZE_HW), np.uint8)
        for place in np.flatnonzero(defective):
            for _ in range(rng.integers(1, 3)):
                h, w = rng.integers(2, 8, 2)
                top, left = rng.integers(0, height - h), rng.integers(0, width - w)
                masks[place, top : top + h, left : left + w] = 1
        return cls(masks, cls.fresh(len(defective), rng))

    @staticmethod
    def fresh(count: int, rng: np.random.Generator) -> Array:
        """Noise of variance one, a part of it common to an image."""
        common = IMAGE_EFFECT * rng.normal(size=(count, 1, 1))
        return common + np.sqrt(1 - IMAGE_EFFECT**2) * rng.normal(size=(count, *SIZE_HW))

    @property
    def scores(self) -> Array:
        """Scores on the model's scale before it is warped."""
        return PIXEL_SHIFT * self.masks + self.noise


def _pixels(kind: str, samples: int, seed: int) -> Iterator[Round]:
    rng = np.random.default_rng([2, seed])
    defective, fold = _layout()
    validated = np.repeat([False, True], VAL)
    every = _Maps.drawn(np.tile(np.repeat([False, True], TEST), MANY // sum(TEST)), np.random.default_rng(3))
    truth = _family(every.masks, every.scores, None, {}).point()

    def run(own_kind: str, tested: _Maps, resampling: Resampling) -> Any:
        own = _Maps.fresh(len(fold), rng)
        scores = PIXEL_SHIFT * tested.masks + np.sqrt(LIKENESS) * tested.noise + np.sqrt(1 - LIKENESS) * own
        ranks: dict[str, Rank] = {}
        for number in range(FOLDS):
            scale = warp(own_kind, PIXEL_SHIFT, rng)
            scores[fold == number] = scale(scores[fold == number])
            ranks[str(number)] = Rank.among(scale(_Maps.drawn(validated, rng).scores).astype(np.float32).ravel())
        one_scale = np.stack([ranks[str(f)](each.astype(np.float32)) for f, each in zip(fold, scores, strict=True)])
        within = _family(tested.masks, scores, fold, ranks)
        pooled = _family(tested.masks, one_scale, None, {})
        return [measure(family, resampling, derived=False) for family in (within, pooled)]

    while True:
        resampling = Resampling(
            np.arange(len(fold)), defective, samples=samples, seed=int(rng.integers(2**31)), folds=fold
        )
        tested = _Maps.drawn(defective, rng)
        mine, others = (run(each, tested, resampling) for each in (kind, "none"))
        yield {
            f"pixel {told} {how}": (truth[name], metrics[name], sampled[name], other[name])
            for how, (metrics, sampled), (_, other) in zip((WITHIN, POOLED_TOO), mine, others, strict=True)
            for told, name in (("AUROC", "auroc"), ("AUPRO@0.3", "aupro_30"))
        }


def _family(masks: Array, scores: Array, fold: Array | None, ranks: dict[str, Rank]) -> PixelMetrics:
    """Pixel metrics of made-up maps; without `fold` one model judged all."""
    ids = range(len(masks))
    of_image = dict.fromkeys(ids, 0) if fold is None else dict(zip(ids, fold.tolist(), strict=True))
    dataset: Any = SimpleNamespace(
        mask=lambda image_id: masks[image_id],
        annotations_by_image={image_id: [1] if masks[image_id].any() else [] for image_id in ids},
        image_by_id={image_id: SimpleNamespace(size_hw=SIZE_HW) for image_id in ids},
        fold_of_image=lambda: of_image,
    )
    view = PredictionView(Run(Path("made-up"), {"fold": "all"}), dataset, "crossval", image_ids=ids)
    return PixelMetrics(view, lambda image_id: scores[image_id].astype(np.float32), ranks)
