"""The complete check of a dataset folder: every problem at once.

    maskbridge check datasets/bottle

Hashes of the files and of every image, sizes, masks, boxes, areas, categories, and splits that tear no group apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from maskbridge import geometry
from maskbridge.dataset import Dataset
from maskbridge.decoding import decode
from maskbridge.errors import MaskbridgeError
from maskbridge.files import sha256_bytes
from maskbridge.run_lengths import run_lengths


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
        data = path.read_bytes()
        found = sha256_bytes(data)
        if found != image.sha256:
            yield f"{where}: sha256 is {found}, recorded was {image.sha256}"
            continue
        try:
            pixels = decode(data, Path(image.file_name)).pixels
        except MaskbridgeError as error:
            yield f"{where}: {error}"
            continue
        if pixels.shape[:2] != image.size_hw:
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
            pixels = int(run_lengths(rle["counts"]).sum())
            if pixels != image.height * image.width:
                yield f"{where}: RLE has runs of {pixels} pixels, image has {image.height * image.width}"
                continue
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
    labelled = set(official["test"]) if official else {image.id for image in dataset.images if image.part != "train"}
    for image_id in sorted(labelled - set(seen)):
        yield f"splits.json: labelled image {image_id} is in no test part"


def _duplicates(what: str, values: list[Any]) -> Iterator[str]:
    for value, times in Counter(values).items():
        if times > 1:
            yield f"{what} {value} occurs {times} times"
