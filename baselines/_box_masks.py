"""What the controls share: boxes of the truth or of another run, each made into a mask, with nothing learned.

yield from predict_masks(data, "oracle", 100, mask_of)        # mask_of(image, box_ltwh) -> H x W, bool
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from maskbridge import geometry
from maskbridge.approach import Detection, PredictData, Prediction
from maskbridge.prompts import find_prompts

Box = tuple[float, float, float, float]
MaskOf = Callable[[npt.NDArray[np.uint8], Box], npt.NDArray[np.bool_]]


def predict_masks(data: PredictData, prompts: str, most: int, mask_of: MaskOf) -> Iterator[Prediction]:
    """A mask for each box, as sure as the box.

    Args:
        data: The images.
        prompts: `oracle`, or the run that gives the boxes.
        most: Boxes of an image at most, of another run.
        mask_of: Makes a mask, H x W, of an image, H x W x 3, uint8, RGB, and a box in pixels.

    Raises:
        RunError: When the run does not fit, or has no boxes.
    """
    of_image = find_prompts(prompts, data, most, boxes_alone=True)
    for image_id in data.image_ids:
        image = data.dataset.read_image(image_id)
        detections = []
        for prompt in of_image(image_id):
            assert prompt.box_ltwh is not None, "points were refused"
            detections.append(
                Detection(
                    box_ltwh=prompt.box_ltwh,
                    score=prompt.score,
                    category_id=prompt.category_id,
                    segmentation=geometry.encode(mask_of(image, prompt.box_ltwh)),
                )
            )
        yield Prediction(image_id=image_id, detections=detections)


def filled(size_hw: tuple[int, int], box_ltwh: Box) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centres lie in a box; at least one of each."""
    left, top, width, height = box_ltwh
    return _range(top, height, size_hw[0]), _range(left, width, size_hw[1])


def _range(start: float, length: float, limit: int) -> slice:
    first = min(max(math.ceil(start - 0.5), 0), limit - 1)
    return slice(first, max(min(math.ceil(start + length - 0.5), limit), first + 1))
