"""What YOLO-World is trained on: exact YOLO labels of one fold, tiles and rehearsed images among them if asked for.

prepared = prepare(data, prompts, config, context)
prepared.yaml                                       # work/yolo/data.yaml, text features beside it
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune._yolo_world_prompts import MOST_TYPES, as_read, default_prompt
from finetune._yolo_world_text import Features, source_name, text_features, write_features
from finetune._yolo_world_tiles import tiled
from maskbridge import plugins
from maskbridge.approach import Context, TrainData
from maskbridge.dataset import SYNTHETIC, Dataset
from maskbridge.errors import DatasetError, OptionError
from maskbridge.export import ExportOptions
from maskbridge.files import read_json, write_text
from maskbridge.progress import say
from maskbridge.start_weights import shared_images

if TYPE_CHECKING:
    from finetune.yolo_world import Config

#: Text features by prompt in the scratch folder, kept between starts of one training; by class name beside `data.yaml`.
CACHE = "text-features.npz"

#: Export format of each kind of labels; every image has labels of one kind, or Ultralytics drops the polygons.
FORMATS = {"boxes": "yolo", "polygons": "yolo-seg"}


@dataclass(frozen=True)
class Prepared:
    """Labels on disk.

    Attributes:
        yaml: Path of `data.yaml`.
        features: Text features of the run's own types in class order, N x 512, float32, unit length.
        encoder: What they come from.
        good, defective, synthetic: Images, or tiles, of the training part.
        rehearsed: Images of another dataset beside them.
        rehearsed_left_out: Images of it that belong together with some of this fold's `val` or `test`.
        also_trained_on: That dataset, its fold, and the images of it that were at hand.
        left_out_tiles: Tiles with no more than a sliver of a defect.
    """

    yaml: Path
    features: Features
    encoder: str
    good: int
    defective: int
    synthetic: int
    rehearsed: int
    rehearsed_left_out: int
    left_out_tiles: int
    also_trained_on: tuple[tuple[Dataset, int, tuple[int, ...]], ...] = ()

    @property
    def trained_on(self) -> dict[str, int]:
        """Images, or tiles, as run.json counts them."""
        made = {"synthetic": self.synthetic} if self.synthetic else {}
        return {"good": self.good, "defective": self.defective, **made}


def prepare(data: TrainData, prompts: Mapping[str, str], config: Config, context: Context) -> Prepared:
    """Write labels, images and text features of a fold into the run's scratch folder.

    Raises:
        DatasetError: When the rehearsed dataset cannot be read.
        OptionError: When text features cannot be had, or there are too many types together.
    """
    texts = dict(prompts)
    rehearsed = Dataset.open(config.rehearse) if config.rehearse else None
    numbers: dict[int, int] = {}
    leaking = 0
    if rehearsed is not None:
        numbers = _add_classes(texts, rehearsed)
        rehearsed, leaking = _without_held_out(rehearsed, data)
        if not any(rehearsed.annotations_by_image[i] for i in rehearsed.split(0).train):
            raise OptionError(
                "--rehearse has no image with a defect that this fold is not stopped early or tested on",
                where=rehearsed.path,
                found=f"{leaking} such images",
                remedy="name another dataset",
            )
    features = text_features(config.text_features, list(texts.values()), context.work / CACHE)
    _refuse_equal(features, list(texts))
    out = context.work / "yolo"
    dataset, fold, left_out = data.dataset, _number(data.fold), 0
    if config.tile:
        dataset, left_out = tiled(
            dataset, fold, tile=config.tile, overlap=config.tile_overlap, out=context.work / "tiles"
        )
        fold = 0
    options = ExportOptions(fold=fold, negatives=config.negatives, seed=context.seed, overwrite=True)
    plugins.load("format", FORMATS[config.labels]).export(dataset, out, options)
    count = read_json(out / "export-report.json")["images"]["train"]
    with_defect = [dataset.image_by_id[i] for i in dataset.split(fold).train if dataset.annotations_by_image[i]]
    made = sum(image.defect_type == SYNTHETIC for image in with_defect)
    kinds = count - len(with_defect), len(with_defect) - made, made
    extra = 0 if rehearsed is None else _add_images(out, rehearsed, numbers, options, FORMATS[config.labels])
    write_text(out / "data.yaml", _yaml(texts, rehearse=rehearsed is not None))
    encoder = source_name(config.text_features)
    write_features(out / CACHE, list(texts), features, encoder)
    shutil.rmtree(context.work / "tiles", ignore_errors=True)  # the export has linked them
    if rehearsed is not None:
        say(f"yolo-world: {extra} images rehearsed, {leaking} left out that this fold is stopped early or tested on")
    if left_out:
        say(f"yolo-world: {left_out} tiles with a sliver of a defect left out")
    own = features[: len(prompts)]
    also = () if rehearsed is None else ((rehearsed, 0, rehearsed.split(0).train),)
    return Prepared(out / "data.yaml", own, encoder, *kinds, extra, leaking, left_out, also)


def refuse_without_defects(data: TrainData) -> None:
    """Raises: DatasetError, when no image of `train`, or none of `val`, has a defect."""
    for part, image_ids in (("to train on", data.train), ("of val", data.val)):
        if not any(data.dataset.annotations_by_image[image_id] for image_id in image_ids):
            raise DatasetError(
                f"no image {part} has a defect",
                where=data.dataset.path,
                found=f"fold {data.fold}",
                remedy="label more images, or convert with fewer --folds",
            )


def _add_classes(texts: dict[str, str], rehearsed: Dataset) -> dict[int, int]:
    """Add the classes of another dataset behind ours; one with a prompt that is there already is that class."""
    order = [as_read(text) for text in texts.values()]
    numbers: dict[int, int] = {}
    for number, category in enumerate(rehearsed.categories):
        text = default_prompt(rehearsed.product, category["name"])
        if as_read(text) not in order:
            texts[text.replace("/", " ")] = text
            order.append(as_read(text))
        numbers[number] = order.index(as_read(text))
    if len(texts) > MOST_TYPES:
        raise OptionError(
            "too many defect types together with --rehearse",
            found=len(texts),
            expected=f"at most {MOST_TYPES}",
        )
    return numbers


def _without_held_out(rehearsed: Dataset, data: TrainData) -> tuple[Dataset, int]:
    """The training part of fold 0 of another dataset, without what belongs to images that this run is judged by."""
    held = {image.id for image in data.dataset.images} - set(data.train)
    train = rehearsed.split(0).train
    leaking = shared_images(rehearsed, train, data.dataset, sorted(held))
    kept = [image_id for image_id in train if image_id not in leaking]
    fold = {"train": kept, "val": [], "test": []}
    return replace(rehearsed, splits={"folds": [fold], "official": None}), len(train) - len(kept)


def _refuse_equal(features: Features, names: list[str]) -> None:
    for first, second in itertools.combinations(range(len(names)), 2):
        if np.array_equal(features[first], features[second]):
            raise OptionError(
                "two defect types have the same text features, and could not be told apart",
                found=f"{names[first]} and {names[second]}",
                remedy="give one of them another --prompt",
            )


def _add_images(out: Path, rehearsed: Dataset, numbers: Mapping[int, int], options: ExportOptions, format: str) -> int:
    """Put the defective training images of fold 0 of another dataset beside ours; its good ones by `--negatives`."""
    side = out.with_name("rehearsed")
    plugins.load("format", format).export(
        rehearsed, side, ExportOptions(fold=0, negatives=options.negatives, seed=options.seed, overwrite=True)
    )
    for label in sorted((side / "labels" / "train").glob("*.txt")):
        lines = [line.partition(" ") for line in label.read_text(encoding="utf-8").splitlines()]
        label.write_text("".join(f"{numbers[int(number)]} {rest}\n" for number, _, rest in lines), encoding="utf-8")
    for kind in ("images", "labels"):
        (side / kind / "train").rename(out / kind / "rehearsed")
    shutil.rmtree(side)
    return sum(1 for _ in (out / "images" / "rehearsed").iterdir())


def _yaml(texts: Mapping[str, str], *, rehearse: bool) -> str:
    """As the export writes it (without `path:`), with the rehearsed folder and classes."""
    import json

    train = "[images/train, images/rehearsed]" if rehearse else "images/train"
    names = [f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(texts)]
    return "\n".join([f"train: {train}", "val: images/val", "test: images/test", "names:", *names]) + "\n"


def _number(fold: int | str) -> int:
    if not isinstance(fold, int):
        raise OptionError("yolo-world is trained on folds", found=fold)
    return fold
