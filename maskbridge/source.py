"""What a reader in `converters/` gives: the images of a source, each with its masks, type and part.

A new input format is one module with a function `read(source: Path, reading: Reading) -> list[Source]`; everything
else (binarisation, instances, groups, splits, hashes, writing) is `maskbridge.convert`. Every file of a source is used,
or named as ignored with the reason; hidden ones are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskbridge.dataset_rules import name_problem
from maskbridge.errors import SourceError
from maskbridge.files import open_regular

WithoutMask = Literal["refuse", "unlabelled"]
#: Why a file is ignored.
NEITHER = "neither image nor mask"
NO_FILE = "no regular file"
NO_MASK = "defect image without a mask (--without-mask unlabelled)"
NO_IMAGE = "mask without an image (--without-mask unlabelled)"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

#: Of a licence file only the first line is kept.
_LICENCE_BYTES = 2**16
_LICENCE_FILES = ("license.txt", "LICENSE", "LICENSE.txt", "licence.txt", "readme.txt")
_FIRST = 3


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a user says about a source.

    Attributes:
        good: Names of types whose images are good, beside the layout's own.
        without_mask: Refuse defect images without a mask and masks without an image, or leave them out.
    """

    good: tuple[str, ...] = ()
    without_mask: WithoutMask = "refuse"


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of a source.

    Attributes:
        path: The image file.
        mask: Its mask file; of an image of type good there may be one, without a defect pixel, or None.
        part: The source's own part (`train`, `test`), or `all`.
        defect_type: Defect type; `good` for an image without a defect.
        group: Name of the group it belongs to by what the source says; None where it says nothing.
        name: Its name in the dataset; by default that of the file.
    """

    path: Path
    mask: Path | None
    part: str
    defect_type: str
    group: str | None = None
    name: str | None = None

    @property
    def file_name(self) -> str:
        """`<part>/<type>/<name>`: its place under `images/`, and what groups files and patterns refer to."""
        return f"{self.part}/{self.defect_type}/{self.name or self.path.name}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One product of a source.

    Attributes:
        product: Name of the product.
        path: Folder it was read from.
        images: In the order in which they get their ids.
        ignored: Files that are not used, relative to `path`, each with the reason.
        layout: How it was read, for the card.
        licence: Text of a licence file found in the source, first line only, or None.
    """

    product: str
    path: Path
    images: tuple[SourceImage, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    layout: str
    licence: str | None = None


def require_folder(path: Path) -> None:
    """Refuse what is not a folder.

    Raises:
        SourceError: When there is no folder at `path`.
    """
    if not path.exists():
        raise SourceError("no such folder", where=path)
    if not path.is_dir():
        raise SourceError("is not a folder", where=path, found="a file", expected="the folder of a product")


def visible(folder: Path) -> list[Path]:
    """Entries of a folder, sorted by name, hidden ones left out.

    Raises:
        SourceError: When the folder cannot be read.
    """
    try:
        return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise SourceError("cannot be read", where=folder, found=error.strerror) from error


def entry_named(folder: Path, name: str) -> Path:
    """The entry of a folder by its name, in upper or lower case; `folder / name` where there is none."""
    found = {entry.name: entry for entry in visible(folder)} if folder.is_dir() else {}
    alike = (entry for entry in found.values() if entry.name.lower() == name.lower())
    return found.get(name) or next(alike, folder / name)


def files_below(folder: Path) -> list[Path]:
    """Everything below a folder that is no folder, in order of names, hidden entries left out.

    Raises:
        SourceError: When a folder cannot be read, or a link leads back into itself.
    """
    return list(_below(folder, (folder.resolve(),)))


def is_image(path: Path) -> bool:
    """Whether it is a file with the extension of an image, in upper or lower case."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def licence_file(folder: Path) -> Path | None:
    """A licence file in a folder, or None."""
    return next((folder / name for name in _LICENCE_FILES if (folder / name).is_file()), None)


def licence_line(path: Path | None) -> str | None:
    """First line of a licence file that is not empty; None where there is neither."""
    if path is None:
        return None
    with open_regular(path) as file:
        lines = file.read(_LICENCE_BYTES).decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in lines if line.strip()), None)


def ignored_files(folder: Path, used: Iterable[Path], reason: Callable[[Path], str]) -> dict[str, str]:
    """Every file of a source that is not used, relative to it.

    Args:
        folder: The source.
        used: Images, masks, and the licence file.
        reason: Why an image file is not used; of other files the reason is known.
    """
    taken = set(used)
    return {
        str(path.relative_to(folder)): reason(path) if is_image(path) else NEITHER if path.is_file() else NO_FILE
        for path in files_below(folder)
        if path not in taken
    }


def ignored_by_reason(source: Source) -> dict[str, Any]:
    """What dataset.json says of the files that are not used: `count`, `files`, and `reasons` with the files of each."""
    reasons: dict[str, list[str]] = {}
    for name, reason in source.ignored.items():
        reasons.setdefault(reason, []).append(name)
    return {"count": len(source.ignored), "files": list(source.ignored), "reasons": reasons}


def refuse_unwritable_names(source: Source) -> None:
    """Refuse names that cannot stand in a dataset: not UTF-8, or a type that is no name of a folder.

    Raises:
        SourceError: When there is one.
    """
    for name in (str(source.path.resolve()), *source.ignored, *(item.file_name for item in source.images)):
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SourceError(
                "has a name that is not UTF-8", where=source.path, found=ascii(name), remedy="rename it"
            ) from error
    for item in source.images:
        if item.defect_type in ("", ".", ".."):
            raise SourceError(
                "has a type that cannot be the name of a folder",
                where=item.path,
                found=repr(item.defect_type),
                remedy="rename it",
            )
        problem = name_problem(item.file_name)
        if problem is not None:
            raise SourceError(f"the name {problem}", where=item.path, found=item.file_name, remedy="rename it")


def refuse_unpaired(images: Sequence[Path], masks: Sequence[Path], folder: Path, *, expected: str, hint: str) -> None:
    """Refuse defect images without a mask and masks without an image, all of them at once.

    Args:
        images: Defect images without a mask.
        masks: Masks without an image.
        folder: The source.
        expected: Where the first of them should have its partner.
        hint: What else may be wrong; empty where nothing is known.

    Raises:
        SourceError: When there are any.
    """
    found = [
        f"{len(paths)} {what}: {first_names(str(path.relative_to(folder)) for path in paths)}"
        for what, paths in (("defect images without a mask", images), ("masks without an image", masks))
        if paths
    ]
    if found:
        raise SourceError(
            "images and masks do not pair up",
            where=folder,
            found=", ".join(found),
            expected=expected,
            remedy=f"{hint}add what is missing, or leave them out with --without-mask unlabelled",
        )


def first_names(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    known = list(names)
    more = len(known) - _FIRST
    return ", ".join(known[:_FIRST]) + (f" and {more} more" if more > 0 else "")


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    for entry in visible(folder):
        if not entry.is_dir():
            yield entry
            continue
        real = entry.resolve()
        if real in above:
            raise SourceError("leads back to a folder that it lies in", where=entry, remedy="remove the link")
        yield from _below(entry, (*above, real))
