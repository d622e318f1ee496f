"""MVTec AD layout: a category folder (`train/ test/ ground_truth/`), or a folder of categories.

    maskbridge convert mvtec path/to/bottle datasets/bottle

`<category>/train/good/*.png`, `<category>/test/<type>/*.png`, `<category>/ground_truth/<type>/<stem>_mask.png`; each
may lie deeper (`test/<type>/cam1/000.png` with `ground_truth/<type>/cam1/000_mask.png`) and is then called
`cam1__000.png`. The masks of good images may be there, without a defect pixel. Case does not matter in the names of
parts and of `good`.
VisA in MVTec layout and other data sets that follow it are read as well.
Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, https://www.mvtec.com/company/research/datasets/mvtec-ad
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from maskbridge.dataset import GOOD
from maskbridge.errors import OptionError, SourceError
from maskbridge.progress import say
from maskbridge.source import (
    NO_IMAGE,
    NO_MASK,
    Reading,
    Source,
    SourceImage,
    entry_named,
    files_below,
    ignored_files,
    is_image,
    licence_file,
    licence_line,
    refuse_unpaired,
    require_folder,
    visible,
)

MASK_SUFFIX = "_mask"
PARTS, TRUTH = ("train", "test"), "ground_truth"
#: Folders that this layout does not have in its parts; where they occur, the source has another one.
_MASK_FOLDERS = frozenset({"mask", "masks", "label", "labels", "gt", TRUTH, "groundtruth", "annotations"})
_IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs", "rgb"})


@dataclass(frozen=True)
class _Kind:
    """The folder of one type in one part: its image files by their key, `<folders>/<stem>`, and those of its masks."""

    folder: Path
    part: str
    is_good: bool
    images: dict[str, Path]
    masks: dict[str, list[Path]] = field(repr=False)

    @property
    def name(self) -> str:
        return self.folder.name


def read(source: Path, reading: Reading | None = None) -> list[Source]:
    """Read one category, or every category of a folder.

    Args:
        source: The folder.
        reading: What the user says about it.

    Returns:
        One entry for each category, by name.

    Raises:
        SourceError: When it is not in MVTec layout, or an image and its mask do not pair up.
    """
    reading = reading or Reading()
    require_folder(source)
    categories = [source] if _is_category(source) else [e for e in visible(source) if e.is_dir() and _is_category(e)]
    if not categories:
        raise _other_layout(source, ", ".join(entry.name for entry in visible(source)[:6]) or "an empty folder")
    kinds = {category: _kinds(category, reading) for category in categories}
    for name in reading.good:
        if not any(kind.name == name for those in kinds.values() for kind in those):
            raise OptionError(
                "--good names no type of the source",
                found=name,
                expected=", ".join(sorted({kind.name for those in kinds.values() for kind in those})),
            )
    for entry in visible(source) if categories != [source] else ():
        if entry.is_dir() and entry not in categories:
            say(f"{entry}: has no train and test folders, left out")
        elif is_image(entry):
            say(f"{entry}: lies in no category, left out")
    return [_read_category(category, kinds[category], reading) for category in categories]


def _is_category(folder: Path) -> bool:
    return all(entry_named(folder, part).is_dir() for part in PARTS)


def _other_layout(where: Path, found: str) -> SourceError:
    return SourceError(
        "is not in MVTec layout",
        where=where,
        found=found,
        expected="train/good and test/<type> inside, or folders of categories that have them",
        remedy="for another layout: move good images to train/good and test/good, defect images to test/<type> and "
        "their masks to ground_truth/<type>",
    )


def _kinds(category: Path, reading: Reading) -> list[_Kind]:
    """The folders of types, part by part; refuses what shows that the layout is another one."""
    kinds: list[_Kind] = []
    truth = entry_named(category, TRUTH)
    for part in PARTS:
        folder = entry_named(category, part)
        entries = visible(folder)
        for kind in (entry for entry in entries if entry.is_dir()):
            is_good = kind.name.lower() == GOOD or kind.name in reading.good
            of_masks = entry_named(truth, kind.name)
            masks: dict[str, list[Path]] = {}
            for key, path in _keyed(of_masks):
                masks.setdefault(key, []).append(path)
            images: dict[str, Path] = {}
            for key, path in _keyed(kind):
                if key in images:
                    raise _shared_name(path, images[key])
                images[key] = path
            kinds.append(_Kind(kind, part, is_good, images, masks))
            inner = {name for key in images for name in key.split("/")[:-1] if not (of_masks / name).is_dir()}
            own = {kind.name} if not is_good and not of_masks.is_dir() else set[str]()
            strange = [name for name in inner if name.lower() in _MASK_FOLDERS]
            strange += [name for name in own if name.lower() in _MASK_FOLDERS | _IMAGE_FOLDERS]
            beside = [path for key, path in images.items() if is_good and _is_mask_of_another(key, images)]
            if beside:
                raise _other_layout(category, f"masks among the images, such as {beside[0].relative_to(category)}")
            if strange:
                deeper = "" if strange[0] == kind.name else f"/…/{strange[0]}"
                raise _other_layout(category, f"{folder.name}/{kind.name}{deeper}")
        if not any(kind.images for kind in kinds if kind.part == part) and any(map(is_image, entries)):
            raise _other_layout(category, f"images in {folder.name} itself")
    return kinds


def _keyed(folder: Path) -> Iterable[tuple[str, Path]]:
    """Image files below a folder, each with its path from there, extension and `_mask` in capitals left out."""
    for path in files_below(folder) if folder.is_dir() else ():
        if is_image(path):
            key = path.relative_to(folder).with_suffix("").as_posix()
            yield (key[: -len(MASK_SUFFIX)] + MASK_SUFFIX if key.lower().endswith(MASK_SUFFIX) else key), path


def _read_category(folder: Path, kinds: list[_Kind], reading: Reading) -> Source:
    images: list[SourceImage] = []
    lonely: list[tuple[_Kind, str, Path]] = []
    tested = {(kind.name, key) for kind in kinds if kind.part == "test" for key in kind.images}
    for kind in kinds:
        if not kind.images and not kind.is_good:
            raise SourceError("type has no image", where=kind.folder, remedy="add its images, or remove the folder")
        for key, path in kind.images.items():
            mask = _mask_of(key, kind)
            if kind.is_good and kind.part == "train" and (kind.name, key) in tested:
                mask = None  # it is that of the test image
            if mask is None and not kind.is_good:
                lonely.append((kind, key, path))
                continue
            images.append(
                SourceImage(
                    path=path,
                    mask=mask,
                    part=kind.part,
                    defect_type=GOOD if kind.is_good else kind.name,
                    name=_flat(kind, key) + path.suffix if "/" in key or _is_called_good(kind) else None,
                )
            )
    used = {path for image in images for path in (image.path, image.mask) if path is not None}
    truth = entry_named(folder, TRUTH)
    orphans = [path for path in files_below(truth) if is_image(path) and path not in used] if truth.is_dir() else []
    if reading.without_mask == "refuse":
        refuse_unpaired(
            [path for _, _, path in lonely],
            orphans,
            folder,
            expected=_expected(folder, truth, lonely, orphans),
            hint=_hint(truth, lonely, orphans),
        )
    _check_names(images)
    if not images:
        raise SourceError("has no image", where=folder, expected="images in train/good and test/<type>")
    licence = licence_file(folder)
    left_out = {**dict.fromkeys(orphans, NO_IMAGE), **{path: NO_MASK for _, _, path in lonely}}

    def reason(path: Path) -> str:
        first = path.relative_to(folder).parts[0]
        if path in left_out:
            return left_out[path]
        if first.lower() in PARTS:
            return f"image in {first} itself, in the folder of no type"
        return "image outside train and test" if first == path.name else f"{first} is none of train, test, {TRUTH}"

    return Source(
        product=folder.resolve().name,
        path=folder,
        images=tuple(images),
        ignored=ignored_files(folder, [*used, *([licence] if licence else [])], reason),
        layout="mvtec",
        licence=licence_line(licence or licence_file(folder.resolve().parent)),
    )


def _mask_of(key: str, kind: _Kind) -> Path | None:
    """The mask of an image, `<key>_mask` or `<key>`; None where it has none."""
    named = kind.masks.get(key + MASK_SUFFIX, [])
    alike = [] if _is_mask_of_another(key, kind.images) else kind.masks.get(key, [])
    found = [*named, *alike]
    if len(found) > 1:
        raise SourceError("two masks for one image", where=found[0], found=f"also {found[1].name}")
    return found[0] if found else None


def _is_mask_of_another(key: str, images: dict[str, Path]) -> bool:
    """Whether an image is called like the mask of one beside it."""
    return key.endswith(MASK_SUFFIX) and key.removesuffix(MASK_SUFFIX) in images


def _expected(folder: Path, truth: Path, lonely: list[tuple[_Kind, str, Path]], orphans: list[Path]) -> str:
    """Where the partner of the first image or mask should be."""
    if lonely:
        kind, key, _ = lonely[0]
        return f"{TRUTH}/{kind.name}/{key}{MASK_SUFFIX}.png for the first"
    inside = orphans[0].relative_to(truth).with_suffix("").as_posix() if orphans else ""
    return f"an image {PARTS[1]}/{inside.removesuffix(MASK_SUFFIX)}.* for the first"


def _hint(truth: Path, lonely: list[tuple[_Kind, str, Path]], orphans: list[Path]) -> str:
    """What may be wrong beside files that are missing."""
    bare = sorted({kind.name for kind, _, _ in lonely if not kind.masks})
    hints = [f"if the images of {name} are good ones, add --good {name}; " for name in bare]
    folders = {path.parent.relative_to(truth).as_posix() for path in orphans}
    if any(f"{kind.name}/{key}" in folders for kind, key, _ in lonely):
        hints.append("merge the masks of each image, which lie in a folder of its own, to one file; ")
    elif lonely and {path.stem.removesuffix(MASK_SUFFIX) for path in orphans} & {path.stem for *_, path in lonely}:
        hints.append(f"images and masks of one name lie in folders that differ below test and {TRUTH}; ")
    return "".join(hints)


def _is_called_good(kind: _Kind) -> bool:
    """Whether a folder of another name is good by `--good` alone."""
    return kind.is_good and kind.folder.name.lower() != GOOD


def _flat(kind: _Kind, key: str) -> str:
    """The name of a nested image, or of one that lies beside others that are good, without its extension."""
    return "__".join([*([kind.name] if _is_called_good(kind) else []), *key.split("/")])


def _check_names(images: list[SourceImage]) -> None:
    """Refuse images that share a mask, or would share a label file once exported."""
    seen: dict[tuple[str, str], Path] = {}
    for image in images:
        part = image.part if image.defect_type == GOOD else ""
        key = (f"{part}/{image.defect_type}", Path(image.file_name).stem)
        if key in seen:
            raise _shared_name(image.path, seen[key])
        seen[key] = image.path


def _shared_name(path: Path, other: Path) -> SourceError:
    return SourceError(
        "has the name of another image, but for its extension, part or folder",
        where=path,
        found=f"also {other.parent.parent.name}/{other.parent.name}/{other.name}",
        expected="one mask and one label file for each image",
        remedy="rename or remove one",
    )
