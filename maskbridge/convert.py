"""From a source of images and masks to a dataset folder.

One pass decodes every image and mask once: hash, size, signature, instances. Then the binarisation rule is decided
over the whole source, images are grouped and dealt into folds, and the folder is written beside its place and moved
there when it is whole.

    convert("mvtec", Path("bottle"), Path("datasets/bottle"), ConvertOptions())
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge import __version__, geometry, masks, near_duplicates, plugins
from maskbridge.card import make_card
from maskbridge.dataset import Image
from maskbridge.decoding import Picture, decode, depth_of, highest_value, read_regular, scaled
from maskbridge.errors import OptionError
from maskbridge.files import LinkMode, link_file, sha256_bytes, sha256_file, staged_folder, write_bytes, write_json
from maskbridge.frames import (
    Choice,
    Frame,
    frame_of,
    orientation_change,
    refuse_equal_names,
    say_orientation,
    upright_png,
)
from maskbridge.named_groups import named_groups
from maskbridge.progress import say, track
from maskbridge.source import Source, SourceImage, refuse_unwritable_names
from maskbridge.splits import make_splits
from maskbridge.threads import in_order


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `maskbridge convert`."""

    folds: int = 5
    """number of cross-validation folds"""
    seed: int = 0
    """seed of the order in which images are dealt into folds"""
    instances: Literal["components", "image"] = "components"
    """one instance per 8-connected component, or one per image"""
    min_area: int = 1
    """drop instances below this many pixels; what is dropped is counted and named in dataset.json"""
    group_by: str | None = None
    """regular expression searched in <part>/<type>/<name>: images whose match (its groups, if it has any) is equal
    belong together"""
    groups: Path | None = None
    """CSV file with the columns file_name (<part>/<type>/<name>) and group"""
    link: LinkMode = "hard"
    """how images get into the dataset: hard links where possible (else copies), copies, or symbolic links"""
    orientation: Choice | None = None
    """masks of images with an EXIF orientation were drawn on the pixels as stored, or on the picture that viewers show
    (such images are then rewritten upright, as PNG); without it sizes tell, and what they cannot tell is refused"""
    workers: int = 1
    """threads that decode"""
    overwrite: bool = False
    """replace OUT if it is a dataset that maskbridge made"""


@dataclass(frozen=True)
class _Examined:
    """All that is kept of one source image.

    Attributes:
        sha256, mask_sha256: Of what was read; the mask's is None where there is none.
        size_hw: In the frame of the dataset.
        highest: Largest value of a 16-bit image, else 0.
        frame: How image and mask get into it.
    """

    sha256: str
    mask_sha256: str | None
    size_hw: tuple[int, int]
    highest: int
    frame: Frame
    signature: npt.NDArray[Any]
    values: masks.Values | None
    threshold: int
    instances: list[geometry.Instance]
    dropped: list[int]

    def signature_at(self, bit_depth: int) -> npt.NDArray[Any]:
        """The signature once the 16-bit images of the source are scaled by their depth."""
        return near_duplicates.at_depth(self.signature, bit_depth if self.highest else 8)


def convert(layout: str, source: Path, out: Path, options: ConvertOptions) -> list[Path]:
    """Convert a source.

    Args:
        layout: Name of a reader in `converters/`.
        source: The source folder.
        out: Dataset folder to make; for a folder of products, the folder that receives one dataset for each.
        options: See `ConvertOptions`.

    Returns:
        The dataset folders.

    Raises:
        MaskbridgeError: For anything wrong with the source, the options or `out`; nothing half-written is left.
    """
    if options.folds < 2:
        raise OptionError("--folds is too small", found=options.folds, expected="at least 2")
    if options.min_area < 1 or options.workers < 1:
        raise OptionError("--min-area and --workers start at 1", found=f"{options.min_area} and {options.workers}")
    _refuse_nested(source, out)
    products: list[Source] = plugins.load("format", layout).read(source)
    single = len(products) == 1 and products[0].path == source
    made: list[Path] = []
    for product in products:
        target = out if single else out / product.product
        convert_source(product, target, options)
        made.append(target)
    return made


