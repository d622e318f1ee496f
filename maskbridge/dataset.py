"""Waist 1: a converted dataset, `datasets/<name>/`, and its complete check.

    dataset = Dataset.open("datasets/bottle")
    for image in dataset.images: dataset.mask(image.id)       # H x W, uint8, 0 or 1

Files: `annotations.json` (COCO instances of every image), `splits.json` (folds and the source's own parts),
`dataset.json` (the card as data), `images/<part>/<type>/<name>`.
Format: https://cocodataset.org/#format-data, with compressed RLE and half-open integer boxes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import numpy as np
import numpy.typing as npt

from maskbridge import geometry
from maskbridge.decoding import as_rgb8, decode, read_regular
from maskbridge.errors import DatasetError
from maskbridge.files import read_json, sha256_bytes, sha256_file

GOOD = "good"
#: Type of defects that were made by `maskbridge synthesize`.
SYNTHETIC = "synthetic"
FoldName = int | Literal["official"]


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a dataset."""

    id: int
    file_name: str
    width: int
    height: int
    sha256: str
    origin: str
    group: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def part(self) -> str:
        """The source's own part: `train`, `test`, …, or `all`."""
        return self.origin.split("/", 1)[0]

    @property
    def defect_type(self) -> str:
        """Defect type by the source's folder; `good` for an image without a defect."""
        return self.origin.split("/", 1)[1]

    @property
    def is_good(self) -> bool:
        """Whether the source calls the image free of defects."""
        return self.defect_type == GOOD


class Annotation(TypedDict):
    """One defect instance: a COCO annotation."""

    id: int
    image_id: int
    category_id: int
    segmentation: geometry.RLE
    bbox: list[int]
    area: int
    iscrowd: int


class Category(TypedDict):
    """One defect type; `supercategory` is the product."""

    id: int
    name: str
    supercategory: str


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
        """Read `annotations.json`, `splits.json` and `dataset.json`.

        Raises:
            DatasetError: When a file is missing or has no usable content; `maskbridge check` lists every problem.
        """
        folder = Path(path)
        if not (folder / "annotations.json").is_file():
            raise DatasetError(
                "is not a maskbridge dataset",
                where=folder,
                expected="annotations.json inside",
                remedy="make one with `maskbridge convert`",
            )
        try:
            annotation_bytes = (folder / "annotations.json").read_bytes()
            coco = read_json(folder / "annotations.json")
            return cls(
                path=folder.resolve(),
                images=tuple(Image(**image) for image in coco["images"]),
                annotations=tuple(coco["annotations"]),
                categories=tuple(coco["categories"]),
                splits=cast(dict[str, Any], read_json(folder / "splits.json")),
                card=cast(dict[str, Any], read_json(folder / "dataset.json")),
                annotations_sha256=sha256_bytes(annotation_bytes),
                splits_sha256=sha256_file(folder / "splits.json"),
            )
        except (KeyError, TypeError, OSError) as error:
            raise DatasetError(
                "cannot be read as a dataset",
                where=folder,
                found=repr(error),
                remedy="run `maskbridge check` on it",
            ) from error

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def product(self) -> str:
        """The product shown, as the source names it."""
        return str(self.card["product"])

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
            if annotation["image_id"] not in table:
                raise DatasetError(
                    f"annotation {annotation['id']} is of an image that is not listed",
                    where=self.path / "annotations.json",
                    found=f"image {annotation['image_id']}",
                    remedy="run `maskbridge check` on the dataset",
                )
            table[annotation["image_id"]].append(annotation)
        return table

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
