"""What a reader in `converters/` gives: the images of a source, each with its masks, type and part.

A new input format is one module with a function `read(source: Path) -> Source`; everything else (binarisation,
instances, groups, splits, hashes, writing) is `maskbridge.convert`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maskbridge.errors import SourceError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of a source.

    Attributes:
        path: The image file.
        mask: Its mask file; None for an image of type good.
        part: The source's own part (`train`, `test`), or `all`.
        defect_type: Defect type; `good` for an image without a defect.
        group: Name of the group it belongs to by what the source says; None where it says nothing.
    """

    path: Path
    mask: Path | None
    part: str
    defect_type: str
    group: str | None = None

    @property
    def file_name(self) -> str:
        """`<part>/<type>/<name>`: its place under `images/`, and what groups files and patterns refer to."""
        return f"{self.part}/{self.defect_type}/{self.path.name}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One product of a source.

    Attributes:
        product: Name of the product.
        path: Folder it was read from.
        images: In the order in which they get their ids.
        ignored: Files that are neither image nor mask, relative to `path`.
        layout: How it was read, for the card.
        licence: Text of a licence file found in the source, first line only, or None.
    """

    product: str
    path: Path
    images: tuple[SourceImage, ...]
    ignored: tuple[str, ...] = ()
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


def refuse_unwritable_names(source: Source) -> None:
    """Refuse names that JSON cannot hold.

    Raises:
        SourceError: With the first name that is not UTF-8.
    """
    for name in (str(source.path.resolve()), *source.ignored, *(item.file_name for item in source.images)):
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SourceError(
                "has a name that is not UTF-8", where=source.path, found=ascii(name), remedy="rename it"
            ) from error


def visible(folder: Path) -> list[Path]:
    """Entries of a folder, sorted by name, hidden ones left out."""
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)


def image_files(folder: Path) -> Iterator[Path]:
    """Image files of a folder, sorted by name; upper-case extensions count."""
    return (entry for entry in visible(folder) if entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES)


def other_files(folder: Path, root: Path) -> Iterator[str]:
    """Entries of a folder that are not image files, relative to `root`."""
    for entry in visible(folder):
        if not (entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES):
            yield str(entry.relative_to(root))


def licence_line(folder: Path) -> str | None:
    """First line of a licence file in a folder, or None."""
    for name in ("license.txt", "LICENSE", "LICENSE.txt", "licence.txt", "readme.txt"):
        path = folder / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip() for line in lines if line.strip()), None)
    return None
