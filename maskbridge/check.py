"""The complete check of a dataset folder: every problem at once.

    maskbridge check datasets/bottle

What `Dataset.open` refuses (see `maskbridge.dataset_rules`), hashes of the files and of every image, types of the
instances, and splits that tear no group apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maskbridge.dataset import Dataset
from maskbridge.dataset_rules import name_problem
from maskbridge.decoding import decode
from maskbridge.errors import DatasetError, MaskbridgeError
from maskbridge.files import read_regular, sha256_bytes
from maskbridge.official import leak_note, two_types


def check(path: str | Path) -> list[str]:
    """Every problem of a dataset folder, one line each; an empty list means that it is whole."""
    return check_and_remark(path)[0]


def check_and_remark(path: str | Path) -> tuple[list[str], list[str]]:
    """Every problem of a dataset folder, and what to look at in one that is whole, one line each."""
    problems: list[str] = []
    try:
        dataset = Dataset.read(Path(path), problems.append)
    except MaskbridgeError as error:
        return [str(error)], []
    for look in (_check_card, _check_images, _check_types, _check_groups):
        problems.extend(look(dataset))
    return problems, list(_remarks(dataset))


def _remarks(dataset: Dataset) -> Iterator[str]:
    """One picture under two types, and leaks across the official parts."""
    try:
        pairs = dataset.whole_card["rules"]["groups"].get("near_duplicates", [])
    except MaskbridgeError:  # a problem, and told as one
        pairs = []
    types = {image.file_name: image.defect_type for image in dataset.images}
    for one, other in two_types(pairs, types):
        yield f"one picture under two types: {one} and {other}"
    note = leak_note(dataset.images, dataset.splits.get("official"))
    if note is not None:
        yield note


def _check_card(dataset: Dataset) -> Iterator[str]:
    if not dataset.card:  # it could not be read
        return
    try:
        dataset.whole_card  # noqa: B018
    except MaskbridgeError as error:
        yield str(error)
    recorded = dataset.card.get("sha256", {})
    for name, found in (
        ("annotations.json", dataset.annotations_sha256),
        ("splits.json", dataset.splits_sha256),
    ):
        if recorded.get(name) != found:
            yield f"dataset.json: sha256 of {name} is {found}, recorded was {recorded.get(name)}"


def _check_images(dataset: Dataset) -> Iterator[str]:
    for image in dataset.images:
        where = f"image {image.id} ({image.file_name})"
        path = dataset.path / "images" / image.file_name
        if name_problem(image.file_name) is not None:
            continue
        if not path.is_file():
            yield f"{where}: file is missing"
            continue
        try:
            data = read_regular(path, error=DatasetError)
        except DatasetError as error:
            yield f"{where}: {error}"
            continue
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


def _check_types(dataset: Dataset) -> Iterator[str]:
    names = {category["id"]: category["name"] for category in dataset.categories}
    for annotation in dataset.annotations:
        image, number = dataset.image_by_id.get(annotation["image_id"]), annotation["category_id"]
        if image is not None and number in names and names[number] != image.defect_type:
            yield (
                f"annotation {annotation['id']}: category {number} is {names[number]!r}, "
                f"its image is of type {image.defect_type!r}"
            )


def _check_groups(dataset: Dataset) -> Iterator[str]:
    """Groups that a fold tears apart, and labelled images that no fold tests."""
    group = {image.id: image.group for image in dataset.images}
    tested: set[int] = set()
    for number, fold in enumerate(dataset.splits["folds"]):
        for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
            torn = {group.get(i) for i in fold[one]} & {group.get(i) for i in fold[two]} - {None}
            for number_of_group in sorted(value for value in torn if value is not None):
                yield f"splits.json, fold {number}: group {number_of_group} is torn between {one} and {two}"
        tested.update(fold["test"])
    official = dataset.splits["official"]
    labelled = set(official["test"]) if official else {image.id for image in dataset.images if image.part != "train"}
    for image_id in sorted(labelled - tested) if dataset.splits["folds"] else ():
        yield f"splits.json: labelled image {image_id} is in no test part"
