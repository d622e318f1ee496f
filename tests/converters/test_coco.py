from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from converters import coco
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, MaskbridgeError
from maskbridge.export import ExportOptions

PARTS = ("train", "val", "test")


@pytest.fixture
def dataset(source, tmp_path) -> Dataset:
    """The defect zoo in two folds."""
    convert("mvtec", source, tmp_path / "data", ConvertOptions(folds=2))
    return Dataset.open(tmp_path / "data")


def export(dataset, out, **options):
    coco.export(dataset, out, ExportOptions(**options))
    return json.loads((out / "export-report.json").read_text())


def loaded(out, part) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(out / "annotations" / f"instances_{part}.json"))


def test_pycocotools_reads_every_instance_exactly(dataset, tmp_path):
    report = export(dataset, tmp_path / "out")
    seen = []
    for part in PARTS:
        api = loaded(tmp_path / "out", part)
        assert tuple(sorted(api.imgs)) == dataset.split(0).part(part)
        assert api.cats == {c["id"]: c for c in dataset.categories}
        for number, annotation in api.anns.items():
            seen.append(number)
            original = next(a for a in dataset.annotations if a["id"] == number)
            mask = api.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            assert annotation["bbox"] == original["bbox"] == [
                columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1,
            ]  # fmt: skip
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
        for image in api.imgs.values():
            original = dataset.image_by_id[image["id"]]
            assert image["file_name"] == original.file_name.replace("/", "__")
            placed = tmp_path / "out" / "images" / part / image["file_name"]
            assert placed.read_bytes() == dataset.image_path(original.id).read_bytes()
        assert len(list((tmp_path / "out" / "images" / part).iterdir())) == len(api.imgs)
    used = {i for part in PARTS for i in dataset.split(0).part(part)}
    assert sorted(seen) == [a["id"] for a in dataset.annotations if a["image_id"] in used]
    assert report["instances"] == {"in": len(seen), "written": len(seen), "changed": 0, "dropped": 0}


def test_good_images_are_listed_without_annotations(dataset, tmp_path):
    export(dataset, tmp_path / "out")
    api = loaded(tmp_path / "out", "test")
    good = [i for i in dataset.split(0).test if dataset.image_by_id[i].is_good]
    assert good
    assert all(api.getAnnIds([i]) == [] for i in good)


@pytest.mark.slow
def test_torchvision_reads_the_same_counts(dataset, tmp_path):
    from torchvision.datasets import CocoDetection

    export(dataset, tmp_path / "out")
    found = 0
    for part in PARTS:
        pairs = CocoDetection(
            str(tmp_path / "out" / "images" / part), str(tmp_path / "out" / "annotations" / f"instances_{part}.json")
        )
        assert len(pairs) == len(dataset.split(0).part(part))
        for picture, target in pairs:
            assert picture.size == (64, 48)
            found += len(target)
    assert found == len(dataset.annotations)


def test_supervision_reads_the_same_masks_from_the_folder_of_each_part(dataset, tmp_path):
    supervision = pytest.importorskip("supervision")
    export(dataset, tmp_path / "out")
    found = 0
    for part in PARTS:
        read = supervision.DetectionDataset.from_coco(
            str(tmp_path / "out" / "images" / part),
            str(tmp_path / "out" / "annotations" / f"instances_{part}.json"),
            force_masks=True,
        )
        by_name = {dataset.image_by_id[i].file_name.replace("/", "__"): i for i in dataset.split(0).part(part)}
        assert len(read) == len(by_name)
        for path, picture, detections in read:
            image_id = by_name.pop(Path(path).name)
            assert picture.shape == (48, 64, 3)
            if len(detections):
                np.testing.assert_array_equal(detections.mask.any(axis=0), dataset.mask(image_id) > 0)
            found += len(detections)
    assert found == len(dataset.annotations)


