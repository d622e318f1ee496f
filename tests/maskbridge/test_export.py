from __future__ import annotations

import dataclasses

import pytest

from maskbridge.errors import DatasetError, OptionError
from maskbridge.export import ExportOptions, ExportReport, parts
from maskbridge.files import read_json


def chosen(dataset, **options):
    report = ExportReport("made-up", ExportOptions(**options))
    return parts(dataset, report.options, report), report


@pytest.mark.parametrize("fold", [0, 1, 2, "official"])
def test_each_part_is_the_splits_in_order(tiles, fold):
    images, report = chosen(tiles, fold=fold)
    split = tiles.split(fold)
    assert {part: tuple(image.id for image in listed) for part, listed in images.items()} == {
        "train": split.train, "val": split.val, "test": split.test,
    }  # fmt: skip
    assert report.images == {part: len(listed) for part, listed in images.items()}
    used = {*split.train, *split.val, *split.test}
    assert report.instances_in == sum(a["image_id"] in used for a in tiles.annotations)


@pytest.mark.parametrize(("negatives", "count"), [("all", None), ("0", 0), ("3", 3), ("0.5", 0.5), ("2x", 2.0)])
def test_negatives_thin_out_the_good_images_of_train_alone(tiles, negatives, count):
    everything, _ = chosen(tiles)
    images, report = chosen(tiles, negatives=negatives)
    good = sum(image.is_good for image in everything["train"])
    defective = len(everything["train"]) - good
    wanted = good if count is None else min(good, count if isinstance(count, int) else round(count * defective))
    assert sum(image.is_good for image in images["train"]) == wanted
    assert [i for i in images["train"] if not i.is_good] == [i for i in everything["train"] if not i.is_good]
    assert (images["val"], images["test"]) == (everything["val"], everything["test"])
    assert len(report.left_out["good_beyond_negatives"]) == good - wanted


def test_the_seed_chooses_other_negatives(tiles):
    first, second, other = (chosen(tiles, negatives="5", seed=seed)[0]["train"] for seed in (0, 0, 1))
    assert first == second != other


def test_a_defect_image_without_a_mask_stays_out_of_training_and_is_named(tiles):
    """Out of `val` too, by which an epoch is chosen; the test part stays what it is."""
    split = tiles.split(0)
    lost, stopped, kept = (
        next(i for i in part if tiles.annotations_by_image[i]) for part in dataclasses.astuple(split)
    )
    annotations = tuple(a for a in tiles.annotations if a["image_id"] not in (lost, stopped, kept))
    images, report = chosen(dataclasses.replace(tiles, annotations=annotations))
    assert {image.id for image in images["train"]} == set(split.train) - {lost}
    assert {image.id for image in images["val"]} == set(split.val) - {stopped}
    assert {image.id for image in images["test"]} == set(split.test)
    assert report.left_out["defect_without_mask"] == [tiles.image_by_id[i].file_name for i in (lost, stopped)]
    assert report.images["val"] == len(split.val) - 1


def test_a_fold_that_is_not_there_and_negatives_that_are_none_are_refused(tiles):
    with pytest.raises(DatasetError, match="no such fold; found 3; expected 0 to 2"):
        chosen(tiles, fold=3)
    with pytest.raises(OptionError, match="--negatives is not understood"):
        chosen(tiles, negatives="some")


def test_the_report_counts_and_lists(tmp_path):
    report = ExportReport("made-up", ExportOptions(negatives="3"), instances_in=9, written=8)
    report.changed = [{"iou": 0.5}, {"iou": 0.995}, {"why": "merged"}]
    report.dropped = [{"why": "too small"}]
    report.write(tmp_path)
    written = read_json(tmp_path / "export-report.json")
    assert written["instances"] == {"in": 9, "written": 8, "changed": 3, "dropped": 1}
    assert written["below_0.99"] == 1
    assert written["negatives"] == "3"
