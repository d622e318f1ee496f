"""Ultralytics YOLO, segmentation: polygons that come back as the same pixels, from Ultralytics and from area filling.

    maskbridge export yolo-seg datasets/bottle out --fold 0

As `yolo`, with lines `class x1 y1 x2 y2 …`: one polygon for each 8-connected component, holes bridged. Each line is
read back twice, by a replica of Ultralytics' loader (native size, `mask_ratio=1`) and as an area, by pycocotools; both
IoUs are in `export-report.json`, instances below 1 by name. Format: https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.yolo import write_export
from maskbridge import geometry
from maskbridge.dataset import Annotation, Dataset, Image
from maskbridge.export import ExportOptions, ExportReport
from maskbridge.polygons import area_rle, loader_masks, polygon_from_mask, round_trip_iou
from maskbridge.yolo_lines import segmentation_line


def export(dataset: Dataset, out: Path, options: ExportOptions) -> None:
    """Write the export; see `converters.yolo.export`."""
    write_export(dataset, out, options, "yolo-seg", _lines)


def _lines(image: Image, annotations: list[Annotation], classes: Mapping[int, int], report: ExportReport) -> list[str]:
    lines: list[str] = []
    pieces: list[tuple[Annotation, geometry.Mask, tuple[int, int]]] = []
    for annotation in annotations:
        mask = geometry.decode(annotation["segmentation"])
        components, _ = geometry.instances(mask)
        if len(components) > 1:
            report.changed.append(
                {
                    "file_name": image.file_name,
                    "annotation": annotation["id"],
                    "why": f"one instance of {len(components)} components became as many polygons",
                }
            )
        for component in components:
            left, top, width, height = component["bbox"]
            crop = mask if len(components) == 1 else geometry.decode(component["segmentation"])
            crop = np.ascontiguousarray(crop[top : top + height, left : left + width])
            pieces.append((annotation, crop, (left, top)))
            polygon = polygon_from_mask(crop > 0, (left, top), image.size_hw)
            lines.append(segmentation_line(classes[annotation["category_id"]], polygon, image.size_hw))
    report.written += len(annotations)
    for (annotation, crop, offset), line, loaded in zip(pieces, lines, loader_masks(lines, image.size_hw), strict=True):
        read = {"ultralytics": loaded, "area": geometry.decode(area_rle(line, image.size_hw))}
        ious = {reader: round_trip_iou(mask, crop > 0, offset) for reader, mask in read.items()}
        for reader, iou in ious.items():
            report.polygon_ious.setdefault(reader, []).append(iou)
        if min(ious.values()) < 1:
            report.changed.append(
                {
                    "file_name": image.file_name,
                    "annotation": annotation["id"],
                    "iou": round(min(ious.values()), 6),
                    "iou_by_reader": {reader: round(iou, 6) for reader, iou in ious.items()},
                    "why": "no polygon of this many corners comes back exactly",
                }
            )
    return lines