def convert_source(source: Source, out: Path, options: ConvertOptions) -> None:
    """Convert one product into the dataset folder `out`; see `convert`."""
    with staged_folder(out, overwrite=options.overwrite, kind="dataset") as folder:
        cv2.setNumThreads(1)
        refuse_unwritable_names(source)
        named = named_groups(source, options.group_by, options.groups)
        examined = list(
            track(
                in_order(lambda item: _examine(item, options), source.images, options.workers),
                f"reading {source.product}",
                total=len(source.images),
            )
        )
        rules, examined = _binarise(source, examined, options)
        bit_depth = depth_of(max(found.highest for found in examined))
        pairs = near_duplicates.near_duplicate_pairs(
            np.stack([found.signature_at(bit_depth) for found in examined]),
            lambda index: scaled(_pixels(source.images[index], examined[index]), bit_depth, np.uint16),
        )
        groups = near_duplicates.merge_groups(len(examined), pairs, known=named)
        names = [found.frame.name(item.file_name) for item, found in zip(source.images, examined, strict=True)]
        refuse_equal_names(names)
        ways: Counter[str] = Counter()
        images: list[Image] = []
        for index, (item, found) in enumerate(zip(source.images, examined, strict=True)):
            way, sha256 = _place(item, found, folder / "images" / names[index], options)
            ways[way] += 1
            image = Image(
                id=index + 1,
                file_name=names[index],
                width=found.size_hw[1],
                height=found.size_hw[0],
                sha256=sha256,
                origin=f"{item.part}/{item.defect_type}",
                group=groups[index] + 1,
            )
            images.append(image)
        categories = _categories(source)
        annotations = _annotations(images, examined, categories)
        splits, split_report = make_splits(images, folds=options.folds, seed=options.seed)
        _refuse_empty_folds(splits, options)
        write_json(
            folder / "annotations.json",
            {
                "info": {"description": source.product, "contributor": f"maskbridge {__version__}"},
                "images": [asdict(image) for image in images],
                "annotations": annotations,
                "categories": categories,
            },
        )
        write_json(folder / "splits.json", splits)
        changes = {
            "dropped_instances": _dropped(images, examined),
            "empty_masks": _empty(source, images, examined),
            "orientation": orientation_change({name: found.frame for name, found in zip(names, examined, strict=True)}),
            "ignored_files": {"count": len(source.ignored), "files": list(source.ignored)},
            "images_put_there_by": dict(sorted(ways.items())),
            **split_report,
        }
        card = make_card(
            product=source.product,
            images=images,
            bit_depth=bit_depth,
            annotations=annotations,
            categories=categories,
            splits=splits,
            rules={
                "instances": options.instances,
                "connectivity": 8,
                "min_area": options.min_area,
                "binarisation": {
                    name: {"rule": rule.rule, "values": list(rule.distinct)} for name, rule in rules.items()
                },
                "groups": _group_rule(options, source, pairs, images),
            },
            origin={
                "layout": source.layout,
                "path": str(source.path.resolve()),
                "licence": source.licence,
            },
            options={key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()},
            changes=changes,
            sha256={name: sha256_file(folder / name) for name in ("annotations.json", "splits.json")},
        )
        write_json(folder / "dataset.json", card)
        _verify(source, folder, images, options)
    _report(out, card)


def _refuse_nested(source: Path, out: Path) -> None:
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if inner == outer or outer in inner.parents:
        raise OptionError(
            "OUT lies inside SOURCE", where=out, found=f"SOURCE {source}", remedy="choose a folder elsewhere"
        )
    if inner in outer.parents and (inner / "dataset.json").is_file():
        raise OptionError(
            "SOURCE lies inside OUT", where=out, found=f"SOURCE {source}", remedy="choose a folder elsewhere"
        )


def _refuse_empty_folds(splits: dict[str, Any], options: ConvertOptions) -> None:
    filled = sum(bool(fold["test"]) for fold in splits["folds"])
    if filled < options.folds:
        raise OptionError(
            "--folds is larger than the number of groups of labelled images",
            found=options.folds,
            expected=f"at most {filled}",
        )


def _examine(item: SourceImage, options: ConvertOptions) -> _Examined:
    data = read_regular(item.path)
    picture = decode(data, item.path)
    mask, mask_sha256 = None, None
    if item.mask is not None:
        mask_data = read_regular(item.mask)
        raw = decode(mask_data, item.mask)
        mask = Picture(masks.one_channel(raw.pixels, item.mask), raw.orientation, raw.kind)
        mask_sha256 = sha256_bytes(mask_data)
    frame = frame_of(picture, mask, (item.path, item.mask), options.orientation)
    pixels = frame.image(picture.pixels)
    values, threshold = None, 1
    found, dropped = list[geometry.Instance](), list[int]()
    if mask is not None:
        drawn = frame.mask(mask.pixels)
        values = masks.mask_values(drawn)
        threshold = 1 if len(values.distinct) <= 2 else int(np.iinfo(drawn.dtype).max + 1) // 2
        found, dropped = _instances(drawn, threshold, options)
    return _Examined(
        sha256=sha256_bytes(data),
        mask_sha256=mask_sha256,
        size_hw=(int(pixels.shape[0]), int(pixels.shape[1])),
        highest=highest_value(pixels),
        frame=frame,
        signature=near_duplicates.signature(pixels),
        values=values,
        threshold=threshold,
        instances=found,
        dropped=dropped,
    )


def _instances(
    mask: masks.RawMask, threshold: int, options: ConvertOptions
) -> tuple[list[geometry.Instance], list[int]]:
    binary = mask if threshold == 1 else mask >= threshold
    return geometry.instances(binary, split=options.instances == "components", min_area=options.min_area)


