"""Magnetic-tile defects in their own layout: `MT_<Class>/Imgs/*.jpg` with a `.png` mask beside each.

    maskbridge convert magnetic-tile path/to/magnetic_tile datasets/magnetic_tile

Class `Free` is good; its masks have to be black. The same defect was shot under up to six exposures: file names are
`exp<E>_num_<N>.jpg`, and a run of consecutive numbers in which the exposure rises shows one tile. Such a run is a
group.
Source: Huang, Qiu, Yuan, Surface defect saliency of magnetic tile, The Visual Computer 2020.
"""

from __future__ import annotations

import re
from pathlib import Path

from maskbridge.dataset import GOOD
from maskbridge.errors import OptionError, SourceError
from maskbridge.source import (
    NO_IMAGE,
    NO_MASK,
    Reading,
    Source,
    SourceImage,
    entry_named,
    ignored_files,
    is_image,
    licence_file,
    licence_line,
    refuse_unpaired,
    require_folder,
    visible,
)

PREFIX = "MT_"
GOOD_CLASS = "Free"
_NAME = re.compile(r"exp(\d+)_num_(\d+)$")


def read(source: Path, reading: Reading | None = None) -> list[Source]:
    """Read the data set.

    Args:
        source: Folder with the `MT_<Class>` folders.
        reading: What the user says about it.

    Raises:
        SourceError: When it is not in this layout, or an image and its mask do not pair up.
    """
    reading = reading or Reading()
    require_folder(source)
    classes = [entry for entry in visible(source) if entry.is_dir() and entry.name.startswith(PREFIX)]
    if not classes:
        raise SourceError(
            "is not in magnetic-tile layout",
            where=source,
            found=", ".join(entry.name for entry in visible(source)[:6]) or "an empty folder",
            expected=f"folders {PREFIX}<Class>/Imgs",
        )
    names = [folder.name.removeprefix(PREFIX) for folder in classes]
    for name in set(reading.good) - set(names):
        raise OptionError("--good names no type of the source", found=name, expected=", ".join(names))
    tables = {folder: _files(folder) for folder in classes}
    left_out = _unpaired(source, tables, reading)
    images = tuple(image for folder in classes for image in _read_class(folder, *tables[folder], reading))
    if not images:
        raise SourceError("has no image", where=source, expected=f"images in {PREFIX}<Class>/Imgs")
    licence = licence_file(source)
    used = [path for image in images for path in (image.path, image.mask) if path is not None]
    return [
        Source(
            product=source.resolve().name,
            path=source,
            images=images,
            ignored=ignored_files(
                source,
                [*used, *([licence] if licence else [])],
                lambda path: left_out.get(path, f"image outside {PREFIX}<Class>/Imgs"),
            ),
            layout="magnetic-tile",
            licence=licence_line(licence),
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


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Photographs and masks of a class by their stem."""
    photos: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    inside = entry_named(folder, "Imgs")
    for path in filter(is_image, visible(inside)) if inside.is_dir() else ():
        table = masks if path.suffix.lower() == ".png" else photos
        if path.stem in table:
            raise SourceError(
                "two files of one name differ in their extension only",
                where=path,
                found=f"also {table[path.stem].name}",
                remedy="rename or remove one",
            )
        table[path.stem] = path
    if not photos and not masks:
        raise SourceError(
            "class has no image",
            where=folder,
            expected="images in Imgs",
            remedy="move them there, or remove it",
        )
    return photos, masks


def _unpaired(
    source: Path, tables: dict[Path, tuple[dict[str, Path], dict[str, Path]]], reading: Reading
) -> dict[Path, str]:
    """Files without a partner, each with the reason why it is left out; refused unless asked for."""
    good = {GOOD_CLASS, *reading.good}
    lonely = [
        photos[stem]
        for folder, (photos, masks) in tables.items()
        if folder.name.removeprefix(PREFIX) not in good
        for stem in sorted(photos.keys() - masks.keys())
    ]
    orphans = [masks[stem] for photos, masks in tables.values() for stem in sorted(masks.keys() - photos.keys())]
    if reading.without_mask == "refuse":
        refuse_unpaired(lonely, orphans, source, expected="<name>.jpg and <name>.png for each", hint="")
    return {**dict.fromkeys(lonely, NO_MASK), **dict.fromkeys(orphans, NO_IMAGE)}


def _read_class(folder: Path, photos: dict[str, Path], masks: dict[str, Path], reading: Reading) -> list[SourceImage]:
    kind = folder.name.removeprefix(PREFIX)
    named = sorted((_number(path), stem) for stem, path in photos.items())
    run_of = dict(zip((stem for _, stem in named), runs([key for key, _ in named]), strict=True))
    good = kind == GOOD_CLASS or kind in reading.good
    return [
        SourceImage(
            path=path,
            mask=masks.get(stem),
            part="all",
            defect_type=GOOD if good else kind,
            group=f"{kind}/{run_of[stem]}",
        )
        for stem, path in sorted(photos.items())
        if good or stem in masks
    ]


def _number(path: Path) -> tuple[int, int]:
    """File number and exposure index of an image."""
    match = _NAME.match(path.stem)
    if match is None:
        raise SourceError("has an unknown name", where=path, expected="exp<E>_num_<N>")
    return int(match[2]), int(match[1])
