from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from finetune import yolo_world
from finetune._yolo_world_data import prepare
from finetune._yolo_world_prompts import prompts
from finetune._yolo_world_text import read_features
from maskbridge.approach import Context
from maskbridge.dataset import Dataset
from maskbridge.errors import OptionError
from maskbridge.files import sha256_file

HASHED = {"weights": "none", "text_features": "hashed"}


@pytest.fixture
def prepared(data, tmp_path):
    """Prepare with options; the folder of labels, and what is said of it."""

    def run(**options):
        context = Context(device="cpu", seed=0, work=tmp_path / "work")
        done = prepare(data, prompts(data.dataset), yolo_world.Config(**HASHED, **options), context)
        return done.yaml.parent, done

    return run


def words(folder, part="train"):
    return [
        line.split() for path in sorted((folder / "labels" / part).iterdir()) for line in path.read_text().splitlines()
    ]


def test_labels_are_boxes_or_polygons_of_the_same_instances(prepared, data):
    instances = sum(len(data.dataset.annotations_by_image[i]) for i in data.train)
    folder, _ = prepared()
    boxes = words(folder)
    assert {len(line) for line in boxes} == {5}
    folder, _ = prepared(labels="polygons")
    polygons = words(folder)
    assert min(len(line) for line in polygons) >= 7
    assert len(boxes) == len(polygons) == instances
    assert [line[0] for line in boxes] == [line[0] for line in polygons]
    for box, polygon in zip(boxes, polygons, strict=True):
        x, y, w, h = map(float, box[1:])
        corners = np.array(polygon[1:], dtype=float).reshape(-1, 2)
        low, high = corners.min(axis=0), corners.max(axis=0)
        np.testing.assert_allclose([*low, *high], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], atol=0.02)


def test_every_image_has_a_label_file_and_every_class_its_features(prepared):
    """A missing label file would silently be background."""
    folder, done = prepared()
    for part in ("train", "val", "test"):
        images = {path.stem for path in (folder / "images" / part).iterdir()}
        assert images == {path.stem for path in (folder / "labels" / part).iterdir()}
    assert list(read_features(folder / "text-features.npz")) == ["chip", "scratch", "stain"]
    assert done.good + done.defective == len(list((folder / "images" / "train").iterdir()))
    assert "path:" not in (folder / "data.yaml").read_text(), "Ultralytics would look it up in a folder of its own"


@pytest.mark.parametrize("labels", ["boxes", "polygons"])
def test_rehearsed_types_stand_behind_ours_and_equal_ones_are_ours(prepared, plates, tmp_path, labels):
    other = shutil.copytree(plates, tmp_path / "other")
    text = (other / "annotations.json").read_text()
    (other / "annotations.json").write_text(text.replace('"name": "stain"', '"name": "rust"'))
    folder, done = prepared(rehearse=str(other), labels=labels, negatives="0")
    assert (
        'names:\n  0: "chip"\n  1: "scratch"\n  2: "stain"\n  3: "plate rust"\n' in (folder / "data.yaml").read_text()
    )
    numbers = {int(line[0]) for line in words(folder, "rehearsed")}
    assert numbers == {0, 1, 3}
    assert done.features.shape == (3, 512)
    assert done.rehearsed == len(list((folder / "images" / "rehearsed").iterdir()))


def test_a_dataset_that_leaves_nothing_to_rehearse_is_refused(prepared, plates, data, tmp_path):
    other = shutil.copytree(plates, tmp_path / "other")
    content = json.loads((other / "splits.json").read_text())
    held = sorted(set(Dataset.open(plates).image_by_id) - set(data.train))
    content["folds"][0] |= {"train": held, "val": [], "test": []}
    (other / "splits.json").write_text(json.dumps(content))
    with pytest.raises(OptionError, match="--rehearse has no image with a defect"):
        prepared(rehearse=str(other))


def test_a_rehearsed_image_of_the_group_of_a_held_out_one_is_left_out(prepared, plates, data, tmp_path):
    """Another exposure of the same part, another file; so is the same picture encoded anew."""
    other = shutil.copytree(plates, tmp_path / "other")
    content = json.loads((other / "annotations.json").read_text())
    content["info"] = {"description": "other"}
    train = Dataset.open(plates).split(0).train
    held = data.val[0]
    rehearsable = [i for i in train if data.dataset.annotations_by_image[i]]
    sibling, copy = rehearsable[0], rehearsable[1]
    by_id = {image["id"]: image for image in content["images"]}
    by_id[sibling]["group"] = by_id[held]["group"]
    path = other / "images" / by_id[copy]["file_name"]
    picture = cv2.imread(str(data.dataset.image_path(data.val[1])))
    path.write_bytes(cv2.imencode(".png", cv2.rotate(picture, cv2.ROTATE_180))[1].tobytes())
    by_id[copy] |= {"sha256": sha256_file(path), "width": picture.shape[1], "height": picture.shape[0]}
    by_id[data.val[1]]["sha256"] = "0" * 64  # the other dataset has the copy alone
    (other / "annotations.json").write_text(json.dumps(content))
    _, done = prepared(rehearse=str(other), negatives="0")
    assert done.rehearsed_left_out == 2
    assert done.rehearsed == len(rehearsable) - 2
    [(dataset, _, ids)] = done.also_trained_on
    assert dataset.path == other
    assert set(ids) == set(train) - {sibling, copy}


@pytest.mark.parametrize("tile", [0, 40])
def test_a_defect_image_without_a_mask_is_no_background(data, prepared, tmp_path, tile):
    lost = [next(i for i in part if data.dataset.annotations_by_image[i]) for part in (data.train, data.val)]
    annotations = tuple(a for a in data.dataset.annotations if a["image_id"] not in lost)
    bare = dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, annotations=annotations))
    context = Context(device="cpu", seed=0, work=tmp_path / "work")
    config = yolo_world.Config(**HASHED, tile=tile, negatives="all")
    folder = prepare(bare, prompts(bare.dataset), config, context).yaml.parent
    for part, image_id in zip(("train", "val"), lost, strict=True):
        name = Path(data.dataset.image_by_id[image_id].file_name)
        names = [path.name for path in (folder / "images" / part).iterdir()]
        assert names
        assert not [each for each in names if name.stem in each.split("__")[2] and f"__{name.parent.name}__" in each]