def _binarise(
    source: Source, examined: Sequence[_Examined], options: ConvertOptions
) -> tuple[dict[str, masks.Binarisation], list[_Examined]]:
    """Decide the rule, and read those masks again that it treats otherwise than they were read."""
    rules = masks.binarisation([item.values for item in examined if item.values is not None], source.path)
    result: list[_Examined] = []
    for item, found in zip(source.images, examined, strict=True):
        if item.mask is not None and found.values is not None:
            decided = rules[found.values.dtype].threshold
            low, high = sorted((decided, found.threshold))
            if any(low <= value < high for value in found.values.distinct):
                again, dropped = _instances(_mask(item.mask, found), decided, options)
                found = replace(found, threshold=decided, instances=again, dropped=dropped)
        result.append(found)
    return rules, result


def _mask(path: Path, found: _Examined) -> masks.RawMask:
    """A mask once more, in the frame of the dataset."""
    stored = decode(read_regular(path, found.mask_sha256), path).pixels
    return found.frame.mask(masks.one_channel(stored, path))


def _pixels(item: SourceImage, found: _Examined) -> npt.NDArray[Any]:
    """An image once more, in the frame of the dataset."""
    return found.frame.image(decode(read_regular(item.path, found.sha256), item.path).pixels)


def _place(item: SourceImage, found: _Examined, target: Path, options: ConvertOptions) -> tuple[str, str]:
    """Put an image into the dataset: how that was done, and the hash that the file has."""
    if found.frame.rewritten:
        data = upright_png(_pixels(item, found))
        write_bytes(target, data)
        return "rewritten upright", sha256_bytes(data)
    try:
        return link_file(item.path, target, options.link), found.sha256
    except OSError:
        read_regular(item.path, found.sha256)  # says so if the source has changed
        raise


def _verify(source: Source, folder: Path, images: Sequence[Image], options: ConvertOptions) -> None:
    """What was put into the dataset is what was read: linked files change with the source."""

    def look(place: int) -> None:
        file = folder / "images" / images[place].file_name
        read_regular(file, images[place].sha256, name=source.images[place].path)

    list(track(in_order(look, range(len(images)), options.workers), "verifying", total=len(images)))


def _categories(source: Source) -> list[dict[str, Any]]:
    names = sorted({item.defect_type for item in source.images if item.mask is not None})
    return [{"id": number, "name": name, "supercategory": source.product} for number, name in enumerate(names, 1)]


def _annotations(
    images: Sequence[Image], examined: Sequence[_Examined], categories: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    category_id = {category["name"]: category["id"] for category in categories}
    annotations: list[dict[str, Any]] = []
    for image, found in zip(images, examined, strict=True):
        for instance in found.instances:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": category_id[image.defect_type],
                    **instance,
                    "iscrowd": 0,
                }
            )
    return annotations


def _dropped(images: Sequence[Image], examined: Sequence[_Examined]) -> dict[str, Any]:
    areas = {image.file_name: found.dropped for image, found in zip(images, examined, strict=True) if found.dropped}
    return {"count": sum(map(len, areas.values())), "areas_px": areas}


def _empty(source: Source, images: Sequence[Image], examined: Sequence[_Examined]) -> dict[str, Any]:
    names = [
        image.file_name
        for item, image, found in zip(source.images, images, examined, strict=True)
        if item.mask is not None and not found.instances and not found.dropped
    ]
    return {"count": len(names), "files": names}


def _group_rule(
    options: ConvertOptions, source: Source, pairs: Sequence[tuple[int, int]], images: Sequence[Image]
) -> dict[str, Any]:
    sizes = Counter(Counter(image.group for image in images).values())
    by = "near-duplicates"
    if options.group_by is not None:
        by += f" and --group-by {options.group_by}"
    elif options.groups is not None:
        by += f" and {options.groups.name}"
    elif any(item.group is not None for item in source.images):
        by += f" and the groups of layout {source.layout}"
    return {
        "by": by,
        "groups": sum(sizes.values()),
        "largest": max(sizes),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "near_duplicates": [[images[one].file_name, images[two].file_name] for one, two in pairs],
    }


def _report(out: Path, card: dict[str, Any]) -> None:
    changes, totals = card["changes"], card["totals"]
    say(
        f"{out}: {totals['images']} images, {totals['instances']} instances, {card['rules']['groups']['groups']} groups"
    )
    if changes["dropped_instances"]["count"]:
        say(f"  {changes['dropped_instances']['count']} instances dropped by --min-area, named in dataset.json")
    if changes["empty_masks"]["count"]:
        say(f"  {changes['empty_masks']['count']} defect images have an empty mask, named in dataset.json")
    say_orientation(changes["orientation"])
    if changes["ignored_files"]["count"]:
        say(f"  {changes['ignored_files']['count']} files are neither image nor mask, named in dataset.json")
