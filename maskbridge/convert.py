"""From a source of images and masks to a dataset folder.

One pass decodes every image and mask once: hash, size, signature, instances. Then label masks are refused over the
whole source, images are grouped and dealt into folds, and the folder is written beside its place and moved there when
it is whole; of several products, when all are.

    convert("mvtec", Path("bottle"), Path("datasets/bottle"), ConvertOptions())
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge import __version__, binarisation, frames, geometry, masks, near_duplicates, plugins
from maskbridge.card import conversion_lines, dropped_instances, empty_masks, group_rule, make_card, summary
from maskbridge.dataset import GOOD, Image
from maskbridge.decoding import Picture, decode, depth_of, highest_value, read_again, scaled
from maskbridge.errors import OptionError, SourceError
from maskbridge.files import LinkMode, link_file, read_regular, sha256_bytes, sha256_file, write_bytes, write_json
from maskbridge.folders import staged_folder
from maskbridge.named_groups import named_groups
from maskbridge.official import leak_note, two_types
from maskbridge.options import require_usable
from maskbridge.progress import say, track
from maskbridge.source import Reading, Source, SourceImage, WithoutMask, ignored_by_reason, refuse_unwritable_names
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
    good: tuple[str, ...] = ()
    """name of a type whose images are good, beside the layout's own; may be given several times"""
    without_mask: WithoutMask = "refuse"
    """defect images without a mask, and masks without an image: refuse them, or unlabelled: leave both out, named in
    dataset.json"""
    drop_leaks: bool = False
    """leave training images that share a group with a test image (near-duplicates) out of the official training part,
    named in dataset.json"""
    orientation: frames.Choice | None = None
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
        sha256: Of the bytes that were read.
        size_hw: In the frame of the dataset.
        highest: Largest value of a 16-bit image, else 0.
        frame: How image and mask get into it.
    """

    sha256: str
    size_hw: tuple[int, int]
    highest: int
    frame: frames.Frame
    signature: npt.NDArray[Any]
    values: binarisation.Values | None
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
    require_usable(ConvertOptions, vars(options))
    if options.folds < 2:
        raise OptionError("--folds is too small", found=options.folds, expected="at least 2")
    if options.min_area < 1 or options.workers < 1:
        raise OptionError("--min-area and --workers start at 1", found=f"{options.min_area} and {options.workers}")
    _refuse_nested(source, out)
    reader = plugins.load("format", layout)
    if not hasattr(reader, "read"):
        remedy = f"`maskbridge export {layout}` writes it"
        raise OptionError("this format is for writing only", found=layout, remedy=remedy)
    reading = Reading(good=options.good, without_mask=options.without_mask)
    products: list[Source] = reader.read(source, reading)
    single = len(products) == 1 and products[0].path == source
    targets = [out if single else out / product.product for product in products]
    was_there = out.exists()
    try:
        with ExitStack() as stack:
            folders = [
                stack.enter_context(staged_folder(target, overwrite=options.overwrite, kind="dataset"))
                for target in targets
            ]
            cards = [_build(product, folder, options) for product, folder in zip(products, folders, strict=True)]
    except BaseException:
        if not was_there and not single:
            with suppress(OSError):
                out.rmdir()
        raise
    for target, card in zip(targets, cards, strict=True):
        say(f"{target}: {summary(card)}")
        for line in conversion_lines(card):
            say(f"  {line}")
        frames.say_orientation(card["changes"]["orientation"])
    return targets


def _build(source: Source, folder: Path, options: ConvertOptions) -> dict[str, Any]:
    """Make the dataset of one product in an empty folder; returns its card."""
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
    values = {
        item: found.values for item, found in zip(source.images, examined, strict=True) if found.values is not None
    }
    binarisation.refuse_labels(
        {os.path.relpath(item.mask or item.path, source.path): each for item, each in values.items()}, source.path
    )
    _refuse_types_without_defect(source, examined)
    bit_depth = depth_of(max(found.highest for found in examined))
    pairs = near_duplicates.near_duplicate_pairs(
        np.stack([found.signature_at(bit_depth) for found in examined]),
        lambda index: scaled(_pixels(source.images[index], examined[index]), bit_depth, np.uint16),
    )
    groups = near_duplicates.merge_groups(len(examined), pairs, known=named)
    names = [found.frame.name(item.file_name) for item, found in zip(source.images, examined, strict=True)]
    frames.refuse_equal_names(names)
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
    splits, split_report = make_splits(images, folds=options.folds, seed=options.seed, drop_leaks=options.drop_leaks)
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
    dropped = {name: found.dropped for name, found in zip(names, examined, strict=True) if found.dropped}
    duplicates = [(names[one], names[two]) for one, two in pairs]
    changes = {
        "dropped_instances": dropped_instances(dropped),
        "empty_masks": empty_masks(images, annotations, dropped),
        "orientation": frames.orientation_change(
            {name: found.frame for name, found in zip(names, examined, strict=True)}
        ),
        "ignored_files": ignored_by_reason(source),
        "one_picture_two_types": two_types(
            duplicates,
            {image.file_name: image.defect_type for image in images},
        ),
        "official_leaks": leak_note(images, splits["official"]),
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
            "binarisation": binarisation.rules_of(
                {name: found.values for name, found in zip(names, examined, strict=True) if found.values is not None}
            ),
            "groups": group_rule(_grouped_by(options, source), duplicates, images),
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
    return card


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
    data = read_regular(item.path, error=SourceError)
    picture = decode(data, item.path)
    mask, lossy = None, False
    if item.mask is not None:
        mask_data = read_regular(item.mask, error=SourceError)
        raw = decode(mask_data, item.mask)
        mask = Picture(masks.one_channel(raw.pixels, item.mask), raw.orientation, raw.kind)
        lossy = binarisation.is_lossy(mask_data)
    frame = frames.frame_of(picture, mask, (item.path, item.mask), options.orientation)
    pixels = frame.image(picture.pixels)
    values, found, dropped = None, list[geometry.Instance](), list[int]()
    if mask is not None:
        drawn = frame.mask(mask.pixels)
        values = binarisation.mask_values(drawn, lossy=lossy)
        if item.defect_type == GOOD:
            _refuse_defects_of_a_good_image(item, values)
            values = None
        else:
            binary = drawn if values.threshold == 1 else drawn >= values.threshold
            split = options.instances == "components"
            found, dropped = geometry.instances(binary, split=split, min_area=options.min_area)
    return _Examined(
        sha256=sha256_bytes(data),
        size_hw=(int(pixels.shape[0]), int(pixels.shape[1])),
        highest=highest_value(pixels),
        frame=frame,
        signature=near_duplicates.signature(pixels),
        values=values,
        instances=found,
        dropped=dropped,
    )


def _refuse_defects_of_a_good_image(item: SourceImage, values: binarisation.Values) -> None:
    if values.defect_px:
        raise SourceError(
            "good image has a mask with defects",
            where=item.path,
            found=f"{values.defect_px} defect pixels in {item.mask}",
            expected="a black mask, or none",
            remedy="remove the mask, or move the image to the folder of its defect",
        )


def _refuse_types_without_defect(source: Source, examined: Sequence[_Examined]) -> None:
    of_type: dict[str, list[_Examined]] = {}
    for item, found in zip(source.images, examined, strict=True):
        if item.defect_type != GOOD:
            of_type.setdefault(item.defect_type, []).append(found)
    for name, those in of_type.items():
        if not any(found.instances for found in those):
            small = sum(len(found.dropped) for found in those)
            raise SourceError(
                f"type {name} has not a single defect",
                where=source.path,
                found=f"{small} below --min-area" if small else f"{len(those)} masks without a defect pixel",
                remedy="lower --min-area" if small else f"if these images are good ones, add --good {name}",
            )


def _pixels(item: SourceImage, found: _Examined) -> npt.NDArray[Any]:
    """An image once more, in the frame of the dataset."""
    return found.frame.image(decode(read_again(item.path, found.sha256), item.path).pixels)


def _place(item: SourceImage, found: _Examined, target: Path, options: ConvertOptions) -> tuple[str, str]:
    """Put an image into the dataset: how that was done, and the hash that the file has."""
    if found.frame.rewritten:
        data = frames.upright_png(_pixels(item, found))
        write_bytes(target, data)
        return "rewritten upright", sha256_bytes(data)
    try:
        return link_file(item.path, target, options.link), found.sha256
    except OSError:
        read_again(item.path, found.sha256)  # says so if the source has changed
        raise


def _verify(source: Source, folder: Path, images: Sequence[Image], options: ConvertOptions) -> None:
    """What was put into the dataset is what was read: linked files change with the source."""

    def look(place: int) -> None:
        file = folder / "images" / images[place].file_name
        read_again(file, images[place].sha256, name=source.images[place].path)

    list(track(in_order(look, range(len(images)), options.workers), "verifying", total=len(images)))


def _categories(source: Source) -> list[dict[str, Any]]:
    names = sorted({item.defect_type for item in source.images if item.defect_type != GOOD})
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


def _grouped_by(options: ConvertOptions, source: Source) -> str:
    if options.group_by is not None:
        return f"near-duplicates and --group-by {options.group_by}"
    if options.groups is not None:
        return f"near-duplicates and {options.groups.name}"
    if any(item.group is not None for item in source.images):
        return f"near-duplicates and the groups of layout {source.layout}"
    return "near-duplicates"
