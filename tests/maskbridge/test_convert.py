import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge import convert as conversion
from maskbridge import near_duplicates
from maskbridge.check import check
from maskbridge.cli import main
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.errors import OptionError, SourceError

Refused = Callable[..., str]


def converted(source: Path, **options: object) -> Dataset:
    out = source.parent / "out"
    convert("mvtec", source, out, ConvertOptions(**{"folds": 2, **options}))
    assert check(out) == []
    return Dataset.open(out)


def image_named(dataset: Dataset, file_name: str):
    return next(image for image in dataset.images if image.file_name == file_name)


# What comes out


def test_every_pixel_of_every_mask_comes_back_with_tight_boxes(source: Path) -> None:
    dataset = converted(source)
    for image in dataset.images:
        found = dataset.annotations_by_image[image.id]
        if image.is_good:
            assert not found
            continue
        path = source / "ground_truth" / image.defect_type / f"{Path(image.file_name).stem}_mask.png"
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(dataset.mask(image.id), mask > 0)
        assert len(found) == cv2.connectedComponents(mask, connectivity=8)[0] - 1
    assert [annotation["id"] for annotation in dataset.annotations] == list(range(1, 12))
    assert {annotation["iscrowd"] for annotation in dataset.annotations} == {0}


def test_every_image_is_listed_with_its_place_in_the_source(source: Path) -> None:
    dataset = converted(source)
    assert [image.id for image in dataset.images] == list(range(1, 16))
    assert Counter(image.origin for image in dataset.images) == {
        "train/good": 4,
        "test/good": 3,
        "test/crack": 4,
        "test/stain": 4,
    }
    for image in dataset.images:
        original = source / image.file_name
        assert dataset.image_path(image.id).read_bytes() == original.read_bytes()
        assert image.size_hw == (48, 64)
    assert dataset.product == "source"
    assert [(c["id"], c["name"], c["supercategory"]) for c in dataset.categories] == [
        (1, "crack", "source"),
        (2, "stain", "source"),
    ]


def test_images_of_several_sizes_keep_theirs(tmp_path: Path, new_source) -> None:
    masks = [np.full((30, 50), 255, np.uint8), np.full((50, 30), 255, np.uint8)]
    dataset = converted(new_source(tmp_path / "source", {"crack": masks}))
    assert {image.size_hw for image in dataset.images} == {(30, 50), (50, 30), (48, 64)}


def test_min_area_drops_are_counted_and_named(source: Path) -> None:
    dataset = converted(source, min_area=5)
    dropped = dataset.card["changes"]["dropped_instances"]
    assert dropped == {"count": 2, "areas_px": {"test/crack/002.png": [4], "test/stain/003.png": [1]}}
    assert len(dataset.annotations) == 9
    assert dataset.card["changes"]["empty_masks"]["count"] == 0


def test_one_instance_for_each_image_is_the_union_of_its_components(source: Path) -> None:
    dataset = converted(source, instances="image")
    assert [len(dataset.annotations_by_image[i.id]) for i in dataset.images if not i.is_good] == [1] * 8
    several = image_named(dataset, "test/stain/003.png")
    path = source / "ground_truth" / "stain" / "003_mask.png"
    np.testing.assert_array_equal(dataset.mask(several.id), cv2.imread(str(path), -1) > 0)
    assert dataset.annotations_by_image[several.id][0]["bbox"] == [2, 2, 61, 38]


def test_a_mask_without_a_defect_pixel_is_kept_with_no_instance_and_named(source: Path) -> None:
    cv2.imwrite(str(source / "ground_truth/crack/001_mask.png"), np.zeros((48, 64), np.uint8))
    dataset = converted(source)
    image = image_named(dataset, "test/crack/001.png")
    assert image.defect_type == "crack"
    assert dataset.annotations_by_image[image.id] == []
    assert dataset.card["changes"]["empty_masks"] == {"count": 1, "files": ["test/crack/001.png"]}
    assert dataset.card["classes"]["crack"]["images"] == 4


