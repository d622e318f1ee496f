"""What YOLO polygons lose on the way: IoU of every component after Ultralytics' loader, and filled as an area.

    python benchmarks/label_geometry.py datasets/bottle

Native size, `mask_ratio` 1 and 4 (Ultralytics' default), by the replica of the loader in `maskbridge.polygons`; a
mask of `mask_ratio` 4 is brought back to full size by nearest neighbour. As an area: by pycocotools.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np

from maskbridge import geometry
from maskbridge.dataset import Dataset
from maskbridge.polygons import area_rle, loader_masks, polygon_from_mask, round_trip_iou
from maskbridge.yolo_lines import segmentation_line


def ious(mask: geometry.Mask, ratio: int | None) -> list[float]:
    """Through the loader with this `mask_ratio`; None: filled as areas."""
    height, width = mask.shape
    lines, crops = [], []
    for component in geometry.instances(mask)[0]:
        left, top, w, h = component["bbox"]
        crop = geometry.decode(component["segmentation"])[top : top + h, left : left + w] > 0
        crops.append((crop, (left, top)))
        lines.append(segmentation_line(0, polygon_from_mask(crop, (left, top), (height, width)), (height, width)))
    if ratio is None:
        read = [geometry.decode(area_rle(line, (height, width))) for line in lines]
    else:
        read = list(loader_masks(lines, (height, width), mask_ratio=ratio))
    full = (cv2.resize(one, (width, height), interpolation=cv2.INTER_NEAREST) for one in read)
    return [round_trip_iou(one, crop, offset) for one, (crop, offset) in zip(full, crops, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="dataset folder")
    dataset = Dataset.open(parser.parse_args().dataset)
    masks = [dataset.mask(image.id) for image in dataset.images if dataset.annotations_by_image[image.id]]
    for ratio in (1, 4, None):
        found = np.array([iou for mask in masks for iou in ious(mask, ratio)])
        print(
            f"{f'mask_ratio={ratio}' if ratio else 'as areas'}: {len(found)} components, IoU mean {found.mean():.3f}, "
            f"median {np.median(found):.3f}, smallest {found.min():.3f}"
        )


if __name__ == "__main__":
    main()