@pytest.mark.peers
def test_hugging_face_finds_the_images_of_each_part(plates, tmp_path):
    load_dataset = pytest.importorskip("datasets").load_dataset
    dataset = Dataset.open(plates)
    export(dataset, tmp_path / "out")
    read = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out" / "images"), cache_dir=str(tmp_path / "cache"), drop_labels=True
    )
    split = dataset.split(0)
    assert min(len(split.train), len(split.val), len(split.test)) > 0
    assert {part: len(rows) for part, rows in read.items()} == {
        "train": len(split.train),
        "validation": len(split.val),
        "test": len(split.test),
    }


@pytest.mark.peers
def test_datumaro_finds_every_image_and_every_pixel(plates, tmp_path):
    datumaro = pytest.importorskip("datumaro")
    dataset = Dataset.open(plates)
    export(dataset, tmp_path / "out")
    read = datumaro.Dataset.import_from(str(tmp_path / "out"), "coco_instances")
    places = {}
    for part in PARTS:
        for image_id in dataset.split(0).part(part):
            places[part, dataset.image_by_id[image_id].file_name.replace("/", "__").removesuffix(".png")] = image_id
    for item in read:
        image_id = places.pop((item.subset, item.id))
        size_hw = dataset.image_by_id[image_id].size_hw
        assert item.media.data.shape == (*size_hw, 3)
        union = np.zeros(size_hw, bool)
        for annotation in item.annotations:
            if annotation.type == datumaro.AnnotationType.mask:
                union |= annotation.image.astype(bool)
        np.testing.assert_array_equal(union, dataset.mask(image_id) > 0)
    assert places == {}


@pytest.mark.parametrize(("negatives", "count"), [("0", 0), ("1", 1), ("0.5", 2)])
def test_negatives_thin_out_train(dataset, tmp_path, negatives, count):
    defective = sum(bool(dataset.annotations_by_image[i]) for i in dataset.split(0).train)
    assert defective == 4
    assert export(dataset, tmp_path / "out", negatives=negatives)["images"]["train"] == defective + count


def test_the_official_parts_are_exported_with_an_empty_val(dataset, tmp_path):
    report = export(dataset, tmp_path / "out", fold="official")
    assert report["images"] == {"train": 4, "val": 0, "test": 11}
    assert report["instances"]["written"] == len(dataset.annotations)
    assert loaded(tmp_path / "out", "val").imgs == {}


@pytest.mark.parametrize(("link", "links"), [("hard", 2), ("copy", 1), ("symlink", 1)])
def test_images_are_linked_as_asked(dataset, tmp_path, link, links):
    dataset_links = os.stat(dataset.image_path(1)).st_nlink
    export(dataset, tmp_path / "out", link=link, fold="official")
    target = tmp_path / "out" / "images" / "train" / dataset.image_by_id[1].file_name.replace("/", "__")
    assert target.is_symlink() == (link == "symlink")
    assert target.samefile(dataset.image_path(1)) == (link != "copy")
    assert os.stat(dataset.image_path(1)).st_nlink == dataset_links + (links - 1)
    assert target.read_bytes() == dataset.image_path(1).read_bytes()


def test_overwrite_replaces_an_export_and_nothing_else(dataset, tmp_path, tree):
    export(dataset, tmp_path / "out")
    with pytest.raises(MaskbridgeError, match="is not empty"):
        export(dataset, tmp_path / "out", fold=1)
    assert export(dataset, tmp_path / "out", fold=1, overwrite=True)["fold"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for taken in (tmp_path / "mine", dataset.path):
        before = tree(taken)
        with pytest.raises(MaskbridgeError, match="made by maskbridge and is left alone"):
            export(dataset, taken, overwrite=True)
        assert tree(taken) == before


def test_an_image_that_is_missing_is_named_and_nothing_is_written(dataset, tmp_path):
    dataset.image_path(3).unlink()
    with pytest.raises(DatasetError, match=r"002\.png: image is missing; run `maskbridge check`"):
        export(dataset, tmp_path / "out", fold="official")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source"]