def test_a_type_that_ends_without_a_single_defect_is_refused(source: Path, refused: Refused) -> None:
    out = source.parent / "out"
    line = refused("convert", "mvtec", source, out, "--min-area", 9999)
    assert "source: type crack has not a single defect; found 4 below --min-area; lower --min-area" in line
    for path in (source / "ground_truth/crack").iterdir():
        cv2.imwrite(str(path), np.zeros((48, 64), np.uint8))
    line = refused("convert", "mvtec", source, out)
    assert "type crack has not a single defect; found 4 masks without a defect pixel; if these images are good" in line


def test_masks_of_0_and_1_beside_masks_of_0_and_255_keep_every_pixel(source: Path, zoo) -> None:
    cv2.imwrite(str(source / "ground_truth/crack/000_mask.png"), (zoo["line"] > 0).astype(np.uint8))
    cv2.imwrite(str(source / "ground_truth/crack/001_mask.png"), (zoo["diagonal"] > 0).astype(np.uint16) * 65535)
    dataset = converted(source)
    for name, number in (("line", "000"), ("diagonal", "001")):
        image = image_named(dataset, f"test/crack/{number}.png")
        np.testing.assert_array_equal(dataset.mask(image.id), zoo[name] > 0)
    assert dataset.card["rules"]["binarisation"] == {
        "at most two values": {"rule": "defect where > 0", "masks": 8, "values": [0, 1, 255, 65535]}
    }


def test_a_soft_mask_is_cut_at_half_its_own_highest_value_and_named_where_it_loses_much(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft = np.zeros((48, 64), np.uint8)
    soft[10, 5:25], soft[12, 5:15] = 150, [*range(1, 9), 74, 75]
    cv2.imwrite(str(source / "ground_truth/crack/000_mask.png"), soft)
    dataset = converted(source)
    image = image_named(dataset, "test/crack/000.png")
    np.testing.assert_array_equal(dataset.mask(image.id), soft >= 75)
    assert dataset.card["rules"]["binarisation"]["more values"]["files"] == {
        "test/crack/000.png": {"threshold": 75, "above_zero_px": 30, "defect_px": 21}
    }
    assert "masks that lose a fifth" in capsys.readouterr().err
    assert main(["card", str(dataset.path)]) == 0
    text = capsys.readouterr().out
    assert "masks (at most two values): defect where > 0; 7 masks, values 0, 255" in text
    assert "masks (more values): defect where at least half the file's highest value; 1 masks, highest 150" in text
    assert "mask loses 9 of 30 px above 0 to that cut: test/crack/000.png" in text


def test_black_masks_of_good_images_are_no_contradiction(source: Path) -> None:
    (source / "ground_truth/good").mkdir()
    cv2.imwrite(str(source / "ground_truth/good/001_mask.png"), np.zeros((48, 64), np.uint8))
    dataset = converted(source)
    assert image_named(dataset, "test/good/001.png").is_good
    assert dataset.card["changes"]["ignored_files"]["count"] == dataset.card["changes"]["empty_masks"]["count"] == 0


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("with space", ".png"),
        ("Ünïcödé 欠陥", ".PNG"),
        ("a__b", ".png"),
        ("per%cent", ".Png"),
        ("comma,quote'\"", ".png"),
        ("-x", ".png"),
    ],
)
def test_file_names_of_any_kind_survive(source: Path, name: str, suffix: str) -> None:
    (source / "test/crack/000.png").rename(source / f"test/crack/{name}{suffix}")
    (source / "ground_truth/crack/000_mask.png").rename(source / f"ground_truth/crack/{name}_mask{suffix}")
    dataset = converted(source)
    image = image_named(dataset, f"test/crack/{name}{suffix}")
    assert len(dataset.annotations_by_image[image.id]) == 1
    assert dataset.image_path(image.id).is_file()


# The same again


def test_any_number_of_workers_gives_the_same_bytes(sample: Path, plates: Path, tmp_path: Path) -> None:
    convert("mvtec", sample, tmp_path / "two", ConvertOptions(workers=2))
    for name in ("annotations.json", "splits.json"):
        assert (tmp_path / "two" / name).read_bytes() == (plates / name).read_bytes()


