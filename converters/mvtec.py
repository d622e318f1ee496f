"""MVTec AD layout: a category folder (`train/ test/ ground_truth/`), or a folder of categories.

    maskbridge convert mvtec path/to/bottle datasets/bottle

`<category>/train/good/*.png`, `<category>/test/<type>/*.png`, `<category>/ground_truth/<type>/<stem>_mask.png`.
VisA in MVTec layout and other data sets that follow it are read as well.
Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, https://www.mvtec.com/company/research/datasets/mvtec-ad
"""

from __future__ import annotations

from pathlib import Path

from maskbridge.dataset import GOOD
from maskbridge.errors import SourceError
from maskbridge.progress import say
from maskbridge.source import (
    Source,
    SourceImage,
    image_files,
    licence_line,
    other_files,
    require_folder,
    visible,
)

MASK_SUFFIX = "_mask"


def read(source: Path) -> list[Source]:
    """Read one category, or every category of a folder.

    Args:
        source: The folder.

    Returns:
        One entry for each category, by name.

    Raises:
        SourceError: When it is not in MVTec layout, or an image and its mask do not pair up.
    """
    require_folder(source)
    if _is_category(source):
        return [_read_category(source)]
    categories = [entry for entry in visible(source) if entry.is_dir() and _is_category(entry)]
    if not categories:
        raise SourceError(
            "is not in MVTec layout",
            where=source,
            found=", ".join(entry.name for entry in visible(source)[:6]) or "an empty folder",
            expected="train/good and test/<type> inside, or folders of categories that have them",
        )
    for entry in visible(source):
        if entry.is_dir() and entry not in categories:
            say(f"{entry}: has no train and test folders, left out")
    return [_read_category(category) for category in categories]


def _is_category(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _read_category(folder: Path) -> Source:
    images: list[SourceImage] = []
    used: set[Path] = set()
    ignored: list[str] = []
    for part in ("train", "test"):
        for kind in visible(folder / part):
            if not kind.is_dir():
                ignored.append(str(kind.relative_to(folder)))
                continue
            ignored.extend(other_files(kind, folder))
            masks = _masks(folder / "ground_truth" / kind.name)
            for path in image_files(kind):
                mask = masks.get(path.stem)
                if kind.name == GOOD:
                    if mask is not None:
                        raise SourceError(
                            "good image has a mask",
                            where=path,
                            found=mask.relative_to(folder),
                            expected="masks of defect images only",
                            remedy="remove the mask, or move the image to the folder of its defect",
                        )
                    images.append(SourceImage(path=path, mask=None, part=part, defect_type=GOOD))
                    continue
                if mask is None:
                    raise SourceError(
                        "defect image has no mask",
                        where=path,
                        expected=f"ground_truth/{kind.name}/{path.stem}{MASK_SUFFIX}.png",
                        remedy="add the mask (an all-black one if no pixel is defective) or remove the image",
                    )
                used.add(mask)
                images.append(SourceImage(path=path, mask=mask, part=part, defect_type=kind.name))
    _check_names(images)
    ignored.extend(_check_masks(folder, used))
    if not images:
        raise SourceError("has no image", where=folder, expected="images in train/good and test/<type>")
    return Source(
        product=folder.resolve().name,
        path=folder,
        images=tuple(images),
        ignored=tuple(ignored),
        layout="mvtec",
        licence=licence_line(folder) or licence_line(folder.resolve().parent),
    )


def _masks(folder: Path) -> dict[str, Path]:
    """Mask files by the stem of the image they belong to."""
    if not folder.is_dir():
        return {}
    table: dict[str, Path] = {}
    for path in image_files(folder):
        stem = path.stem.removesuffix(MASK_SUFFIX)
        if stem in table:
            raise SourceError("two masks for one image", where=path, found=f"also {table[stem].name}")
        table[stem] = path
    return table


def _check_masks(folder: Path, used: set[Path]) -> list[str]:
    """Refuse masks without an image; return other files under `ground_truth`."""
    root = folder / "ground_truth"
    ignored: list[str] = []
    for kind in visible(root) if root.is_dir() else []:
        if not kind.is_dir():
            ignored.append(str(kind.relative_to(folder)))
            continue
        ignored.extend(other_files(kind, folder))
        for path in image_files(kind):
            if path not in used:
                stem = path.stem.removesuffix(MASK_SUFFIX)
                raise SourceError(
                    "mask has no image",
                    where=path,
                    expected=f"an image test/{kind.name}/{stem}.*",
                    remedy="add the image or remove the mask",
                )
    return ignored


def _check_names(images: list[SourceImage]) -> None:
    """Refuse images that share a mask, or would share a label file once exported."""
    seen: dict[tuple[Path, str], Path] = {}
    for image in images:
        key = (image.mask or image.path.parent, image.path.stem)
        if key in seen:
            raise SourceError(
                "has the name of another image, but for its extension or part",
                where=image.path,
                found=f"also {seen[key].parent.parent.name}/{seen[key].parent.name}/{seen[key].name}",
                expected="one mask and one label file for each image",
                remedy="rename or remove one",
            )
        seen[key] = image.path
