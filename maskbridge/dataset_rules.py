"""What holds between the values of a dataset, once each is of the right kind: ids, references, names, masks, parts.

    for problem in image_problems(images, folder): …       # "image 7 (test/hole/../x.png): file_name has …"

`Dataset.open` refuses the first problem, `maskbridge check` lists them all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskbridge import geometry
from maskbridge.dataset_types import MOST_PIXELS, Annotation, Category, Image
from maskbridge.run_lengths import whole_runs

_PARTS = ("train", "val", "test")
#: Longest name of one file or folder in bytes, on every common file system.
_MOST_NAME_BYTES = 255
#: Above so many pixels the file of an image is looked at for whether it can hold them: one byte of a PNG holds 8,256
#: at most.
_MANY_PIXELS, _MOST_PIXELS_PER_BYTE = 2**26, 2**14


def name_problem(name: str) -> str | None:
    """Why a name, folders included, cannot be one below a folder of ours; None where it can.

    Backslashes part folders too: a dataset may be opened on Windows.
    """
    if "\0" in name:
        return "holds a null character"
    pieces = name.replace("\\", "/").split("/")
    if any(piece in ("", ".", "..") for piece in pieces) or pieces[0].endswith(":"):
        return "is not a plain relative path"
    if any(len(piece.encode("utf-8", "surrogatepass")) > _MOST_NAME_BYTES for piece in pieces):
        return f"has a part of more than {_MOST_NAME_BYTES} bytes"
    return None


def image_problems(images: Sequence[Image], folder: Path) -> Iterator[str]:
    """Problems of the list of images.

    Args:
        images: The images.
        folder: The dataset folder; no image is opened.
    """
    yield from _duplicates("image id", (image.id for image in images))
    yield from _duplicates("file_name", (image.file_name for image in images))
    root = os.path.realpath(folder / "images")
    inside: dict[str, bool] = {}
    for image in images:
        where = f"image {image.id} ({_short(image.file_name)})"
        problem = name_problem(image.file_name)
        if problem is None:
            parent = image.file_name.rpartition("/")[0]
            if parent not in inside:
                place = os.path.realpath(folder / "images" / parent)
                inside[parent] = place == root or place.startswith(root + os.sep)
            problem = None if inside[parent] else "leaves the images folder by a link"
        if problem is not None:
            yield f"{where}: file_name {problem}"
            continue
        if "/" not in image.origin or name_problem(image.origin) is not None:
            yield f"{where}: origin is {_short(image.origin)!r}, must be <part>/<type>"
        pixels = image.width * image.height
        if pixels > MOST_PIXELS:
            yield f"{where}: {image.width}x{image.height} is more than OpenCV reads, {MOST_PIXELS} pixels"
        elif pixels > _MANY_PIXELS:
            path = folder / "images" / image.file_name
            if path.is_file() and (size := path.stat().st_size) * _MOST_PIXELS_PER_BYTE < pixels:
                yield f"{where}: {image.width}x{image.height} pixels do not fit into its file of {size} bytes"


def annotation_problems(
    annotations: Sequence[Annotation], categories: Sequence[Category], images: Mapping[int, Image]
) -> Iterator[str]:
    """Problems of annotations and categories.

    Args:
        annotations: The annotations.
        categories: The categories.
        images: Images by id.
    """
    yield from _duplicates("category id", (category["id"] for category in categories))
    yield from _duplicates("category name", (category["name"] for category in categories))
    yield from _duplicates("annotation id", (annotation["id"] for annotation in annotations))
    known = {category["id"] for category in categories}
    for annotation in annotations:
        where = f"annotation {annotation['id']}"
        if annotation["category_id"] not in known:
            yield f"{where}: category {annotation['category_id']} is not listed"
        image = images.get(annotation["image_id"])
        if image is None:
            yield f"{where}: image {annotation['image_id']} is not listed"
            continue
        rle = annotation["segmentation"]
        if tuple(rle["size"]) != image.size_hw:
            yield f"{where}: RLE size {rle['size'][:4]}, image is {list(image.size_hw)} [height, width]"
            continue
        try:  # before anything of the mask's size is allocated
            runs = whole_runs(rle["counts"], image.height * image.width)
        except ValueError as error:
            yield f"{where}: RLE has {error}"
            continue
        if (area := int(runs[1::2].sum())) == 0:
            yield f"{where}: has no pixel"
        if annotation["area"] != area:
            yield f"{where}: area is {annotation['area']}, the mask has {area} pixels"
        tight = [int(value) for value in geometry.box(rle) or (0, 0, 0, 0)]
        if annotation["bbox"] != tight:
            yield f"{where}: bbox is {annotation['bbox']}, the tight box is {tight}"


def split_problems(splits: Mapping[str, Any], known: set[int]) -> Iterator[str]:
    """Problems of the parts of `splits.json`.

    Args:
        splits: Its content, of the right kind.
        known: Ids of all images.
    """
    tested: Counter[int] = Counter()
    numbered = [(f"fold {number}", fold) for number, fold in enumerate(splits["folds"])]
    for name, parts in [*numbered, *([("official", splits["official"])] if splits["official"] else [])]:
        where, held = f"splits.json, {name}", {part: set(parts.get(part, ())) for part in _PARTS}
        for part in _PARTS:
            for image_id in sorted(held[part] - known):
                yield f"{where}: image {image_id} is not listed"
            yield from _duplicates(f"{where}, {part}: image", parts.get(part, ()))
        for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
            for image_id in sorted(held[one] & held[two]):
                yield f"{where}: image {image_id} is in {one} and in {two}"
        if name != "official":
            tested.update(held["test"])
    for image_id in sorted(image_id for image_id, times in tested.items() if times > 1):
        yield f"splits.json: image {image_id} is in {tested[image_id]} test parts"


def _duplicates(what: str, values: Iterable[Any]) -> Iterator[str]:
    for value, times in Counter(values).items():
        if times > 1:
            yield f"{what} {_short(str(value))} occurs {times} times"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"