def test_another_seed_deals_other_folds_and_the_same_annotations(sample: Path, plates: Path, tmp_path: Path) -> None:
    convert("mvtec", sample, tmp_path / "other", ConvertOptions(seed=1))
    assert (tmp_path / "other/annotations.json").read_bytes() == (plates / "annotations.json").read_bytes()
    assert (tmp_path / "other/splits.json").read_bytes() != (plates / "splits.json").read_bytes()


@pytest.mark.parametrize("link", ["hard", "copy", "symlink"])
def test_how_images_got_there_is_recorded(source: Path, link: str) -> None:
    dataset = converted(source, link=link)
    assert dataset.card["changes"]["images_put_there_by"] == {link: 15}
    path, original = dataset.image_path(1), source / dataset.images[0].file_name
    assert path.is_symlink() == (link == "symlink")
    assert path.samefile(original) == (link != "copy")


def test_a_copy_where_a_hard_link_failed_is_recorded_as_one(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    assert converted(source).card["changes"]["images_put_there_by"] == {"copy": 15}


# Groups


def test_images_that_merely_come_from_one_product_are_not_lumped_together(plates: Path) -> None:
    dataset = Dataset.open(plates)
    assert len({image.group for image in dataset.images}) == len(dataset.images) == 88


def test_a_copy_in_training_is_kept_out_of_folds_that_test_on_it_and_listed(source: Path) -> None:
    original = cv2.imread(str(source / "test/crack/001.png"))
    cv2.imwrite(str(source / "train/good/copy.png"), original[:, ::-1])
    dataset = converted(source)
    one, copy = (image_named(dataset, name) for name in ("test/crack/001.png", "train/good/copy.png"))
    assert one.group == copy.group
    assert dataset.card["changes"]["groups_across_official_parts"] == {
        str(one.group): ["test/crack/001.png", "train/good/copy.png"]
    }
    assert ["train/good/copy.png", "test/crack/001.png"] in [
        sorted(pair, reverse=True) for pair in dataset.card["rules"]["groups"]["near_duplicates"]
    ]
    for number in range(dataset.fold_count):
        fold = dataset.split(number)
        held = one.id in {*fold.test, *fold.val}
        assert (copy.id in fold.train) != held
        listed = dataset.card["changes"]["train_images_left_out"].get(str(number), [])
        assert listed == (["train/good/copy.png"] if held else [])
    assert copy.id in dataset.split("official").train


def test_a_leak_across_the_official_parts_is_told_by_convert_card_and_check(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(source / "train/good/000.png", source / "test/good/002.png")
    dataset = converted(source)
    told = (
        "1 of 11 test images of the official split (1 of them good) share a group (near-duplicates) with its training"
    )
    assert f"  {told} part, so figures on it are too good; --drop-leaks" in capsys.readouterr().err
    assert dataset.card["changes"]["official_leaks_dropped"] == []
    for command in ("card", "check"):
        assert main([command, str(dataset.path)]) == 0
        assert told in capsys.readouterr().out


def test_drop_leaks_leaves_the_training_copy_out_of_the_official_part_alone(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(source / "train/good/000.png", source / "test/good/002.png")
    plain = converted(source)
    capsys.readouterr()
    dataset = converted(source, drop_leaks=True, overwrite=True)
    assert "1 image left out of the official training part: train/good/000.png" in capsys.readouterr().err
    leak = image_named(dataset, "train/good/000.png").id
    assert set(plain.split("official").train) - set(dataset.split("official").train) == {leak}
    assert dataset.split("official").test == plain.split("official").test
    assert dataset.splits["folds"] == plain.splits["folds"]
    assert dataset.card["changes"]["official_leaks_dropped"] == ["train/good/000.png"]
    assert dataset.card["changes"]["official_leaks"] is None
    assert main(["card", str(dataset.path)]) == 0
    assert "left out of the official training part by --drop-leaks: train/good/000.png" in capsys.readouterr().out


def test_one_picture_under_two_types_is_told_by_convert_card_and_check(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(source / "test/crack/001.png", source / "test/stain/002.png")
    shutil.copy(source / "test/crack/000.png", source / "test/crack/003.png")
    dataset = converted(source)
    told = "one picture under two types: test/crack/001.png and test/stain/002.png"
    said = capsys.readouterr().err
    assert told in said
    assert said.count("one picture under two types") == 1, "two of one type are no contradiction"
    for command in ("card", "check"):
        assert main([command, str(dataset.path)]) == 0
        assert told in capsys.readouterr().out


def test_no_good_image_to_be_tested_on_is_told(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(source / "test/good")
    converted(source)
    assert "no good image outside the training part" in capsys.readouterr().err


def test_group_by_groups_file_names_by_what_the_pattern_captures(source: Path) -> None:
    dataset = converted(source, group_by=r"test/\w+/(\d+)")
    groups = {image.file_name: image.group for image in dataset.images}
    for number in range(3):
        assert len({groups[f"test/{kind}/00{number}.png"] for kind in ("good", "crack", "stain")}) == 1
    assert len({groups[f"train/good/00{number}.png"] for number in range(4)}) == 4
    assert "--group-by" in dataset.card["rules"]["groups"]["by"]


def test_a_groups_file_groups_what_it_names(source: Path) -> None:
    table = source.parent / "groups.csv"
    table.write_text(
        "group,file_name,note\npart 7,test/crack/000.png,\npart 7,test/stain/003.png,x\n",
        encoding="utf-8-sig",
    )
    dataset = converted(source, groups=table)
    groups = Counter(image.group for image in dataset.images)
    shared = image_named(dataset, "test/crack/000.png").group
    assert shared == image_named(dataset, "test/stain/003.png").group
    assert sorted(groups.values()) == [1] * 13 + [2]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "has no header of a groups file"),
        (
            "file,group\na,b\n",
            "has no header of a groups file; found ['file', 'group']; expected file_name,group",
        ),
        ("file_name,group\ntest/crack/999.png,1\n", "found 1, the first test/crack/999.png"),
        ("file_name,group\ntest/crack/000.png\n", "line 2: cannot be used as a group"),
        ("file_name,group\ntest/crack/000.png,\n", "line 2: cannot be used as a group"),
        (
            "file_name,group\ntest/crack/000.png,1\ntest/crack/000.png,2\n",
            "line 3: cannot be used as a group",
        ),
        ("file_name,group\n\0\0\n", "groups.csv"),
    ],
)
def test_a_groups_file_that_cannot_be_used_is_refused(source: Path, refused: Refused, content: str, told: str) -> None:
    table = source.parent / "groups.csv"
    table.write_text(content)
    line = refused("convert", "mvtec", source, source.parent / "out", "--folds", 2, "--groups", table)
    assert told in line
    assert "groups.csv" in line


def test_a_groups_file_that_is_no_text_or_not_there_is_refused(source: Path, refused: Refused) -> None:
    table, out = source.parent / "groups.csv", source.parent / "out"
    assert "groups.csv: no such file" in refused("convert", "mvtec", source, out, "--groups", table)
    table.write_bytes(b"file_name,group\n\xff\xfe,1\n")
    assert "groups.csv: cannot be read" in refused("convert", "mvtec", source, out, "--groups", table)


# Bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--folds", "1"], "--folds is too small; found 1; expected at least 2"),
        (
            ["--folds", "12"],
            "--folds is larger than the number of groups of labelled images; found 12; expected at",
        ),
        (["--min-area", "0"], "--min-area"),
        (["--workers", "0"], "--workers"),
        (["--group-by", "("], "--group-by is no regular expression; found '('"),
        (["--group-by", "nothing like it"], "--group-by matches no file name"),
        (["--group-by", "a", "--groups", "a.csv"], "exclude each other"),
    ],
)
def test_an_option_that_cannot_work_is_refused(source: Path, refused: Refused, options: list[str], told: str) -> None:
    assert told in refused("convert", "mvtec", source, source.parent / "out", *options)


