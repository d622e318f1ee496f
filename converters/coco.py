"""COCO instances: `annotations/instances_{train,val,test}.json` and `images/{train,val,test}/<part>__<type>__<name>`.

    maskbridge export coco datasets/bottle out --fold 0

`file_name` is the name within `images/<part of the fold>/`, as in COCO's own archives: there datumaro looks for it,
torchvision, supervision and FiftyOne are given that folder, and Hugging Face takes the folders for the parts. Images
are named and placed as by `yolo`, an EXIF orientation taken out likewise.
Masks are compressed RLE, boxes half-open, ids from 1, `iscrowd` 0; good images are listed without annotations.
Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from pathlib import Path

from maskbridge.dataset import Dataset
from maskbridge.export import ExportOptions, ExportReport, parts, place_images
from maskbridge.files import write_json
from maskbridge.folders import staged_folder


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
            placed = place_images(dataset, images, folder / "images" / part, report)
            write_json(
                folder / "annotations" / f"instances_{part}.json",
                {
                    "info": {"description": dataset.product},
                    "licenses": [],
                    "images": [
                        {"id": image.id, "file_name": target.name, "width": image.width, "height": image.height}
                        for image, target in placed
                    ],
                    "annotations": annotations,
                    "categories": list(dataset.categories),
                },
            )
            report.written += len(annotations)
        report.write(folder)
