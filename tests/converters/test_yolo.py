from __future__ import annotations

import dataclasses
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import yaml

from converters import yolo
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, MaskbridgeError
from maskbridge.export import ExportOptions
from maskbridge.yolo_lines import parse_detection_line

PARTS = ("train", "val", "test")


@pytest.fixture
def dataset(source, tmp_path) -> Dataset:
    """The defect zoo in two folds."""
    return converted(source, tmp_path / "data")


@pytest.fixture(scope="session")
def ultralytics(tmp_path_factory):
    """Ultralytics, its settings in a folder of its own, without network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
        patch.setenv("YOLO_OFFLINE", "true")
        from ultralytics.data import YOLODataset
        from ultralytics.data.utils import check_det_dataset

        patch.setattr("ultralytics.data.utils.check_font", lambda font: None)  # it would ask a server for one
        yield YOLODataset, check_det_dataset


def converted(source, folder, **options) -> Dataset:
    convert("mvtec", source, folder, ConvertOptions(folds=2, **options))
    return Dataset.open(folder)


def export(dataset, out, **options):
    yolo.export(dataset, out, ExportOptions(**options))
    return json.loads((out / "export-report.json").read_text())


def labels(out, part):
    return {path.stem: path.read_text().splitlines() for path in sorted((out / "labels" / part).iterdir())}


@pytest.mark.parametrize("fold", [0, 1, "official"])
def test_lines_are_the_coco_boxes_to_1e_6(dataset, tmp_path, fold):
    report = export(dataset, tmp_path / "out", fold=fold)
    count = 0
    for part in PARTS:
        found = labels(tmp_path / "out", part)
        for image_id in dataset.split(fold).part(part):
            image = dataset.image_by_id[image_id]
            lines = found[image.file_name.removesuffix(".png").replace("/", "__")]
            parsed = [parse_detection_line(line, image.size_hw) for line in lines]
            wanted = dataset.annotations_by_image[image_id]
            assert [number + 1 for number, _ in parsed] == [a["category_id"] for a in wanted]
            for (_, box), annotation in zip(parsed, wanted, strict=True):
                np.testing.assert_allclose(box, annotation["bbox"], atol=1e-6, rtol=0)
            count += len(lines)
    assert report["instances"] == {"in": count, "written": count, "changed": 0, "dropped": 0}
    assert count > 0


def test_every_image_has_a_label_file_empty_for_good_and_labels_hold_nothing_else(dataset, tmp_path):
    export(dataset, tmp_path / "out")
    for part in PARTS:
        images = {path.stem for path in (tmp_path / "out" / "images" / part).iterdir()}
        found = labels(tmp_path / "out", part)
        assert set(found) == images
        assert len(images) == len(dataset.split(0).part(part))
        for stem, lines in found.items():
            assert (lines == []) == ("__good__" in stem)
    files = [path for path in (tmp_path / "out").rglob("*.txt")]
    assert {path.parent.parent.name for path in files} == {"labels"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data.yaml",
        "export-report.json",
        "images",
        "labels",
    ]


def test_data_yaml_has_no_path_and_the_names_in_the_order_of_the_classes(dataset, tmp_path):
    export(dataset, tmp_path / "out")
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert data == {
        "train": "images/train", "val": "images/val", "test": "images/test", "names": {0: "crack", 1: "stain"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["no", "1", "naïve 傷", 'a"b', "a: b", "#x", "- x", "null", "~", "a\\b", "{x}", "1e3"])
def test_any_type_name_survives_yaml(dataset, tmp_path, name):
    categories = ({**dataset.categories[0], "name": name}, dataset.categories[1])
    export(dataclasses.replace(dataset, categories=categories), tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["names"] == {0: name, 1: "stain"}


def test_a_dataset_without_types_has_an_empty_table_of_names(dataset, tmp_path):
    export(dataclasses.replace(dataset, categories=(), annotations=()), tmp_path / "out", fold="official")
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["names"] == {}


def test_classes_count_from_0_whatever_the_category_ids_are(dataset, tmp_path):
    ids = {1: 7, 2: 3}
    changed = dataclasses.replace(
        dataset,
        categories=tuple({**c, "id": ids[c["id"]]} for c in dataset.categories),
        annotations=tuple({**a, "category_id": ids[a["category_id"]]} for a in dataset.annotations),
    )
    export(dataset, tmp_path / "one")
    export(changed, tmp_path / "two")
    for part in PARTS:
        assert labels(tmp_path / "one", part) == labels(tmp_path / "two", part)


def test_spaces_unicode_and_upper_case_extensions_keep_their_labels(source, tmp_path):
    crack, truth = source / "test" / "crack", source / "ground_truth" / "crack"
    for old, new in (("000", "a b.c"), ("001", "傷 ß"), ("002", "UP")):
        suffix = ".PNG" if new == "UP" else ".png"
        (crack / f"{old}.png").rename(crack / f"{new}{suffix}")
        (truth / f"{old}_mask.png").rename(truth / f"{new}_mask.png")
    dataset = converted(source, tmp_path / "data")
    export(dataset, tmp_path / "out", fold="official")
    found = labels(tmp_path / "out", "test")
    for stem in ("a b.c", "傷 ß", "UP"):
        assert len(found[f"test__crack__{stem}"]) == 1
    assert (tmp_path / "out" / "images" / "test" / "test__crack__UP.PNG").is_file()


def test_two_images_never_share_a_label_file(dataset, tmp_path):
    """`1.png` and `1.jpg`; folders that flatten to the same name; upper and lower case."""
    test = [dataset.image_by_id[i] for i in dataset.split("official").test if dataset.annotations_by_image[i]]
    names = [
        "test/crack/1.png",
        "test/crack/1.jpg",
        "test/a__b/c.png",
        "test/a/b__c.png",
        "test/crack/X.png",
        "test/crack/x.png",
    ]
    renamed = {image.id: dataclasses.replace(image, file_name=name) for image, name in zip(test, names, strict=False)}
    for image in renamed.values():
        target = tmp_path / "twins" / "images" / image.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dataset.image_path(image.id), target)
    twins = dataclasses.replace(
        dataset,
        path=tmp_path / "twins",
        images=tuple(renamed.values()),
        annotations=tuple(a for a in dataset.annotations if a["image_id"] in renamed),
        splits={**dataset.splits, "official": {"train": [], "test": sorted(renamed)}},
    )
    export(twins, tmp_path / "out", fold="official")
    found = labels(tmp_path / "out", "test")
    assert len({stem.casefold() for stem in found}) == len(renamed)
    for image_id in renamed:
        (lines,) = [lines for stem, lines in found.items() if stem.endswith(f"__{image_id}")]
        assert len(lines) == len(dataset.annotations_by_image[image_id])


def test_equal_boxes_are_written_and_reported_since_ultralytics_keeps_one(dataset, tmp_path):
    image_id = next(i for i in dataset.split(0).train if dataset.annotations_by_image[i])
    twin = {**dataset.annotations_by_image[image_id][0], "id": 999}
    report = export(dataclasses.replace(dataset, annotations=(*dataset.annotations, twin)), tmp_path / "out")
    (entry,) = report["changed"]
    assert entry["file_name"] == dataset.image_by_id[image_id].file_name
    assert "2 instances have this line" in entry["why"]
    assert report["instances"]["written"] == report["instances"]["in"]


@pytest.mark.parametrize("negatives", ["0", "1", "all"])
def test_negatives_become_background_images(dataset, tmp_path, negatives):
    export(dataset, tmp_path / "out", negatives=negatives)
    empty = [stem for stem, lines in labels(tmp_path / "out", "train").items() if not lines]
    good = sum(dataset.image_by_id[i].is_good for i in dataset.split(0).train)
    assert len(empty) == (good if negatives == "all" else int(negatives))


def test_the_official_parts_are_exported_with_an_empty_val(dataset, tmp_path):
    report = export(dataset, tmp_path / "out", fold="official")
    assert report["images"] == {"train": 4, "val": 0, "test": 11}
    assert list((tmp_path / "out" / "images" / "val").iterdir()) == []
    assert all(lines == [] for lines in labels(tmp_path / "out", "train").values())


def test_overwrite_replaces_an_export_and_nothing_else(dataset, tmp_path, tree):
    export(dataset, tmp_path / "out")
    with pytest.raises(MaskbridgeError, match="is not empty"):
        export(dataset, tmp_path / "out")
    export(dataset, tmp_path / "out", overwrite=True)
    before = tree(dataset.path)
    with pytest.raises(MaskbridgeError, match="left alone"):
        export(dataset, dataset.path, overwrite=True)
    assert tree(dataset.path) == before


def test_an_image_that_is_missing_is_named_and_nothing_is_written(dataset, tmp_path):
    dataset.image_path(3).unlink()
    with pytest.raises(DatasetError, match=r"002\.png: image is missing; run `maskbridge check`"):
        export(dataset, tmp_path / "out", fold="official")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source"]


@pytest.mark.slow
def test_ultralytics_reads_the_same_counts_and_boxes(dataset, tmp_path, monkeypatch, ultralytics):
    dataset_class, check_det_dataset = ultralytics
    monkeypatch.chdir(tmp_path)
    export(dataset, tmp_path / "out")
    data = check_det_dataset(str(tmp_path / "out" / "data.yaml"))
    assert data["names"] == {0: "crack", 1: "stain"}
    for part in ("train", "test"):  # val is empty: two images of a type are too few
        assert data[part] == str(tmp_path / "out" / "images" / part)
        read = dataset_class(img_path=data[part], data=data, imgsz=64, augment=False)
        assert len(read) == len(dataset.split(0).part(part))
        found = {os.path.basename(label["im_file"]): label for label in read.labels}
        for image_id in dataset.split(0).part(part):
            image = dataset.image_by_id[image_id]
            label = found[image.file_name.replace("/", "__")]
            wanted = dataset.annotations_by_image[image_id]
            assert label["shape"] == image.size_hw
            assert label["cls"].ravel().tolist() == [a["category_id"] - 1 for a in wanted]
            boxes = label["bboxes"] * [64, 48, 64, 48]
            boxes[:, :2] -= boxes[:, 2:] / 2
            np.testing.assert_allclose(boxes, [a["bbox"] for a in wanted] or np.zeros((0, 4)), atol=1e-4)


@pytest.mark.slow
def test_ultralytics_leaves_the_datasets_images_as_they_are(source, tmp_path, ultralytics):
    """It repairs a JPEG that goes on after its end; the export's hard link must not let it reach the source."""
    dataset_class, check_det_dataset = ultralytics
    pixels = cv2.imread(str(source / "train" / "good" / "000.png"))
    (source / "train" / "good" / "000.png").unlink()
    jpeg = source / "train" / "good" / "000.jpg"
    cv2.imwrite(str(jpeg), pixels)
    jpeg.write_bytes(jpeg.read_bytes() + b"written by the camera")
    before = jpeg.read_bytes()
    dataset = converted(source, tmp_path / "data")
    export(dataset, tmp_path / "out", fold="official")
    data = check_det_dataset(str(tmp_path / "out" / "data.yaml"))
    dataset_class(img_path=data["train"], data=data, imgsz=64, augment=False)
    assert jpeg.read_bytes() == before
    assert dataset.image_path(1).read_bytes() == before