def test_an_unknown_layout_is_refused_with_the_nearest(source: Path, refused: Refused) -> None:
    line = refused("convert", "mvtech", source, source.parent / "out")
    assert "found mvtech; expected" in line
    assert "did you mean mvtec?" in line


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "nowhere: no such folder" in refused("convert", "mvtec", tmp_path / "nowhere", tmp_path / "out")


def test_a_mask_of_another_size_is_refused(source: Path, refused: Refused) -> None:
    cv2.imwrite(str(source / "ground_truth/crack/002_mask.png"), np.zeros((64, 48), np.uint8))
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert "crack/002_mask.png: mask has another size than its image; found 48x64; expected 64x48" in line
    assert "export the mask again" in line


@pytest.mark.parametrize("which", ["test/crack/001.png", "train/good/002.png", "ground_truth/stain/000_mask.png"])
@pytest.mark.parametrize("how", ["empty", "cut", "middle", "text"])
def test_a_damaged_image_or_mask_is_refused(source: Path, refused: Refused, which: str, how: str) -> None:
    path = source / which
    data = path.read_bytes()
    half = len(data) // 2
    contents = {
        "empty": b"",
        "cut": data[:half],
        "middle": data[:half] + b"\0\1\2\3" + data[half + 4 :],
        "text": b"no image",
    }
    path.write_bytes(contents[how])
    line = refused("convert", "mvtec", source, source.parent / "out", "--workers", 1 + (how == "cut"))
    assert f"{which}: " in line
    assert "found" in line
    assert "copy it again" in line


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_masks_are_refused_with_their_values(source: Path, refused: Refused, dtype: type, zoo) -> None:
    labels = (zoo["several"] > 0).astype(dtype)
    labels[20:40, 40:50] *= 9
    cv2.imwrite(str(source / "ground_truth/stain/003_mask.png"), labels)
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert f"{source}: masks hold labels" in line
    assert (
        "found values 0, 1, 9 in 1 of 8 masks, the first ground_truth/stain/003_mask.png, where 1 fills 3x3 pixels"
        in line
    )
    assert "write binary masks (0 and 255), one for each defect type" in line
    assert "--values" not in line


