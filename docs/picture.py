"""The picture at the top of the README, from the demo's data set and runs.

    make demo && .venv/bin/python docs/picture.py

One row for each defect type: image, ground truth (mask outline and box), anomaly maps of the autoencoder and of SAM.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.dataset import Dataset, Image, read_image
from maskbridge.files import write_bytes
from maskbridge.predictions import Run

OUT = Path("docs/images/sample.jpg")
SCALE, GAP, HEADER = 2, 8, 34
COLUMNS = ("image", "ground truth", "autoencoder anomaly map", "SAM anomaly map")
BLUE, ORANGE = (200, 90, 0), (0, 120, 255)

Picture = npt.NDArray[np.uint8]


def main() -> None:
    dataset = Dataset.open("datasets/demo")
    runs = [Run.open(f"runs/demo-{name}-all") for name in ("autoencoder", "sam")]
    rows = [
        row(dataset, next(i for i in dataset.images if i.defect_type == category["name"]), runs)
        for category in dataset.categories
    ]
    height, width = rows[0].shape[:2]
    page = np.full((HEADER + len(rows) * (height + GAP), width, 3), 255, dtype=np.uint8)
    for number, name in enumerate(COLUMNS):
        x = number * (width + GAP) // len(COLUMNS) + 4
        cv2.putText(page, name, (x, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (40, 40, 40), 1, cv2.LINE_AA)
    for number, pixels in enumerate(rows):
        top = HEADER + number * (height + GAP)
        page[top : top + height] = pixels
    write_bytes(OUT, cv2.imencode(".jpg", page, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())


def row(dataset: Dataset, image: Image, runs: list[Run]) -> Picture:
    photo = cv2.resize(
        read_image(dataset.image_path(image.id))[:, :, ::-1].copy(),
        None,
        fx=SCALE,
        fy=SCALE,
        interpolation=cv2.INTER_CUBIC,
    )
    truth = photo.copy()
    mask = cv2.resize(dataset.mask(image.id), None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(truth, outlines, -1, ORANGE, 1)
    for annotation in dataset.annotations_by_image[image.id]:
        frame(truth, annotation["bbox"], BLUE)
    maps = [run.map("crossval", image.id) for run in runs]
    panels = [photo, truth, *(tinted(photo, anomaly) for anomaly in maps if anomaly is not None)]
    gap = np.full((photo.shape[0], GAP, 3), 255, dtype=np.uint8)
    return np.hstack([part for panel in panels for part in (panel, gap)][:-1])


def frame(picture: Picture, box_ltwh: list[int], colour: tuple[int, int, int]) -> None:
    left, top, width, height = (round(SCALE * value) for value in box_ltwh)
    cv2.rectangle(picture, (left, top), (left + width - 1, top + height - 1), colour, 2)


def tinted(photo: Picture, anomaly: npt.NDArray[np.float32]) -> Picture:
    height, width = photo.shape[:2]
    levels = cv2.resize(anomaly, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = (levels - levels.min()) / max(float(levels.max() - levels.min()), 1e-9)
    heat = cv2.applyColorMap((255 * levels).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.addWeighted(photo, 0.35, heat, 0.65, 0)


if __name__ == "__main__":
    main()
