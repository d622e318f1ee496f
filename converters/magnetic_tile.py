"""Magnetic-tile defects in their own layout: `MT_<Class>/Imgs/*.jpg` with a `.png` mask beside each.

    maskbridge convert magnetic-tile path/to/magnetic_tile datasets/magnetic_tile

Class `Free` is good. The same defect was shot under up to six exposures: file names are `exp<E>_num_<N>.jpg`, and a
run of consecutive numbers in which the exposure rises shows one tile. Such a run is a group.
Source: Huang, Qiu, Yuan, Surface defect saliency of magnetic tile, The Visual Computer 2020.
"""

from __future__ import annotations

import re
from pathlib import Path

from maskbridge.dataset import GOOD
from maskbridge.errors import SourceError
from maskbridge.source import (
    Source,
    SourceImage,
    image_files,
    licence_line,
    other_files,
    require_folder,
    visible,
)

PREFIX = "MT_"
GOOD_CLASS = "Free"
_NAME = re.compile(r"exp(\d+)_num_(\d+)$")


def read(source: Path) -> list[Source]:
    """Read the data set.

    Args:
        source: Folder with the `MT_<Class>` folders.

    Raises:
        SourceError: When it is not in this layout, or an image and its mask do not pair up.
    """
    require_folder(source)
    classes = [entry for entry in visible(source) if entry.is_dir() and entry.name.startswith(PREFIX)]
    if not classes:
        raise SourceError(
            "is not in magnetic-tile layout",
            where=source,
            found=", ".join(entry.name for entry in visible(source)[:6]) or "an empty folder",
            expected=f"folders {PREFIX}<Class>/Imgs",
        )
    images = tuple(image for folder in classes for image in _read_class(folder))
    if not images:
        raise SourceError("has no image", where=source, expected=f"images in {PREFIX}<Class>/Imgs")
    ignored = [entry.name for entry in visible(source) if entry not in classes]
    for folder in classes:
        ignored += [str(entry.relative_to(source)) for entry in visible(folder) if entry != folder / "Imgs"]
        ignored += other_files(folder / "Imgs", source) if (folder / "Imgs").is_dir() else []
    return [
        Source(
            product=source.resolve().name,
            path=source,
            images=images,
            ignored=tuple(ignored),
            layout="magnetic-tile",
            licence=licence_line(source),
        )
    ]


def runs(names: list[tuple[int, int]]) -> list[int]:
    """Run number of each (file number, exposure), given in ascending order of file number.

    A new run begins where the exposure does not rise.
    """
    numbers: list[int] = []
    for index, (_, exposure) in enumerate(names):
        rises = index > 0 and exposure > names[index - 1][1]
        numbers.append(numbers[-1] + (not rises) if numbers else 0)
    return numbers


def _read_class(folder: Path) -> list[SourceImage]:
    kind = folder.name.removeprefix(PREFIX)
    masks: dict[str, Path] = {}
    photos: dict[str, Path] = {}
    for path in image_files(folder / "Imgs") if (folder / "Imgs").is_dir() else ():
        table = masks if path.suffix.lower() == ".png" else photos
        if path.stem in table:
            raise SourceError(
                "two files of one name differ in their extension only",
                where=path,
                found=f"also {table[path.stem].name}",
                remedy="rename or remove one",
            )
        table[path.stem] = path
    for stem in sorted(masks.keys() ^ photos.keys()):
        has, lacks = ("mask", "image") if stem in masks else ("image", "mask")
        raise SourceError(f"{has} has no {lacks}", where=(masks | photos)[stem], remedy=f"add the {lacks} or remove it")
    named = sorted((_number(path), stem) for stem, path in photos.items())
    run_of = dict(zip((stem for _, stem in named), runs([key for key, _ in named]), strict=True))
    good = kind == GOOD_CLASS
    return [
        SourceImage(
            path=path,
            mask=None if good else masks[stem],
            part="all",
            defect_type=GOOD if good else kind,
            group=f"{kind}/{run_of[stem]}",
        )
        for stem, path in sorted(photos.items())
    ]


def _number(path: Path) -> tuple[int, int]:
    """File number and exposure index of an image."""
    match = _NAME.match(path.stem)
    if match is None:
        raise SourceError("has an unknown name", where=path, expected="exp<E>_num_<N>")
    return int(match[2]), int(match[1])
