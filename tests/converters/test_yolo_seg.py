from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from converters import yolo_seg
from maskbridge import geometry
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.export import ExportOptions
from maskbridge.polygons import loader_masks

PARTS = ("train", "val", "test")


@pytest.fixture
def new_dataset(source, tmp_path):
    """The defect zoo in two folds."""

    def make(**options) -> Dataset:
        convert("mvtec", source, tmp_path / "data", ConvertOptions(folds=2, **options))
        return Dataset.open(tmp_path / "data")

    return make


def export(dataset, out, **options):
    yolo_seg.export(dataset, out, ExportOptions(**options))
    return json.loads((out / "export-report.json").read_text())


def lines_of(dataset, out, fold, image_id):
    part = next(part for part in PARTS if image_id in dataset.split(fold).part(part))
    name = dataset.image_by_id[image_id].file_name.removesuffix(".png").replace("/", "__")
    return (out / "labels" / part / f"{name}.txt").read_text().splitlines()


def test_every_defect_of_the_zoo_comes_back_through_the_loader_pixel_by_pixel(new_dataset, tmp_path):
    dataset = new_dataset()
    report = export(dataset, tmp_path / "out", fold="official")
    for image in dataset.images:
        lines = lines_of(dataset, tmp_path / "out", "official", image.id)
        annotations = dataset.annotations_by_image[image.id]
        for mask, annotation in zip(loader_masks(lines, image.size_hw), annotations, strict=True):
            np.testing.assert_array_equal(mask, geometry.decode(annotation["segmentation"]))
        assert [int(line.split()[0]) + 1 for line in lines] == [a["category_id"] for a in annotations]
    count = len(dataset.annotations)
    assert report["instances"] == {"in": count, "written": count, "changed": 0, "dropped": 0}
    assert report["below_0.99"] == 0
    exact = {"count": count, "exact": count, "mean": 1.0, "smallest": 1.0}
    assert report["polygons"] == {"ultralytics": exact, "area": exact}
    assert report["format"] == "yolo-seg"


def test_merged_instances_are_written_as_one_polygon_for_each_component_and_reported(new_dataset, tmp_path):
    dataset = new_dataset(instances="image")
    report = export(dataset, tmp_path / "out", fold="official")
    torn = {a["id"]: geometry.component_count(geometry.decode(a["segmentation"])) for a in dataset.annotations}
    several = {number: count for number, count in torn.items() if count > 1}
    assert several
    assert {entry["annotation"] for entry in report["changed"]} == set(several)
    for entry in report["changed"]:
        assert entry["why"] == f"one instance of {several[entry['annotation']]} components became as many polygons"
    for annotation in dataset.annotations:
        lines = lines_of(dataset, tmp_path / "out", "official", annotation["image_id"])
        assert len(lines) == torn[annotation["id"]]
        size_hw = dataset.image_by_id[annotation["image_id"]].size_hw
        union = np.max(list(loader_masks(lines, size_hw)), axis=0)
        np.testing.assert_array_equal(union, geometry.decode(annotation["segmentation"]))
    assert report["instances"]["written"] == report["instances"]["in"] == len(dataset.annotations)


def test_pycocotools_fills_every_polygon_with_the_same_pixels(new_dataset, tmp_path):
    dataset = new_dataset()
    export(dataset, tmp_path / "out", fold="official")
    for annotation in dataset.annotations:
        height, width = size_hw = dataset.image_by_id[annotation["image_id"]].size_hw
        assert size_hw == (48, 64)
        lines = lines_of(dataset, tmp_path / "out", "official", annotation["image_id"])
        place = [a["id"] for a in dataset.annotations_by_image[annotation["image_id"]]].index(annotation["id"])
        polygon = np.array(lines[place].split()[1:], dtype=float).reshape(-1, 2) * (width, height)
        filled = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], height, width))[..., 0]
        np.testing.assert_array_equal(filled, geometry.decode(annotation["segmentation"]))


def test_what_does_not_come_back_exactly_is_listed_with_both_ious_and_told(new_dataset, tmp_path, monkeypatch, capfd):
    from maskbridge.cli import main

    ious = itertools.cycle([1.0, 0.9])
    monkeypatch.setattr(yolo_seg, "round_trip_iou", lambda *_: next(ious))
    dataset = new_dataset()
    assert main(["export", "yolo-seg", str(dataset.path), str(tmp_path / "out"), "--fold", "official"]) == 0
    report = json.loads((tmp_path / "out" / "export-report.json").read_text())
    count = report["instances"]["written"]
    assert report["below_0.99"] == report["instances"]["changed"] == count
    assert {entry["iou"] for entry in report["changed"]} == {0.9}
    assert [entry["iou_by_reader"] for entry in report["changed"]] == [{"ultralytics": 1.0, "area": 0.9}] * count
    assert report["polygons"]["area"] == {"count": count, "exact": 0, "mean": 0.9, "smallest": 0.9}
    told = capfd.readouterr().err
    assert f"polygons through Ultralytics' loader: {count} of {count} exact, smallest IoU 1.0" in told
    assert f"polygons filled as areas: 0 of {count} exact, smallest IoU 0.9" in told


def test_equal_instances_are_reported_since_ultralytics_keeps_one(new_dataset, tmp_path):
    dataset = new_dataset()
    twin = {**dataset.annotations[0], "id": 999}
    report = export(
        dataclasses.replace(dataset, annotations=(*dataset.annotations, twin)), tmp_path / "out", fold="official"
    )
    assert ["2 instances have this line" in entry["why"] for entry in report["changed"]] == [True]


@pytest.mark.slow
def test_ultralytics_reads_the_same_counts_and_pixels(new_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    from ultralytics.data import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    dataset = new_dataset()
    export(dataset, tmp_path / "out", fold="official")
    data = check_det_dataset(str(tmp_path / "out" / "data.yaml"))
    read = YOLODataset(
        img_path=data["test"], data=data, task="segment", imgsz=(48, 64), augment=False, rect=False,
        hyp=hyper_parameters(),
    )  # fmt: skip
    assert sum(len(label["cls"]) for label in read.labels) == len(dataset.annotations)
    for index in range(len(read)):
        item = read[index]
        image = next(i for i in dataset.images if i.file_name.replace("/", "__") == item["im_file"].rsplit("/", 1)[1])
        loaded = item["masks"].numpy()[0] > 0
        np.testing.assert_array_equal(loaded, dataset.mask(image.id) > 0)


def hyper_parameters():
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides={"mask_ratio": 1, "overlap_mask": True})
