"""COCO instances: `annotations/instances_{train,val,test}.json` and `images/`.

    maskbridge export coco datasets/bottle out --fold 0

Masks are compressed RLE, boxes half-open, ids from 1, `iscrowd` 0; good images are listed without annotations.
Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from pathlib import Path

from maskbridge.dataset import Dataset
from maskbridge.export import ExportOptions, ExportReport, parts, place_plain
from maskbridge.files import write_json
from maskbridge.folders import staged_folder
from maskbridge.progress import track


def export(dataset: Dataset, out: Path, options: ExportOptions) -> None:
    """Write the export.

    Args:
        dataset: The dataset.
        out: Folder to make.
        options: See `ExportOptions`.

    Raises:
        MaskbridgeError: When there is no such fold, or `out` is taken.
    """
    report = ExportReport("coco", options)
    with staged_folder(out, overwrite=options.overwrite, kind="export") as folder:
        for part, images in parts(dataset, options, report).items():
            annotations = [a for image in images for a in dataset.annotations_by_image[image.id]]
            for image in track(images, f"coco {part}"):
                place_plain(dataset, image, folder / "images" / image.file_name, report)
            write_json(
                folder / "annotations" / f"instances_{part}.json",
                {
                    "info": {"description": dataset.product},
                    "licenses": [],
                    "images": [
                        {key: getattr(image, key) for key in ("id", "file_name", "width", "height")} for image in images
                    ],
                    "annotations": annotations,
                    "categories": list(dataset.categories),
                },
            )
            report.written += len(annotations)
        report.write(folder)
