import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.approach import Prediction
from maskbridge.check import check
from maskbridge.cli import main
from maskbridge.dataset import Dataset, read_image
from maskbridge.errors import DatasetError
from maskbridge.files import sha256_file, write_json
from maskbridge.predictions import write_predictions

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(zoo_dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(zoo_dataset, tmp_path / "zoo")


def change(folder: Path, name: str, how: Change, *, sign: bool = True) -> None:
    """Change a JSON file of a dataset and, unless told otherwise, record its new hash in the card."""
    path = folder / name
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))
    if sign:
        card = json.loads((folder / "dataset.json").read_text())
        card["sha256"][name] = sha256_file(path)
        (folder / "dataset.json").write_text(json.dumps(card))


ANNOTATIONS: dict[str, tuple[Change, str]] = {
    "id 0": (lambda c: c["annotations"][0].update(id=0), "annotation 0: id is not an integer of at least 1"),
    "id text": (lambda c: c["annotations"][0].update(id="1"), "annotation 1: id is not an integer"),
    "id twice": (lambda c: c["annotations"][0].update(id=2), "annotation id 2 occurs 2 times"),
    "iscrowd": (lambda c: c["annotations"][4].update(iscrowd=1), "annotation 5: iscrowd is 1, must be 0"),
    "area": (lambda c: c["annotations"][3].update(area=7), "annotation 4: area is 7, the mask has "),
    "box": (lambda c: c["annotations"][3]["bbox"].__setitem__(2, 3), "annotation 4: bbox is ["),
    "inclusive box": (
        lambda c: c["annotations"][9].update(
            bbox=[*c["annotations"][9]["bbox"][:2], *(n - 1 for n in c["annotations"][9]["bbox"][2:])]
        ),
        "annotation 10: bbox is [",
    ),
    "category": (lambda c: c["annotations"][0].update(category_id=2), "annotation 1: category 2 is 'stain', its image"),
    "unknown category": (lambda c: c["annotations"][0].update(category_id=77), "annotation 1: category 77 is None"),
    "unknown image": (lambda c: c["annotations"][0].update(image_id=999), "annotation 1: image 999 is not listed"),
    "height and width swapped": (
        lambda c: c["annotations"][0]["segmentation"].update(size=[64, 48]),
        "annotation 1: RLE size [64, 48], image is [48, 64] [height, width]",
    ),
    "runs cut": (
        lambda c: c["annotations"][0]["segmentation"].update(counts=c["annotations"][0]["segmentation"]["counts"][:9]),
        "annotation 1: RLE has runs of ",
    ),
    "runs empty": (lambda c: c["annotations"][0]["segmentation"].update(counts=""), "annotation 1: RLE has runs of 0 "),
    "runs no runs": (lambda c: c["annotations"][0]["segmentation"].update(counts="~" * 20), "annotation 1: cannot be"),
    "polygon": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5, 1, 5, 5]]),
        "annotation 1: cannot be read",
    ),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "annotation 1: cannot be read (KeyError('bbox'))"),
    "no pixel": (
        lambda c: c["annotations"][0].update(
            bbox=[0, 0, 0, 0], area=0, segmentation=geometry.encode(np.zeros((48, 64)))
        ),
        "annotation 1: has no pixel",
    ),
    "entry of another kind": (lambda c: c["annotations"].append(5), "has an entry of the wrong kind"),
    "category id twice": (lambda c: c["categories"][0].update(id=2), "category id 2 occurs 2 times"),
    "image id 0": (lambda c: c["images"][0].update(id=0), "image 0 (train/good/000.png): id is not an integer"),
    "image id twice": (lambda c: c["images"][0].update(id=2), "image id 2 occurs 2 times"),
    "file name twice": (
        lambda c: c["images"][0].update(file_name=c["images"][1]["file_name"]),
        "file_name train/good/001.png occurs 2 times",
    ),
    "file name outside": (
        lambda c: c["images"][0].update(file_name="../dataset.json"),
        "image 1 (../dataset.json): file_name leaves the images folder",
    ),
    "absolute file name": (
        lambda c: c["images"][0].update(file_name="/etc/hostname"),
        "image 1 (/etc/hostname): file_name leaves the images folder",
    ),
    "size": (lambda c: c["images"][0].update(width=48, height=64), "is 64x48, recorded was 48x64"),
    "image hash": (lambda c: c["images"][0].update(sha256="0"), "image 1 (train/good/000.png): sha256 is "),
}