def test_a_jpeg_mask_is_read_as_one(source: Path, zoo) -> None:
    """A quarter of the highest value and less is noise there, however wide."""
    (source / "ground_truth/stain/003_mask.png").unlink()
    mask = np.where(zoo["several"] > 0, 255, 40).astype(np.uint8)
    cv2.imwrite(str(source / "ground_truth/stain/003_mask.jpg"), mask, [cv2.IMWRITE_JPEG_QUALITY, 100])
    dataset = converted(source)
    found = dataset.mask(image_named(dataset, "test/stain/003.png").id)
    np.testing.assert_array_equal(found, zoo["several"] > 0)


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_type_that_names_no_folder_is_refused(tmp_path: Path, refused: Refused, photo, name: str) -> None:
    folder = tmp_path / "tiles" / f"MT_{name}" / "Imgs"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "exp1_num_1.jpg"), photo(1))
    cv2.imwrite(str(folder / "exp1_num_1.png"), np.full((48, 64), 255, np.uint8))
    line = refused("convert", "magnetic-tile", tmp_path / "tiles", tmp_path / "out")
    assert f"has a type that cannot be the name of a folder; found '{name}'; rename it" in line


def test_a_file_name_that_is_not_utf_8_is_refused(source: Path, refused: Refused) -> None:
    os.rename(source / "train/good/000.png", os.fsencode(source / "train/good") + b"/\xff.png")
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert "has a name that is not UTF-8; found 'train/good/\\udcff.png'; rename it" in line


