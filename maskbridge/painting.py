"""Anomaly maps from detections, and detections from anomaly maps.

painted = map_from_detections(results, (900, 900))
results = detections_from_map(anomaly_map, 0.5, image_id=17)
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge import geometry
from maskbridge.predictions import Result

#: Detections derived from one map at most, the highest first: what the COCO evaluation looks at.
MOST_DETECTIONS = 100


def map_from_detections(results: Sequence[Result], size_hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Paint each detection's confidence over its mask, else its box; where they overlap the largest stays.

    Args:
        results: COCO results of one image.
        size_hw: Height and width of the image in pixels.

    Returns:
        H x W, float32; 0 where nothing was detected.
    """
    painted = np.zeros(size_hw, np.float32)
    for result in sorted(results, key=lambda result: result["score"]):
        with np.errstate(over="ignore"):  # refused where the map is read
            score = np.float32(result["score"])
        if "segmentation" in result:
            inside = geometry.decode(result["segmentation"]) > 0
            painted[inside] = np.maximum(painted[inside], score)
        else:
            left, top, width, height = result["bbox"]
            rows = slice(max(0, round(top)), max(0, round(top + height)))
            columns = slice(max(0, round(left)), max(0, round(left + width)))
            painted[rows, columns] = np.maximum(painted[rows, columns], score)
    return painted


def detections_from_map(
    anomaly_map: npt.NDArray[np.float32], threshold: float, image_id: int, most: int = MOST_DETECTIONS
) -> list[Result]:
    """Make each 8-connected component of the pixels at or above the threshold a detection of unknown type.

    Args:
        anomaly_map: H x W, float32, at the size of the image.
        threshold: Smallest value that belongs to a defect.
        image_id: Id of the image.
        most: Detections at most, the highest first.

    Returns:
        COCO results by descending score: score = largest value of the component,
        half-open tight box, RLE.
    """
    above = (anomaly_map >= np.float32(threshold)).view(np.uint8)
    left, top, width, height = cv2.boundingRect(above)
    if width == 0:
        return []
    crop = np.ascontiguousarray(above[top : top + height, left : left + width])
    count, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8, ltype=cv2.CV_32S)
    inside = crop > 0
    highest = np.full(count, -np.inf, np.float32)
    np.maximum.at(highest, labels[inside].astype(np.intp), anomaly_map[top : top + height, left : left + width][inside])
    results: list[Result] = []
    for label in sorted(range(1, count), key=lambda label: -highest[label])[:most]:
        x, y, w, h = (int(value) for value in stats[label, :4])
        piece = labels[y : y + h, x : x + w] == label
        size_hw = (anomaly_map.shape[0], anomaly_map.shape[1])
        results.append(
            {
                "image_id": image_id,
                "category_id": None,
                "bbox": [float(left + x), float(top + y), float(w), float(h)],
                "score": float(highest[label]),
                "segmentation": geometry.encode_crop(piece, (left + x, top + y), size_hw),
            }
        )
    return results
