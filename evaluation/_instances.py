"""Defects or detections of many images as arrays.

Instances.of(results, {image_id: place}, [type_id, …], masks=True).areas
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskbridge import geometry
from maskbridge.geometry import RLE


@dataclass(frozen=True)
class Instances:
    """Defects or detections as arrays of N.

    Attributes:
        images: Place of the image.
        types: Place of the defect type, 0 where types are ignored.
        units: One number for each image and type.
        boxes: N x 4, left, top, width, height.
        areas: Pixels of the mask, else of the box.
        scores: Confidence, 0 for defects.
        masks: Their masks, where they were asked for.
    """

    images: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    masks: Sequence[RLE] = ()

    @classmethod
    def of(
        cls, entries: Sequence[Any], places: Mapping[int, int], types: Sequence[int] | None, *, masks: bool = False
    ) -> Instances:
        """Of annotations, which have an area, or of results, whose area is that of the mask or box."""
        images = np.array([places[entry["image_id"]] for entry in entries], np.int64)
        kinds = np.zeros(len(entries), np.int64)
        if types is not None:
            of_id = {type_id: place for place, type_id in enumerate(types)}
            kinds = np.array([of_id[entry["category_id"]] for entry in entries], np.int64)
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        rles = [entry["segmentation"] for entry in entries] if masks else ()
        if masks:
            areas = np.array([geometry.area(rle) for rle in rles], np.float64)
        elif entries and "area" in entries[0]:
            areas = np.array([entry["area"] for entry in entries], np.float64)
        else:
            areas = boxes[:, 2] * boxes[:, 3]
        scores = np.array([entry.get("score", 0.0) for entry in entries], np.float64)
        return cls(images, kinds, images * len(types or (0,)) + kinds, boxes, areas, scores, rles)

    def taken(self, order: npt.NDArray[np.int64]) -> Instances:
        """Some of them in another order."""
        return Instances(
            images=self.images[order],
            types=self.types[order],
            units=self.units[order],
            boxes=self.boxes[order],
            areas=self.areas[order],
            scores=self.scores[order],
            masks=[self.masks[i] for i in order] if self.masks else (),
        )