@pytest.mark.parametrize("name", ["x\\..\\..\\x.png", "x\\..\\y.png"])
def test_a_file_name_that_leaves_its_folder_elsewhere_is_refused(source: Path, refused: Refused, name: str) -> None:
    """On Windows a backslash parts folders; `Dataset.open` takes no such name."""
    os.rename(source / "train/good/000.png", source / "train/good" / name)
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert f"the name is not a plain relative path; found train/good/{name}; rename it" in line


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "is no regular expression"),
        ("a{99999999999}", "is no regular expression; found 'a{99999999999}': the repetition number is too large"),
        ("(?L)a", "is no regular expression"),
        ("(" * 5000, "is no regular expression"),
        ("[[:alpha:]]", "is no regular expression; found '[[:alpha:]]': Possible nested set"),
        (r"((.+)+)+\d\dx", r"takes too long; found '((.+)+)+\\d\\dx'; expected an answer for all names within"),
    ],
)
def test_a_pattern_that_is_none_or_does_not_end_is_refused(
    source: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, pattern: str, told: str
) -> None:
    monkeypatch.setattr("maskbridge.named_groups._SEARCH_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    assert f"--group-by {told}" in refused("convert", "mvtec", source, source.parent / "out", f"--group-by={pattern}")
    assert signal.getsignal(signal.SIGALRM) == before


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_a_groups_file_without_an_end_is_refused(source: Path, refused: Refused, what: str) -> None:
    table = source.parent / "groups.csv"
    os.mkfifo(table) if what == "pipe" else table.symlink_to("/dev/zero")
    line = refused("convert", "mvtec", source, source.parent / "out", "--groups", table)
    assert f"groups.csv: is not a regular file; found a {what}" in line


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--seed", "-1", "a whole number from 0 to 4294967295"),
        ("--seed", "4294967296", "a whole number from 0 to 4294967295"),
        ("--folds", "99999999999999999999", "a whole number from 0 to 1000"),
        ("--min-area", "2147483648", "a whole number from 0 to 1073741824"),
        ("--workers", "2147483648", "a whole number from 0 to 256"),
        ("--group-by", "\udcff", "text in UTF-8 or nothing"),
        ("--groups", "\udcff", "text in UTF-8 or nothing"),
    ],
)
def test_options_beyond_all_reason_are_refused_by_name(
    source: Path, refused: Refused, option: str, value: str, expected: str
) -> None:
    line = refused("convert", "mvtec", source, source.parent / "out", f"{option}={value}")
    assert f"{option} cannot be used; found " in line
    assert f"; expected {expected}" in line


def test_an_output_format_is_told_from_a_layout(source: Path, refused: Refused) -> None:
    line = refused("convert", "coco", source, source.parent / "out")
    assert "this format is for writing only; found coco; `maskbridge export coco` writes it" in line


# OUT


def test_out_that_is_not_empty_is_refused_without_overwrite(source: Path, refused: Refused) -> None:
    out = source.parent / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert "out: is not empty; choose another folder or add --overwrite" in refused("convert", "mvtec", source, out)
    assert "left alone" in refused("convert", "mvtec", source, out, "--overwrite")


def test_overwrite_replaces_a_dataset(source: Path) -> None:
    converted(source)
    (source / "train/good/000.png").unlink()
    with pytest.raises(Exception, match="not empty"):
        converted(source)
    assert len(converted(source, overwrite=True).images) == 14


def test_a_failed_overwrite_keeps_the_old_dataset(source: Path, refused: Refused) -> None:
    converted(source, link="copy")
    (source / "train/good/000.png").write_bytes(b"")
    refused("convert", "mvtec", source, source.parent / "out", "--overwrite")
    assert check(source.parent / "out") == []


@pytest.mark.parametrize("inside", [".", "out", "train/good/deep/out"])
def test_out_inside_source_is_refused(source: Path, refused: Refused, inside: str) -> None:
    for overwrite in ([], ["--overwrite"]):
        line = refused("convert", "mvtec", source, source / inside, *overwrite)
        assert "OUT lies inside SOURCE" in line
        assert f"found SOURCE {source}" in line


def test_out_inside_source_is_refused_through_a_link(source: Path, refused: Refused) -> None:
    (source.parent / "link").symlink_to(source)
    assert "OUT lies inside SOURCE" in refused("convert", "mvtec", source, source.parent / "link" / "out")


def test_a_source_inside_out_is_never_replaced(source: Path, refused: Refused) -> None:
    outer = source.parent / "outer"
    outer.mkdir()
    source = source.rename(outer / "source")
    assert "outer: is not empty" in refused("convert", "mvtec", source, outer)
    assert "left alone" in refused("convert", "mvtec", source, outer, "--overwrite")
    (outer / "dataset.json").write_text('{"sha256": {"annotations.json": "0"}}')
    assert "SOURCE lies inside OUT" in refused("convert", "mvtec", source, outer, "--overwrite")


def test_out_below_a_file_is_refused(source: Path, refused: Refused) -> None:
    (source.parent / "file").write_text("mine")
    assert "cannot be written" in refused("convert", "mvtec", source, source.parent / "file" / "out")


