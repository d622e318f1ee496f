"""Waist 1: a converted dataset, `datasets/<name>/`, and its complete check.

    dataset = Dataset.open("datasets/bottle")
    for image in dataset.images: dataset.mask(image.id)       # H x W, uint8, 0 or 1

Files: `annotations.json` (COCO instances of every image), `splits.json` (folds and the source's own parts),
`dataset.json` (the card as data), `images/<part>/<type>/<name>`.
Format: https://cocodataset.org/#format-data, with compressed RLE and half-open integer boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from maskbridge import dataset_rules, geometry
from maskbridge.dataset_types import (
    GOOD,
    SYNTHETIC,
    Annotation,
    AnyCard,
    Card,
    Category,
    Coco,
    FoldName,
    Image,
    Splits,
)
from maskbridge.decoding import as_rgb8, decode
from maskbridge.errors import DatasetError
from maskbridge.files import read_regular, sha256_bytes
from maskbridge.folders import recover
from maskbridge.typed_json import fault, malformed

__all__ = [
    "GOOD",
    "SYNTHETIC",
    "Annotation",
    "Category",
    "Dataset",
    "FoldName",
    "Image",
    "Split",
    "read_image",
]

Entry = TypeVar("Entry")

#: What is told of each problem of a dataset: raise it, or put it on a list.
Report = Callable[[str], object]

_COCO, _ANYTHING = msgspec.json.Decoder(Coco), msgspec.json.Decoder(dict[str, Any])
_IMAGE, _ANNOTATION = msgspec.json.Decoder(Image), msgspec.json.Decoder(Annotation)
_CATEGORY = msgspec.json.Decoder(Category)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Image ids of one fold, ascending. `val` is empty for the official split."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    def part(self, name: str) -> tuple[int, ...]:
        """Image ids of `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


@dataclass(frozen=True)
class Dataset:
    """A dataset folder that has been read; its images are read when asked for."""

    path: Path
    images: tuple[Image, ...]
    annotations: tuple[Annotation, ...]
    categories: tuple[Category, ...]
    splits: dict[str, Any]
    card: dict[str, Any]
    annotations_sha256: str
    splits_sha256: str

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Read `annotations.json`, `splits.json` and `dataset.json`; what passes is used without a further look.

        Raises:
            DatasetError: When a file is missing or its content is not what the contract says; `maskbridge check` lists
                every problem.
        """
        folder = Path(path)

        def refuse(problem: str) -> None:
            raise DatasetError(problem, where=folder, remedy="`maskbridge check` lists every problem")

        return cls.read(folder, refuse)

    @classmethod
    def read(cls, folder: Path, report: Report) -> Dataset:
        """Read a dataset folder and report each problem of its three files.

        Args:
            folder: The dataset folder.
            report: Called for each problem. Where it returns, reading goes on without the entry or file.

        Returns:
            The dataset, of what could be read.

        Raises:
            DatasetError: When there is none.
        """
        recover(folder)
        if not (folder / "annotations.json").is_file():
            raise DatasetError(
                "is not a maskbridge dataset",
                where=folder,
                expected="annotations.json inside",
                remedy="make one with `maskbridge convert`",
            )
        data = {name: _content(folder / name) for name in ("annotations.json", "splits.json", "dataset.json")}
        nothing: Coco = {"images": [], "annotations": [], "categories": []}
        coco = _decoded("annotations.json", data["annotations.json"], _COCO, report) or nothing
        images = tuple(_entries("images", coco["images"], _IMAGE, report))
        annotations = tuple(_entries("annotations", coco["annotations"], _ANNOTATION, report))
        categories = tuple(_entries("categories", coco["categories"], _CATEGORY, report))
        splits = _typed("splits.json", data["splits.json"], Splits, report) or {"folds": [], "official": None}
        card = _typed("dataset.json", data["dataset.json"], AnyCard, report) or {}
        dataset = cls(
            path=folder.resolve(),
            images=images,
            annotations=annotations,
            categories=categories,
            splits=splits,
            card=card,
            annotations_sha256=sha256_bytes(data["annotations.json"]),
            splits_sha256=sha256_bytes(data["splits.json"]),
        )
        for problem in chain(
            dataset_rules.image_problems(images, dataset.path),
            dataset_rules.annotation_problems(annotations, categories, dataset.image_by_id),
            dataset_rules.split_problems(splits, set(dataset.image_by_id)),
        ):
            report(problem)
        return dataset

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def product(self) -> str:
        """The product shown, as the source names it."""
        product: str = self.card["product"]
        return product

    @cached_property
    def whole_card(self) -> dict[str, Any]:
        """The card, with everything that this version writes into it.

        Raises:
            DatasetError: When something is missing or of another kind, as in a card of another version.
        """
        try:
            msgspec.convert(self.card, Card)
        except msgspec.ValidationError as error:
            remedy = "convert again: the card is of another version of maskbridge, or was edited"
            raise DatasetError(f"dataset.json{fault(error)}", where=self.path, remedy=remedy) from error
        return self.card

    @property
    def bit_depth(self) -> int:
        """Bits that the pixels of 16-bit images use: 10, 12, 14 or 16; 8 where there are no such images."""
        return int(self.card.get("bit_depth", 8))

    def read_at_depth(self, bit_depth: int) -> Dataset:
        """The same dataset, its 16-bit images scaled as those that a model was trained on.

        Raises:
            DatasetError: When its images have more bits than that.
        """
        if bit_depth <= 8 or self.bit_depth <= 8 or bit_depth == self.bit_depth:
            return self
        if self.bit_depth > bit_depth:
            raise DatasetError(
                "has images of another depth than the run was trained on",
                where=self.path,
                found=f"{self.bit_depth} bit",
                expected=f"at most {bit_depth} bit",
                remedy="train on images of this depth",
            )
        return replace(self, card={**self.card, "bit_depth": bit_depth})

    @property
    def fold_count(self) -> int:
        """Number of folds."""
        return len(self.splits["folds"])

    @cached_property
    def image_by_id(self) -> dict[int, Image]:
        """Images by id."""
        return {image.id: image for image in self.images}

    @cached_property
    def annotations_by_image(self) -> dict[int, list[Annotation]]:
        """Annotations by image id; images without any have an empty list."""
        table: dict[int, list[Annotation]] = {image.id: [] for image in self.images}
        for annotation in self.annotations:
            table[annotation["image_id"]].append(annotation)
        return table

    @cached_property
    def without_mask(self) -> frozenset[int]:
        """Ids of defect images without a defect pixel: which of their pixels are good, nobody can tell."""
        marked = self.annotations_by_image
        return frozenset(image.id for image in self.images if not image.is_good and not marked[image.id])

    def image_path(self, image_id: int) -> Path:
        """Absolute path of an image file."""
        return self.path / "images" / self.image_by_id[image_id].file_name

    def read_image(self, image_id: int) -> npt.NDArray[np.uint8]:
        """Read an image for a model: H x W x 3, uint8, RGB, in the frame of the masks, 16 bits scaled by their depth.

        Raises:
            DatasetError: When the file is missing, damaged, or no image.
        """
        return read_image(self.image_path(image_id), self.bit_depth)

    def mask(self, image_id: int) -> geometry.Mask:
        """Union of an image's instances, H x W, uint8, 0 or 1."""
        image = self.image_by_id[image_id]
        return geometry.union((a["segmentation"] for a in self.annotations_by_image[image_id]), image.size_hw)

    def split(self, fold: FoldName) -> Split:
        """Train, val and test image ids of one fold, or of the source's own parts.

        Raises:
            DatasetError: When there is no such fold, or the source has no parts.
        """
        if fold == "official":
            official = self.splits["official"]
            if official is None:
                raise DatasetError(
                    "the source has no train and test parts of its own", where=self.path, found="official"
                )
            return Split(train=tuple(official["train"]), val=(), test=tuple(official["test"]))
        if not self.fold_count:
            raise DatasetError("has no folds", where=self.path, found=fold)
        if not 0 <= fold < self.fold_count:
            raise DatasetError("no such fold", where=self.path, found=fold, expected=f"0 to {self.fold_count - 1}")
        parts = self.splits["folds"][fold]
        return Split(train=tuple(parts["train"]), val=tuple(parts["val"]), test=tuple(parts["test"]))

    def fold_of_image(self) -> dict[int, int]:
        """For every labelled image the fold whose test part it is in."""
        return {image_id: fold for fold in range(self.fold_count) for image_id in self.split(fold).test}


def read_image(path: Path, bit_depth: int = 8) -> npt.NDArray[np.uint8]:
    """Read an image file that is of no dataset; `Dataset.read_image` knows the depth of its own.

    Args:
        path: The file.
        bit_depth: Of 16-bit images; 8 where it is not known, which scales them as 16 bits.

    Returns:
        H x W x 3, uint8, RGB, stored frame: an EXIF orientation is not applied. Grey is repeated over the channels,
        alpha is dropped.

    Raises:
        DatasetError: When the file cannot be decoded.
    """
    return as_rgb8(decode(read_regular(path, error=DatasetError), path, DatasetError).pixels, bit_depth)


def _content(path: Path) -> bytes:
    return read_regular(path, error=DatasetError)


def _decoded(name: str, data: bytes, decoder: msgspec.json.Decoder[Entry], report: Report) -> Entry | None:
    """A value of its type, or None after a report."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        report(f"{name}{fault(error)}")
    except (ValueError, RecursionError) as error:
        report(f"{name}: not a readable JSON file; found {malformed(data, error)}")
    return None


def _entries(
    name: str, entries: Sequence[msgspec.Raw], decoder: msgspec.json.Decoder[Entry], report: Report
) -> Iterator[Entry]:
    for index, entry in enumerate(entries):
        value = _decoded(f"annotations.json, {name}[{index}]", bytes(entry), decoder, report)
        if value is not None:
            yield value


def _typed(name: str, data: bytes, kind: Any, report: Report) -> dict[str, Any] | None:
    """All of an object, of which a type says what is relied on; None after a report."""
    content = _decoded(name, data, _ANYTHING, report)
    if content is None:
        return None
    try:
        msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        report(f"{name}{fault(error)}")
        return None
    return content
