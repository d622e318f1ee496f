"""A small dataset folder, 12 good and 18 defective images of 24 x 36 pixels in 3 folds, and runs on it."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset
from maskbridge.predictions import Run, write_predictions

HEIGHT, WIDTH = 24, 36
FOLDS = 3
THRESHOLDS = {
    "image": {"value": 0.5, "rule": "given"},
    "pixel": {"value": 0.5, "rule": "given"},
    "detection": {"value": 0.5, "rule": "given"},
}


def zoo():
    """Line, diagonal, pit, ring, blobs touching at a corner, at the frame, whole image, two apart, none."""
    masks = [np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(9)]
    masks[0][7, 3:30] = 1
    masks[1][np.arange(12) + 4, np.arange(12) + 9] = 1
    masks[2][10:12, 20:22] = 1
    masks[3][4:16, 8:22] = 1
    masks[3][8:12, 12:18] = 0
    masks[4][3:8, 3:9] = 1
    masks[4][8:12, 9:15] = 1
    masks[5][0:6, 28:36] = 1
    masks[6][:] = 1
    masks[7][2:6, 2:12] = 1
    masks[7][15:22, 20:31] = 1
    return masks


def make_dataset(folder: Path, masks, groups=None) -> Dataset:
    """Write a dataset; a mask without the name of its type is `good` when empty, else `crack`."""
    named = [item if isinstance(item, tuple) else (item, "crack" if item.any() else "good") for item in masks]
    types = sorted({name for _, name in named} - {"good"})
    coco = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name, "supercategory": "tile"} for i, name in enumerate(types, start=1)],
    }
    for number, (mask, name) in enumerate(named, start=1):
        path = folder / "images" / "test" / name / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), mask * 200)
        coco["images"].append(
            {
                "id": number,
                "file_name": f"test/{name}/{path.name}",
                "width": mask.shape[1],
                "height": mask.shape[0],
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "origin": f"test/{name}",
                "group": number if groups is None else groups[number - 1],
            }
        )
        for instance in geometry.instances(mask)[0]:
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number,
                    "category_id": types.index(name) + 1,
                    "iscrowd": 0,
                    **instance,
                }
            )
    ids = [image["id"] for image in coco["images"]]
    folds = []
    for fold in range(FOLDS):
        test = ids[fold::FOLDS]
        rest = [i for i in ids if i not in test]
        folds.append({"train": rest[::2], "val": rest[1::2], "test": test})
    splits = {"rule": "given", "seed": 0, "folds": folds, "official": {"train": [], "test": ids}}
    for name, content in (("annotations", coco), ("splits", splits), ("dataset", {"product": "tile"})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Dataset.open(folder)


def make_run(folder: Path, dataset: Dataset, predictions, part="test", fold="official", **info) -> Run:
    """Write a finished run with predictions of one part."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [str(number) for number in range(FOLDS)] if part == "crossval" else [str(fold)]
    content = {
        "approach": "made-up",
        "dataset": {
            "path": str(dataset.path),
            "name": dataset.name,
            "annotations_sha256": dataset.annotations_sha256,
            "splits_sha256": dataset.splits_sha256,
        },
        "fold": fold,
        "options": {},
        "thresholds": dict.fromkeys(keys, THRESHOLDS),
        **info,
    }
    (folder / "run.json").write_text(json.dumps(content))
    write_predictions(folder, part, predictions)
    return Run.open(folder)


def perfect(dataset: Dataset, image_ids, answer_of=None):
    """Predictions that are the truth, of the image itself or of `answer_of[image_id]`."""
    for image_id in image_ids:
        source = image_id if answer_of is None else answer_of[image_id]
        mask = dataset.mask(source)
        yield Prediction(
            image_id=image_id,
            score=float(not dataset.image_by_id[source].is_good),
            map=mask.astype(np.float32),
            detections=[
                Detection(
                    box_ltwh=tuple(a["bbox"]),
                    score=1.0,
                    category_id=a["category_id"],
                    segmentation=a["segmentation"],
                )
                for a in dataset.annotations_by_image[source]
            ],
        )


def aupro_by_sorting(maps, masks, limit):
    """Sort every pixel; plain and slow."""
    scores, weights, good, regions = [], [], [], 0
    for anomaly_map, mask in zip(maps, masks, strict=True):
        count, labels = cv2.connectedComponents(mask, connectivity=8)
        share = np.zeros(mask.shape)
        for label in range(1, count):
            share[labels == label] = 1 / np.sum(labels == label)
        regions += count - 1
        scores.append(anomaly_map.ravel())
        weights.append(share.ravel())
        good.append((mask == 0).ravel())
    scores, weights, good = (np.concatenate(each) for each in (scores, weights, good))
    order = np.argsort(-scores, kind="stable")
    scores, weights, good = scores[order], weights[order], good[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    rate = np.append(0, np.cumsum(good)[last] / good.sum())
    overlap = np.append(0, np.cumsum(weights)[last] / regions)
    inside = rate <= limit
    at_limit = np.interp(limit, rate, overlap)
    rate, overlap = np.append(rate[inside], limit), np.append(overlap[inside], at_limit)
    return np.sum(np.diff(rate) * (overlap[1:] + overlap[:-1]) / 2) / limit


def given_boxes(dataset: Dataset, image_ids, mask_of):
    """Predictions of a run that was given the boxes of the defects; `mask_of` makes the mask of an annotation."""
    for image_id in image_ids:
        yield Prediction(
            image_id=image_id,
            detections=[
                Detection(
                    box_ltwh=tuple(a["bbox"]), score=0.3 + a["id"] % 5 / 10, segmentation=geometry.encode(mask_of(a))
                )
                for a in dataset.annotations_by_image[image_id]
            ],
        )


@pytest.fixture
def masks():
    defects = zoo()[:8] + [np.roll(mask, (1, 2), axis=(0, 1)) for mask in zoo()[:8]] + zoo()[3:5]
    names = ["crack", "stain", "chip"]
    named = [(mask, names[number % 3]) for number, mask in enumerate(defects)]
    return named + [(zoo()[8], "good")] * 12


@pytest.fixture
def dataset(tmp_path, masks):
    return make_dataset(tmp_path / "tiles", masks)


@pytest.fixture
def ids(dataset):
    return [image.id for image in dataset.images]


@pytest.fixture
def new_dataset():
    return make_dataset


@pytest.fixture
def new_run():
    return make_run


@pytest.fixture
def truth():
    return perfect


@pytest.fixture
def prompted():
    return given_boxes


@pytest.fixture
def exact_aupro():
    return aupro_by_sorting