# Disk full and Ctrl-C


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("where", "name"),
    [(os, "link"), (shutil, "copyfile"), (os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir")],
)
def test_a_disk_that_fills_up_leaves_out_as_it_was(
    source: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, where: object, name: str, overwrite: bool
) -> None:
    if overwrite:
        converted(source)
    calls = []
    real = getattr(where, name)

    def full(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) >= {"link": 7, "copyfile": 7, "replace": 2, "fsync": 3, "mkdir": 4}.get(name, 1):
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, full)
    link = "copy" if name == "copyfile" else "hard"
    options = ["--folds", 2, "--link", link, *(["--overwrite"] if overwrite else [])]
    line = refused("convert", "mvtec", source, source.parent / "out", *options)
    assert "out: disk full, nothing was kept; found No space left on device: " in line
    assert line.endswith("; free some space\n")
    assert calls


@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        (conversion, "_examine", 7),
        (near_duplicates, "near_duplicate_pairs", 1),
        (conversion, "link_file", 9),
        (conversion, "make_card", 1),
        (conversion, "write_json", 3),
        (os, "fsync", 2),
    ],
)
def test_an_interrupt_in_the_middle_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, tree, where: object, name: str, call: int
) -> None:
    calls = []
    real = getattr(where, name)

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, interrupted)
    before = tree(source.parent)
    assert main(["convert", "mvtec", str(source), str(source.parent / "out"), "--folds", "2"]) == 130
    assert len(calls) >= call
    assert tree(source.parent) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing(source: Path, tree, workers: int) -> None:
    """A real SIGINT, while images are being decoded."""
    before = tree(source.parent)
    script = """
        import os, signal, sys, time
        from maskbridge import convert
        from maskbridge.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        examine = convert._examine
        def slowly(*arguments):
            os.write(1, b"decoding\\n")
            time.sleep(1)
            return examine(*arguments)
        convert._examine = slowly
        sys.exit(main(sys.argv[1:]))
    """
    command = ["convert", "mvtec", str(source), str(source.parent / "out"), "--workers", str(workers)]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        assert list(source.parent.glob(".out.maskbridge.partial"))
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "maskbridge: interrupted\n"
    assert tree(source.parent) == before


# The command itself


