from __future__ import annotations

import contextlib
import io
import json
import os

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
            assert (tmp_path / "out" / "images" / image["file_name"]).is_file()
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
            str(tmp_path / "out" / "images"), str(tmp_path / "out" / "annotations" / f"instances_{part}.json")
        )
        assert len(pairs) == len(dataset.split(0).part(part))
        for picture, target in pairs:
            assert picture.size == (64, 48)
            found += len(target)
    assert found == len(dataset.annotations)


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
    target = tmp_path / "out" / "images" / dataset.image_by_id[1].file_name
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