@pytest.mark.parametrize("what", sorted(ANNOTATIONS))
def test_check_finds_damaged_annotations(copy: Path, what: str) -> None:
    how, told = ANNOTATIONS[what]
    change(copy, "annotations.json", how)
    problems = check(copy)
    assert any(told in problem for problem in problems), problems


def test_check_finds_a_torn_group(copy: Path) -> None:
    splits = json.loads((copy / "splits.json").read_text())["folds"][0]
    one, two = splits["test"][0], splits["train"][0]

    def join(content: dict[str, Any]) -> None:
        by_id = {image["id"]: image for image in content["images"]}
        by_id[two]["group"] = by_id[one]["group"]

    change(copy, "annotations.json", join)
    assert any("group" in problem and "is torn between train and test" in problem for problem in check(copy))


SPLITS: dict[str, tuple[Change, str]] = {
    "in two test parts": (
        lambda s: s["folds"][1]["test"].append(s["folds"][0]["test"][0]),
        "is in 2 test parts",
    ),
    "in train and test": (
        lambda s: s["folds"][0]["train"].append(s["folds"][0]["test"][0]),
        "is in train and in test",
    ),
    "in train and val": (
        lambda s: s["folds"][0]["train"].append(s["folds"][0]["val"][0]),
        "is in train and in val",
    ),
    "in no test part": (lambda s: s["folds"][0]["test"].pop(), "is in no test part"),
    "unknown": (lambda s: s["folds"][2]["val"].append(999), "fold 2: image 999 is not listed"),
    "of another kind": (lambda s: s["folds"].append(5), "has an entry of the wrong kind"),
}


@pytest.mark.parametrize("what", sorted(SPLITS))
def test_check_finds_damaged_splits(copy: Path, what: str) -> None:
    how, told = SPLITS[what]
    change(copy, "splits.json", how)
    problems = check(copy)
    assert any(told in problem for problem in problems), problems


@pytest.mark.parametrize("name", ["annotations.json", "splits.json"])
def test_check_finds_a_file_that_was_edited(copy: Path, name: str) -> None:
    change(copy, name, lambda content: content.update(note="edited"), sign=False)
    (problem,) = check(copy)
    assert problem.startswith(f"dataset.json: sha256 of {name} is {sha256_file(copy / name)}, recorded was ")


def test_check_finds_images_that_are_missing_changed_or_cut(copy: Path) -> None:
    (copy / "images/train/good/000.png").unlink()
    pixels = cv2.imread(str(copy / "images/train/good/001.png"))
    pixels[3, 4] ^= 1
    cv2.imwrite(str(copy / "images/train/good/001.png"), pixels)
    data = (copy / "images/train/good/002.png").read_bytes()
    (copy / "images/train/good/002.png").write_bytes(data[:-9])
    problems = check(copy)
    assert [problem.split(":")[0] for problem in problems] == [
        f"image {number} (train/good/00{number - 1}.png)" for number in (1, 2, 3)
    ]
    assert problems[0].endswith("file is missing")
    assert all("sha256 is" in problem for problem in problems[1:])


def test_check_reports_every_problem_at_once(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("id 0", "area", "inclusive box", "iscrowd", "image hash"):
        change(copy, "annotations.json", ANNOTATIONS[what][0], sign=False)
    for what in ("in two test parts", "in train and val"):
        change(copy, "splits.json", SPLITS[what][0], sign=False)
    (copy / "images/test/stain/003.png").unlink()
    assert main(["check", str(copy)]) == 1
    printed = capsys.readouterr().out
    expected = [ANNOTATIONS[what][1] for what in ("id 0", "area", "inclusive box", "iscrowd", "image hash")]
    expected += [SPLITS[what][1] for what in ("in two test parts", "in train and val")]
    expected += ["file is missing", "sha256 of annotations.json", "sha256 of splits.json", "torn between train and val"]
    assert [told for told in expected if told not in printed] == []
    count = len(printed.splitlines()) - 1
    assert printed.splitlines()[-1] == f"{copy}: {count} problems"


def test_a_whole_dataset_has_no_problem(plates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(plates)]) == 0
    assert capsys.readouterr().out == f"{plates}: whole\n"


@pytest.mark.parametrize("name", ["annotations.json", "splits.json", "dataset.json"])
@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"images": 5}', "null"])
def test_what_is_no_dataset_is_one_line_of_check(copy: Path, name: str, content: str | None) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    problems = check(copy)
    assert problems
    assert all("\n" not in problem for problem in problems)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "is not a maskbridge dataset" in refused("card", tmp_path)
    assert "`maskbridge convert`" in refused("card", tmp_path / "nowhere")


