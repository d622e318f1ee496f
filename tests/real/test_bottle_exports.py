"""The exports of a real product, read by the tools they are made for."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from maskbridge import plugins
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.export import ExportOptions
from maskbridge.polygons import loader_masks
from maskbridge.yolo_lines import parse_detection_line

DATA = os.environ.get("MASKBRIDGE_DATA")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA, reason="needs MASKBRIDGE_DATA"),
]
PARTS = ("train", "val", "test")
INSTANCES, IMAGES = 68, 292


@pytest.fixture(scope="module")
def bottle(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("datasets") / "bottle"
    convert("mvtec", Path(DATA or "") / "mvtec_ad" / "bottle", folder, ConvertOptions(link="symlink"))
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def exported(bottle, tmp_path_factory):
    """Folder and report of an export of fold 0, by format."""
    made = {}

    def export(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("exports") / name
            plugins.load("format", name).export(bottle, folder, ExportOptions(link="symlink"))
            made[name] = folder, json.loads((folder / "export-report.json").read_text())
        return made[name]

    return export


@pytest.fixture(scope="module")
def yolo_dataset(tmp_path_factory):
    """Ultralytics' dataset loader over all parts of an export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
        patch.setenv("YOLO_OFFLINE", "true")
        from ultralytics.data import YOLODataset
        from ultralytics.data.utils import check_det_dataset

        def labels(folder, task):
            data = check_det_dataset(str(folder / "data.yaml"))
            return [
                label
                for part in PARTS
                for label in YOLODataset(img_path=data[part], data=data, task=task, imgsz=900, augment=False).labels
            ]

        yield labels


def lines_of(bottle, folder, image):
    part = next(part for part in PARTS if image.id in bottle.split(0).part(part))
    return (folder / "labels" / part / f"{image.file_name.replace('/', '__')[:-4]}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", ["yolo", "yolo-seg", "coco"])
def test_every_instance_is_written_and_none_changed(exported, name):
    _, report = exported(name)
    assert report["instances"] == {"in": INSTANCES, "written": INSTANCES, "changed": 0, "dropped": 0}
    assert report["below_0.99"] == 0
    assert sum(report["images"].values()) == IMAGES


def test_pycocotools_finds_every_instance_pixel_by_pixel(bottle, exported):
    from pycocotools.coco import COCO

    folder, _ = exported("coco")
    count = 0
    for part in PARTS:
        with contextlib.redirect_stdout(io.StringIO()):
            api = COCO(str(folder / "annotations" / f"instances_{part}.json"))
        for annotation in api.anns.values():
            mask = api.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (annotation["area"], annotation["bbox"]) == (mask.sum(), box)
        count += len(api.anns)
    assert count == INSTANCES


def test_torchvision_finds_every_instance(exported):
    from torchvision.datasets import CocoDetection

    folder, _ = exported("coco")
    parts = [
        CocoDetection(str(folder / "images" / part), str(folder / "annotations" / f"instances_{part}.json"))
        for part in PARTS
    ]
    assert all(Path(part.root, image["file_name"]).is_file() for part in parts for image in part.coco.imgs.values())
    assert sum(map(len, parts)) == IMAGES
    assert sum(len(part._load_target(i)) for part in parts for i in part.ids) == INSTANCES


@pytest.mark.parametrize(("name", "task"), [("yolo", "detect"), ("yolo-seg", "segment")])
def test_ultralytics_finds_every_instance(exported, yolo_dataset, name, task):
    labels = yolo_dataset(exported(name)[0], task)
    assert len(labels) == IMAGES
    assert sum(len(label["cls"]) for label in labels) == INSTANCES
    assert sum(len(label["segments"]) for label in labels) == (INSTANCES if task == "segment" else 0)


def test_yolo_lines_are_the_coco_boxes_to_1e_6(bottle, exported):
    folder, _ = exported("yolo")
    for image in bottle.images:
        parsed = [parse_detection_line(line, image.size_hw) for line in lines_of(bottle, folder, image)]
        wanted = bottle.annotations_by_image[image.id]
        assert [number + 1 for number, _ in parsed] == [a["category_id"] for a in wanted]
        for (_, box), annotation in zip(parsed, wanted, strict=True):
            np.testing.assert_allclose(box, annotation["bbox"], atol=1e-6, rtol=0)


def test_every_polygon_comes_back_at_an_iou_of_99_percent_or_more(bottle, exported):
    from maskbridge import geometry

    folder, report = exported("yolo-seg")
    assert report["changed"] == []
    exact = {"count": INSTANCES, "exact": INSTANCES, "mean": 1.0, "smallest": 1.0}
    assert report["polygons"] == {"ultralytics": exact, "area": exact}
    overlaps = []
    for image in bottle.images:
        annotations = bottle.annotations_by_image[image.id]
        masks = loader_masks(lines_of(bottle, folder, image), image.size_hw)
        for loaded, annotation in zip(masks, annotations, strict=True):
            true = geometry.decode(annotation["segmentation"])
            overlaps.append((loaded & true).sum() / (loaded | true).sum())
    assert len(overlaps) == INSTANCES
    assert min(overlaps) >= 0.99
