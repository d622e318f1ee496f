"""Waist 1: a converted dataset, `datasets/<name>/`, and its complete check.

    dataset = Dataset.open("datasets/bottle")
    for image in dataset.images: dataset.mask(image.id)       # H x W, uint8, 0 or 1

Files: `annotations.json` (COCO instances of every image), `splits.json` (folds and the source's own parts),
`dataset.json` (the card as data), `images/<part>/<type>/<name>`.
Format: https://cocodataset.org/#format-data, with compressed RLE and half-open integer boxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge import geometry
from maskbridge.errors import DatasetError, MaskbridgeError
from maskbridge.files import read_json, sha256_bytes, sha256_file

GOOD = "good"
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


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image for a model.

    Returns:
        H x W x 3, uint8, RGB, in the frame of the masks: an EXIF orientation is not applied. Grey is repeated over
        the channels, 16 bit is scaled to 8, alpha is dropped.

    Raises:
        DatasetError: When the file cannot be decoded.
    """
    raw = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if raw is None:
        raise DatasetError("cannot be decoded as an image", where=path, remedy="run `maskbridge check` on the dataset")
    return cast("npt.NDArray[np.uint8]", raw)


def check(path: str | Path) -> list[str]:
    """Every problem of a dataset folder, one line each; an empty list means that it is whole."""
    folder = Path(path)
    try:
        dataset = Dataset.open(folder)
    except MaskbridgeError as error:
        return [str(error)]
    problems: list[str] = []
    for look in (_check_hashes, _check_images, _check_annotations, _check_splits):
        try:
            problems.extend(look(dataset))
        except Exception as error:  # whatever a damaged file does, it is one line of the report
            problems.append(f"{folder}: has an entry of the wrong kind ({error!r})")
    return problems


def _check_hashes(dataset: Dataset) -> Iterator[str]:
    recorded = dataset.card.get("sha256", {})
    for name, found in (
        ("annotations.json", dataset.annotations_sha256),
        ("splits.json", dataset.splits_sha256),
    ):
        if recorded.get(name) != found:
            yield f"dataset.json: sha256 of {name} is {found}, recorded was {recorded.get(name)}"


def _check_images(dataset: Dataset) -> Iterator[str]:
    yield from _duplicates("image id", [image.id for image in dataset.images])
    yield from _duplicates("file_name", [image.file_name for image in dataset.images])
    root = (dataset.path / "images").resolve()
    for image in dataset.images:
        where = f"image {image.id} ({image.file_name})"
        if not isinstance(image.id, int) or image.id < 1:
            yield f"{where}: id is not an integer of at least 1"
        path = dataset.path / "images" / image.file_name
        if root not in Path(path.parent.resolve() / path.name).parents or ".." in Path(image.file_name).parts:
            yield f"{where}: file_name leaves the images folder"
            continue
        if not path.is_file():
            yield f"{where}: file is missing"
            continue
        found = sha256_file(path)
        if found != image.sha256:
            yield f"{where}: sha256 is {found}, recorded was {image.sha256}"
            continue
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            yield f"{where}: cannot be decoded"
        elif pixels.shape[:2] != image.size_hw:
            yield f"{where}: is {pixels.shape[1]}x{pixels.shape[0]}, recorded was {image.width}x{image.height}"


def _check_annotations(dataset: Dataset) -> Iterator[str]:
    yield from _duplicates("annotation id", [annotation.get("id", 0) for annotation in dataset.annotations])
    yield from _duplicates("category id", [category["id"] for category in dataset.categories])
    names = {category["id"]: category["name"] for category in dataset.categories}
    for annotation in dataset.annotations:
        where = f"annotation {annotation.get('id')}"
        try:
            image = dataset.image_by_id.get(annotation["image_id"])
            if not isinstance(annotation["id"], int) or annotation["id"] < 1:
                yield f"{where}: id is not an integer of at least 1"
            if annotation["iscrowd"] != 0:
                yield f"{where}: iscrowd is {annotation['iscrowd']}, must be 0"
            if image is None:
                yield f"{where}: image {annotation['image_id']} is not listed"
                continue
            if names.get(annotation["category_id"]) != image.defect_type:
                yield (
                    f"{where}: category {annotation['category_id']} is {names.get(annotation['category_id'])!r}, "
                    f"its image is of type {image.defect_type!r}"
                )
            rle = annotation["segmentation"]
            if tuple(rle["size"]) != image.size_hw:
                yield f"{where}: RLE size {rle['size']}, image is {list(image.size_hw)} [height, width]"
                continue
            geometry.run_lengths(rle)
            mask = geometry.decode(rle)
            if not mask.any():
                yield f"{where}: has no pixel"
            if int(mask.sum()) != annotation["area"]:
                yield f"{where}: area is {annotation['area']}, the mask has {int(mask.sum())} pixels"
            tight = list(cv2.boundingRect(mask))
            if annotation["bbox"] != tight:
                yield f"{where}: bbox is {annotation['bbox']}, the tight box is {tight}"
        except Exception as error:  # whatever a damaged entry does, it is one line of the report
            yield f"{where}: cannot be read ({error!r})"


def _check_splits(dataset: Dataset) -> Iterator[str]:
    known = set(dataset.image_by_id)
    group = {image.id: image.group for image in dataset.images}
    seen: Counter[int] = Counter()
    for number, fold in enumerate(dataset.splits.get("folds", [])):
        parts = {name: set(fold.get(name, [])) for name in ("train", "val", "test")}
        for unknown in sorted(set().union(*parts.values()) - known):
            yield f"splits.json, fold {number}: image {unknown} is not listed"
        for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
            for image_id in sorted(parts[one] & parts[two]):
                yield f"splits.json, fold {number}: image {image_id} is in {one} and in {two}"
            torn = {group.get(i) for i in parts[one]} & {group.get(i) for i in parts[two]} - {None}
            for number_of_group in sorted(value for value in torn if value is not None):
                yield f"splits.json, fold {number}: group {number_of_group} is torn between {one} and {two}"
        seen.update(parts["test"])
    for image_id in sorted(i for i, times in seen.items() if times > 1):
        yield f"splits.json: image {image_id} is in {seen[image_id]} test parts"
    official = dataset.splits.get("official")
    labelled = set(official["test"]) if official else known
    for image_id in sorted(labelled - set(seen)):
        yield f"splits.json: labelled image {image_id} is in no test part"


def _duplicates(what: str, values: list[Any]) -> Iterator[str]:
    for value, times in Counter(values).items():
        if times > 1:
            yield f"{what} {value} occurs {times} times"