def test_parts_of_a_split_are_found_by_name(plates: Path) -> None:
    dataset = Dataset.open(plates)
    official = dataset.split("official")
    assert (len(official.part("train")), len(official.part("val")), len(official.part("test"))) == (40, 0, 48)
    folds = dataset.fold_of_image()
    assert sorted(folds) == list(official.test)
    assert all(image_id in dataset.split(fold).test for image_id, fold in folds.items())


@pytest.mark.parametrize("fold", [5, -1])
def test_a_fold_that_is_not_there_is_refused(plates: Path, fold: int) -> None:
    with pytest.raises(DatasetError, match=r"no such fold; found .*; expected 0 to 4"):
        Dataset.open(plates).split(fold)


def test_the_official_split_of_a_source_without_parts_is_refused(copy: Path) -> None:
    change(copy, "splits.json", lambda splits: splits.update(official=None))
    with pytest.raises(DatasetError, match="no train and test parts"):
        Dataset.open(copy).split("official")


def test_an_annotation_of_an_image_that_is_not_listed_is_refused_where_masks_are_asked_for(copy: Path) -> None:
    change(copy, "annotations.json", ANNOTATIONS["unknown image"][0])
    with pytest.raises(DatasetError, match=r"annotation 1 is of an image that is not listed; found image 999"):
        Dataset.open(copy).mask(1)


@pytest.mark.parametrize("name", ["annotations", "splits"])
def test_a_run_on_a_dataset_that_has_changed_since_is_refused_with_both_hashes(
    copy: Path, tmp_path: Path, refused: Callable[..., str], name: str
) -> None:
    before = Dataset.open(copy)
    recorded = {"annotations_sha256": before.annotations_sha256, "splits_sha256": before.splits_sha256}
    info = {"approach": "knn", "options": {}, "fold": 0, "dataset": {"path": str(copy), **recorded}}
    write_json(tmp_path / "run" / "run.json", info)
    scores = [Prediction(image_id=image_id, score=0.5) for image_id in before.split(0).test]
    write_predictions(tmp_path / "run", "test", scores)
    change(copy, f"{name}.json", lambda content: content.update(note="edited"))
    line = refused("evaluate", tmp_path / "run", "--out", tmp_path / "board")
    assert f"the {name} of dataset" in line
    assert f"found sha256 {sha256_file(copy / f'{name}.json')}" in line
    assert f"expected sha256 {recorded[f'{name}_sha256']}" in line


# Reading images


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((24, 36), 100, np.uint8), (100, 100, 100)),
        (np.full((24, 36, 3), (10, 20, 30), np.uint8), (30, 20, 10)),
        (np.full((24, 36, 4), (10, 20, 30, 40), np.uint8), (30, 20, 10)),
        (np.full((24, 36), 100 * 257, np.uint16), (100, 100, 100)),
        (np.full((24, 36, 3), (2570, 5140, 7710), np.uint16), (30, 20, 10)),
    ],
    ids=["grey", "rgb", "rgba", "grey 16", "rgb 16"],
)
def test_an_image_is_read_as_rgb_of_8_bit(tmp_path: Path, pixels: np.ndarray, expected: tuple[int, ...]) -> None:
    cv2.imwrite(str(tmp_path / "ü b.png"), pixels)
    image = read_image(tmp_path / "ü b.png")
    assert image.shape == (24, 36, 3)
    assert image.dtype == np.uint8
    assert set(map(tuple, image.reshape(-1, 3).tolist())) == {expected}


def test_an_image_is_read_in_the_frame_of_its_mask_whatever_its_orientation_tag(tmp_path: Path, photo) -> None:
    data = cv2.imencode(".jpg", photo(3))[1].tobytes()
    quarter_turn = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + quarter_turn
    tagged = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    (tmp_path / "plain.jpg").write_bytes(data)
    (tmp_path / "tagged.jpg").write_bytes(tagged)
    assert cv2.imread(str(tmp_path / "tagged.jpg")).shape[:2] == (64, 48)
    np.testing.assert_array_equal(read_image(tmp_path / "tagged.jpg"), read_image(tmp_path / "plain.jpg"))


def test_an_image_that_cannot_be_decoded_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"a\.png: cannot be decoded"):
        read_image(tmp_path / "a.png")
