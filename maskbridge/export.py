"""What every export shares: which images go where, and the report of what became of each instance.

An output format is a module in `converters/` with `export(dataset, out, options)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from maskbridge.dataset import Dataset, FoldName, Image
from maskbridge.errors import DatasetError
from maskbridge.files import LinkMode, link_file, sha256_file, write_json
from maskbridge.negatives import choose_negatives
from maskbridge.options import require_usable
from maskbridge.orientation import take_depth, take_orientation
from maskbridge.progress import track

PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
#: A round trip below this IoU is named in the report.
LISTED_BELOW = 0.99


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `maskbridge export`."""

    fold: FoldName = 0
    """fold whose parts are written: 0 to k-1, or official"""
    negatives: str = "all"
    """good images in the training part: all, a number, or a ratio to its defective images (0.5)"""
    seed: int = 0
    """seed of the choice of good images"""
    link: LinkMode = "hard"
    """how images get into the export: hard links where possible (else copies), copies, or symbolic links"""
    overwrite: bool = False
    """replace OUT if it is an export that maskbridge made"""


@dataclass
class ExportReport:
    """Counts of instances and what changed; the content of `export-report.json`."""

    format: str
    options: ExportOptions
    images: dict[str, int] = field(default_factory=dict)
    instances_in: int = 0
    written: int = 0
    changed: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    orientation_taken: list[str] = field(default_factory=list)
    depth_taken: list[str] = field(default_factory=list)
    polygon_ious: dict[str, list[float]] = field(default_factory=dict)
    """IoU of each polygon with its component, by reader: Ultralytics' loader, filling as an area"""

    def write(self, folder: Path) -> None:
        """Write `export-report.json`."""
        below = [entry for entry in self.changed if entry.get("iou", 1.0) < LISTED_BELOW]
        write_json(
            folder / "export-report.json",
            {
                "format": self.format,
                "fold": self.options.fold,
                "negatives": self.options.negatives,
                "images": self.images,
                "instances": {
                    "in": self.instances_in,
                    "written": self.written,
                    "changed": len(self.changed),
                    "dropped": len(self.dropped),
                },
                f"below_{LISTED_BELOW}": len(below),
                "polygons": {
                    reader: {
                        "count": len(ious),
                        "exact": sum(iou == 1 for iou in ious),
                        "mean": round(sum(ious) / len(ious), 6),
                        "smallest": round(min(ious), 6),
                    }
                    for reader, ious in self.polygon_ious.items()
                },
                "changed": self.changed,
                "dropped": self.dropped,
                "orientation_taken": self.orientation_taken,
                "depth_taken": self.depth_taken,
                "images_left_out": {why: {"count": len(names), "files": names} for why, names in self.left_out.items()},
            },
        )


def place_image(dataset: Dataset, image: Image, target: Path, link: LinkMode) -> LinkMode:
    """Put an image of the dataset at its place in another folder; what lies there is the image, by its SHA-256.

    Returns:
        The way that worked.

    Raises:
        DatasetError: When the file is missing, or another one than was converted.
    """
    try:
        found = sha256_file(dataset.image_path(image.id))
    except FileNotFoundError as error:
        raise DatasetError(
            "image is missing",
            where=dataset.image_path(image.id),
            remedy="run `maskbridge check` on the dataset",
        ) from error
    if found != image.sha256:
        raise DatasetError(
            "image is another one than was converted",
            where=dataset.image_path(image.id),
            found=f"sha256 {found}",
            expected=f"sha256 {image.sha256}",
            remedy="run `maskbridge check` on the dataset",
        )
    return link_file(dataset.image_path(image.id), target, link)


def place_images(
    dataset: Dataset, images: Sequence[Image], folder: Path, report: ExportReport
) -> Iterator[tuple[Image, Path]]:
    """Put the images of a part into one folder, as `<part>__<type>__<name>`; made even where there are none.

    Names that would share a label file (`1.png`, `1.jpg`) get `__<image id>` at their end. Images of 16 bits become 8
    bits, and an EXIF orientation is taken out of the placed file, since other programs turn by it; both are entered in
    the report.

    Yields:
        Each image and its place, as soon as it is there.

    Raises:
        DatasetError: When a file is missing or damaged, or another one than was converted.
    """
    folder.mkdir(parents=True)
    names = _flat_names(images)
    for image in track(images, f"{report.format} {folder.name}"):
        target = folder / names[image.id]
        place_image(dataset, image, target, report.options.link)
        if dataset.bit_depth > 8 and take_depth(target, dataset.bit_depth):
            report.depth_taken.append(image.file_name)
        elif take_orientation(target):
            report.orientation_taken.append(image.file_name)
        yield image, target


def parts(dataset: Dataset, options: ExportOptions, report: ExportReport) -> dict[str, list[Image]]:
    """Images of each part, ascending by id, after `--negatives`; what is left out is entered in the report.

    Images of a defect type without any defect pixel stay out of `train` and `val`: they would teach, or choose an epoch
    by it, that the defect is background. In `test` every image stays, so that figures are of the same images.
    """
    require_usable(ExportOptions, vars(options))
    split = dataset.split(options.fold)
    images: dict[str, list[Image]] = {part: [dataset.image_by_id[i] for i in split.part(part)] for part in PARTS}
    marked = dataset.annotations_by_image
    empty = [image for part in ("train", "val") for image in images[part] if image.id in dataset.without_mask]
    good = [image.id for image in images["train"] if image.is_good]
    defective = [image for image in images["train"] if marked[image.id]]
    chosen = set(choose_negatives(options.negatives, good=good, defective=len(defective), seed=options.seed))
    images["train"] = [image for image in images["train"] if marked[image.id] or image.id in chosen]
    images["val"] = [image for image in images["val"] if image.id not in dataset.without_mask]
    report.left_out = {
        "defect_without_mask": [image.file_name for image in empty],
        "good_beyond_negatives": [dataset.image_by_id[i].file_name for i in good if i not in chosen],
    }
    report.images = {part: len(listed) for part, listed in images.items()}
    report.instances_in = sum(len(marked[image.id]) for listed in images.values() for image in listed)
    return images


def _flat_names(images: Sequence[Image]) -> dict[int, str]:
    """File name by image id, without folders, no two with the same label file (on any file system)."""
    flat = {image.id: PurePath(image.file_name.replace("/", "__")) for image in images}
    times = Counter(name.stem.casefold() for name in flat.values())
    return {
        image_id: name.name if times[name.stem.casefold()] == 1 else f"{name.stem}__{image_id}{name.suffix}"
        for image_id, name in flat.items()
    }
