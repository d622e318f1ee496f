"""Ultralytics YOLO, detection: one label file for each image, empty for good ones.

    maskbridge export yolo datasets/bottle out --fold 0

`data.yaml`, `images/{train,val,test}/<part>__<type>__<name>`, the same under `labels/` with `.txt`; names that would
share a label file (`1.png`, `1.jpg`) get `__<image id>` at their end.
An EXIF orientation, by which Ultralytics would turn an image away from its labels, is taken out of the exported file,
and 16 bits become 8, scaled by the depth that the dataset uses.
Lines are `class cx cy w h`, shares of the image's width and height, of the exact half-open box.
Format: https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from maskbridge.dataset import Annotation, Dataset, Image
from maskbridge.export import ExportOptions, ExportReport, parts, place_images
from maskbridge.files import write_text
from maskbridge.folders import staged_folder
from maskbridge.yolo_lines import detection_line

#: Lines of one image, given the class number of each category id; may enter what changed in the report.
Lines = Callable[[Image, list[Annotation], Mapping[int, int], ExportReport], list[str]]


def export(dataset: Dataset, out: Path, options: ExportOptions) -> None:
    """Write the export.

    Args:
        dataset: The dataset.
        out: Folder to make.
        options: See `ExportOptions`.

    Raises:
        MaskbridgeError: When there is no such fold, or `out` is taken.
    """
    write_export(dataset, out, options, "yolo", _lines)


def write_export(dataset: Dataset, out: Path, options: ExportOptions, name: str, lines: Lines) -> None:
    """Write images, label files, `data.yaml` and the report; `lines` makes the lines of one image."""
    report = ExportReport(name, options)
    classes = class_numbers(dataset)
    with staged_folder(out, overwrite=options.overwrite, kind="export") as folder:
        for part, images in parts(dataset, options, report).items():
            (folder / "labels" / part).mkdir(parents=True)
            for image, target in place_images(dataset, images, folder / "images" / part, report):
                written = lines(image, dataset.annotations_by_image[image.id], classes, report)
                _report_equal_lines(image, written, report)
                label = folder / "labels" / part / f"{target.stem}.txt"
                write_text(label, "".join(line + "\n" for line in written))
        write_text(folder / "data.yaml", _data_yaml(dataset))
        report.write(folder)


def class_numbers(dataset: Dataset) -> dict[int, int]:
    """Class number, from 0, by category id: classes stand in the order of the categories."""
    return {category["id"]: number for number, category in enumerate(dataset.categories)}


def _lines(image: Image, annotations: list[Annotation], classes: Mapping[int, int], report: ExportReport) -> list[str]:
    lines: list[str] = []
    for annotation in annotations:
        left, top, width, height = annotation["bbox"]
        lines.append(detection_line(classes[annotation["category_id"]], (left, top, width, height), image.size_hw))
    report.written += len(lines)
    return lines


def _report_equal_lines(image: Image, lines: Sequence[str], report: ExportReport) -> None:
    for line, times in Counter(lines).items():
        if times > 1:
            report.changed.append(
                {
                    "file_name": image.file_name,
                    "line": line,
                    "why": f"{times} instances have this line; Ultralytics keeps one of equal lines",
                }
            )


def _data_yaml(dataset: Dataset) -> str:
    """Without `path:`, which Ultralytics would look up in its own datasets folder. JSON strings are YAML."""
    lines = ["train: images/train", "val: images/val", "test: images/test", "names:"]
    lines += [
        f"  {number}: {json.dumps(category['name'], ensure_ascii=False)}"
        for number, category in enumerate(dataset.categories)
    ]
    return "\n".join(lines if dataset.categories else [*lines[:-1], "names: {}"]) + "\n"