def test_convert_prints_the_folder_and_tells_what_it_dropped(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "out"
    (source / "test/notes.txt").write_text("note")
    cv2.imwrite(str(source / "ground_truth/crack/001_mask.png"), np.zeros((48, 64), np.uint8))
    assert main(["convert", "mvtec", str(source), str(out), "--folds", "2", "--min-area", "5"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "15 images, 8 instances, 15 groups" in printed.err
    assert "2 instances dropped by --min-area" in printed.err
    assert "defect images with an empty mask: 1" in printed.err
    assert "1 file ignored, named in dataset.json: neither image nor mask: test/notes.txt" in printed.err


def test_the_options_are_recorded(source: Path) -> None:
    card = json.loads((converted(source, min_area=3, seed=9).path / "dataset.json").read_text())
    assert card["options"]["min_area"] == 3
    assert card["options"]["seed"] == 9
    assert card["source"]["path"] == str(source)


@pytest.mark.parametrize("out_is_there", [False, True])
def test_a_folder_of_products_is_converted_whole_or_not_at_all(
    tmp_path: Path, new_source, zoo, tree, out_is_there: bool
) -> None:
    for name in ("a", "b"):
        new_source(tmp_path / "source" / name, {"crack": [zoo["line"], zoo["pit"]]})
    out, options = tmp_path / "out", ConvertOptions(folds=2, link="copy", overwrite=True)
    if out_is_there:
        convert("mvtec", tmp_path / "source", out, options)
    photo = tmp_path / "source/b/train/good/000.png"
    whole = photo.read_bytes()
    photo.write_bytes(b"")
    (tmp_path / "source/a/train/good/000.png").unlink()
    before = tree(tmp_path)
    with pytest.raises(SourceError):
        convert("mvtec", tmp_path / "source", out, options)
    assert tree(tmp_path) == before
    photo.write_bytes(whole)
    assert convert("mvtec", tmp_path / "source", out, options) == [out / "a", out / "b"]
    assert [len(Dataset.open(out / name).images) for name in ("a", "b")] == [8, 9]


def test_the_folder_of_one_product_that_is_taken_stops_all_of_them(
    tmp_path: Path, new_source, zoo, refused: Refused
) -> None:
    for name in ("a", "b"):
        new_source(tmp_path / "source" / name, {"crack": [zoo["line"], zoo["pit"]]})
    (tmp_path / "out/b").mkdir(parents=True)
    (tmp_path / "out/b/mine").write_text("")
    assert "out/b: is not empty" in refused("convert", "mvtec", tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("where", [".", "..", "../here"])
def test_a_dataset_does_not_replace_the_folder_one_is_in(
    source: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (source.parent / "here").mkdir()
    monkeypatch.chdir(source.parent / "here")
    line = refused("convert", "mvtec", source, where, "--folds", 2)
    assert ": is the working folder, or around it; name a new folder in it" in line


def test_a_folder_of_products_may_be_converted_into_the_folder_one_is_in(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(source, source.parent / "many" / "a")
    (source.parent / "here").mkdir()
    monkeypatch.chdir(source.parent / "here")
    assert convert("mvtec", source.parent / "many", Path("."), ConvertOptions(folds=2)) == [Path("a")]
    assert check(source.parent / "here/a") == []


def test_no_option_error_escapes_as_something_else(source: Path) -> None:
    with pytest.raises(OptionError):
        convert("mvtec", source, source.parent / "out", ConvertOptions(folds=0))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written in place": lambda path: path.write_bytes(path.read_bytes()[:-12] + os.urandom(12)),
    "written in place, its times kept": lambda path: (
        (times := (path.stat().st_atime_ns, path.stat().st_mtime_ns)),
        path.write_bytes(path.read_bytes()[:-12] + os.urandom(12)),
        os.utime(path, ns=times),
    ),
    "replaced": lambda path: (
        shutil.copyfile(path.with_name("003.png"), path.with_name("new")),
        os.replace(path.with_name("new"), path),
    ),
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "folder renamed": lambda path: path.parent.rename(path.parent.with_name("renamed")),
    "now a folder": lambda path: (path.unlink(), path.mkdir()),
    "now a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("link", ["hard", "copy", "symlink"])
@pytest.mark.parametrize("when", ["near_duplicates.near_duplicate_pairs", "link_file", "make_splits", "make_card"])
@pytest.mark.parametrize("how", CHANGES)
def test_an_image_that_changes_meanwhile_stops_the_conversion_by_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, when: str, link: str
) -> None:
    place, name = (near_duplicates, when.split(".")[1]) if "." in when else (conversion, when)
    true, done = getattr(place, name), []

    def held(*args: object, **kwargs: object) -> object:
        if not done:
            done.append(CHANGES[how](source / "test/crack/001.png"))
        return true(*args, **kwargs)

    monkeypatch.setattr(place, name, held)
    out = tmp_path / "out"
    placed = when in ("make_splits", "make_card")
    same_file = how.startswith("written") or how == "emptied"
    if placed and (link == "copy" or (link == "hard" and not same_file)):
        convert("mvtec", source, out, ConvertOptions(link=link))  # the dataset holds what was read
        assert check(out) == []
        return
    with pytest.raises(SourceError, match=r"crack/00[01]\.png: has changed since it was read"):
        convert("mvtec", source, out, ConvertOptions(link=link))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("which", ["test/crack/001.png", "ground_truth/crack/001_mask.png"])
def test_a_pipe_is_refused_and_not_waited_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    def held(item: object, options: object) -> object:
        if not stat.S_ISFIFO((source / which).stat().st_mode):
            (source / which).unlink()
            os.mkfifo(source / which)
        return true(item, options)

    true = conversion._examine
    monkeypatch.setattr(conversion, "_examine", held)
    with pytest.raises(SourceError, match=rf"{which}: is not a regular file; found a pipe"):
        convert("mvtec", source, tmp_path / "out", ConvertOptions())


def test_a_groups_file_that_is_a_pipe_is_refused_and_not_waited_for(source: Path, refused, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "groups.csv")
    line = refused("convert", "mvtec", source, tmp_path / "out", "--groups", tmp_path / "groups.csv")
    assert "groups.csv: is not a regular file; found a pipe" in line
