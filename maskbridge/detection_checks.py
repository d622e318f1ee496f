"""Whether detections are of their image, and, where a run was given the true boxes, one for each defect.

check_in_image(result, dataset.image_by_id[result["image_id"]], "detections.json, entry 3")
results = in_order_of_truth(results, dataset, image_ids, where)     # entry i is of the i-th annotation
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskbridge.dataset import Dataset, Image
from maskbridge.errors import RunError
from maskbridge.predictions import Result

#: How far a box may leave its image: what rounding does, no more.
BOX_SLACK_PIXELS = 0.5

#: How far a box that was given may lie from the defect's.
GIVEN_BOX_SLACK_PIXELS = 1e-3


def check_in_image(result: Result, image: Image, where: str) -> None:
    """Refuse a box that leaves the image, and a mask of another size.

    Raises:
        RunError: When it does, or is.
    """
    left, top, width, height = result["bbox"]
    slack = BOX_SLACK_PIXELS
    if min(left, top) < -slack or left + width > image.width + slack or top + height > image.height + slack:
        raise RunError(
            f"the box leaves image {image.id}",
            where=where,
            found=f"{result['bbox']} [left, top, width, height]",
            expected=f"within {image.width} x {image.height} pixels",
            remedy="clip boxes to the image",
        )
    if "segmentation" in result and tuple(result["segmentation"]["size"]) != image.size_hw:
        raise RunError(
            f"the mask has another size than image {image.id}",
            where=where,
            found=result["segmentation"]["size"],
            expected=f"{list(image.size_hw)} [height, width]",
        )


def in_order_of_truth(
    results: Sequence[Result], dataset: Dataset, image_ids: Sequence[int], where: Path
) -> list[Result]:
    """Detections made from the true boxes, in the order of the images' annotations.

    Args:
        results: COCO results of these images; those of an image in the order of its annotations.
        dataset: The dataset.
        image_ids: Images of the part.
        where: The file they are from.

    Raises:
        RunError: When they are not one for each annotation, or a box is not that of its annotation.
    """
    by_image: dict[int, list[tuple[int, Result]]] = {image_id: [] for image_id in image_ids}
    for index, result in enumerate(results):
        by_image[result["image_id"]].append((index, result))
    for image_id, entries in by_image.items():
        defects = dataset.annotations_by_image[image_id]
        if len(entries) != len(defects):
            raise RunError(
                f"the run was given truth, but its detections are not one for each defect of image {image_id}",
                where=where,
                found=len(entries),
                expected=len(defects),
            )
        for (index, result), defect in zip(entries, defects, strict=True):
            away = max(abs(one - other) for one, other in zip(result["bbox"], defect["bbox"], strict=True))
            if away > GIVEN_BOX_SLACK_PIXELS:
                raise RunError(
                    f"the run was given truth, but the box is not that of annotation {defect['id']}",
                    where=f"{where}, entry {index}",
                    found=result["bbox"],
                    expected=f"{list(defect['bbox'])}, in the order of the annotations",
                )
    return [result for entries in by_image.values() for _, result in entries]
