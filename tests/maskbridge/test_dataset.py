import json
import os
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


def counts_of(runs: list[int]) -> str:
    """`rleToString` of https://github.com/cocodataset/cocoapi."""
    text = ""
    for index, run in enumerate(runs):
        value, more = run - (runs[index - 2] if index > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


ANNOTATIONS: dict[str, tuple[Change, str]] = {
    "id 0": (lambda c: c["annotations"][0].update(id=0), "annotations.json, annotations[0].id: expected `int` >= 1"),
    "id text": (
        lambda c: c["annotations"][0].update(id="1"),
        "annotations[0].id: found `str`, expected `int`",
    ),
    "id twice": (lambda c: c["annotations"][0].update(id=2), "annotation id 2 occurs 2 times"),
    "iscrowd": (
        lambda c: c["annotations"][4].update(iscrowd=1),
        "annotations[4].iscrowd: invalid enum value 1",
    ),
    "area": (lambda c: c["annotations"][3].update(area=7), "annotation 4: area is 7, the mask has "),
    "box": (lambda c: c["annotations"][3]["bbox"].__setitem__(2, 3), "annotation 4: bbox is ["),
    "inclusive box": (
        lambda c: c["annotations"][9].update(
            bbox=[*c["annotations"][9]["bbox"][:2], *(n - 1 for n in c["annotations"][9]["bbox"][2:])]
        ),
        "annotation 10: bbox is [",
    ),
    "category": (lambda c: c["annotations"][0].update(category_id=2), "annotation 1: category 2 is 'stain', its image"),
    "unknown category": (
        lambda c: c["annotations"][0].update(category_id=77),
        ": category 77 is not listed",
    ),
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
    "runs no runs": (
        lambda c: c["annotations"][0]["segmentation"].update(counts="~" * 20),
        "RLE has no runs that can",
    ),
    "polygon": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5, 1, 5, 5]]),
        "annotations.json, annotations[0].segmentation: found `array`, expected `object`",
    ),
    "no box": (
        lambda c: c["annotations"][0].pop("bbox"),
        "annotations.json, annotations[0]: object missing required field `bbox`",
    ),
    "no pixel": (
        lambda c: c["annotations"][0].update(
            bbox=[0, 0, 0, 0], area=0, segmentation=geometry.encode(np.zeros((48, 64)))
        ),
        "annotation 1: has no pixel",
    ),
    "entry of another kind": (lambda c: c["annotations"].insert(0, 5), "annotations[0]: found `int`, expected"),
    "category id twice": (lambda c: c["categories"][0].update(id=2), "category id 2 occurs 2 times"),
    "image id 0": (lambda c: c["images"][0].update(id=0), "annotations.json, images[0].id: expected `int` >= 1"),
    "image id twice": (lambda c: c["images"][0].update(id=2), "image id 2 occurs 2 times"),
    "file name twice": (
        lambda c: c["images"][0].update(file_name=c["images"][1]["file_name"]),
        "file_name train/good/001.png occurs 2 times",
    ),
    "file name outside": (
        lambda c: c["images"][0].update(file_name="../dataset.json"),
        "image 1 (../dataset.json): file_name is not a plain relative path",
    ),
    "absolute file name": (
        lambda c: c["images"][0].update(file_name="/etc/hostname"),
        "image 1 (/etc/hostname): file_name is not a plain relative path",
    ),
    "size": (lambda c: c["images"][0].update(width=48, height=64), "is 64x48, recorded was 48x64"),
    "image hash": (lambda c: c["images"][0].update(sha256="0" * 64), "image 1 (train/good/000.png): sha256 is "),
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
        lambda s: s["folds"][1].update(s["folds"][0]),
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
    "of another kind": (lambda s: s["folds"].append(5), "splits.json.folds[5]: found `int`, expected `object`"),
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


REFUSED: dict[str, tuple[Change, str]] = {
    **ANNOTATIONS,
    "id of a float": (lambda c: c["images"][0].update(id=1.0), "images[0].id: found `float`, expected `int`"),
    "id of a truth value": (lambda c: c["images"][0].update(id=True), "images[0].id: found `bool`, expected `int`"),
    "id beyond what reports keep exact": (
        lambda c: c["images"][0].update(id=10**40),
        "images[0].id: expected `int`",
    ),
    "no side": (lambda c: c["images"][0].update(width=0), "images[0].width: expected `int` >= 1"),
    "endless side": (lambda c: c["images"][0].update(width=10**9), "images[0].width: expected `int` <= 1048576"),
    "more pixels than OpenCV reads": (
        lambda c: c["images"][0].update(width=2**20, height=2**11),
        "image 1 (train/good/000.png): 1048576x2048 is more than OpenCV reads",
    ),
    "more pixels than its file can hold": (
        lambda c: c["images"][0].update(width=10**5, height=10**4),
        "image 1 (train/good/000.png): 100000x10000 pixels do not fit into its file of ",
    ),
    "no hash": (lambda c: c["images"][0].update(sha256="../../x"), "images[0].sha256: expected `str` matching regex"),
    "group": (lambda c: c["images"][0].update(group=None), "images[0].group: found `null`, expected `int`"),
    "origin without a type": (
        lambda c: c["images"][0].update(origin="train"),
        "origin is 'train', must be",
    ),
    "origin outside": (
        lambda c: c["images"][0].update(origin="test/../x"),
        "origin is 'test/../x', must",
    ),
    "null character": (lambda c: c["images"][0].update(file_name="a\0b"), "file_name holds a null character"),
    "backslashes outside": (
        lambda c: c["images"][0].update(file_name="train\\..\\..\\x.png"),
        "file_name is not a plain relative path",
    ),
    "a drive": (lambda c: c["images"][0].update(file_name="C:\\x.png"), "file_name is not a plain relative path"),
    "long name": (lambda c: c["images"][0].update(file_name="ü" * 128), "file_name has a part of more than 255 bytes"),
    "category name twice": (lambda c: c["categories"][0].update(name="stain"), "category name stain occurs 2 times"),
    "no category name": (lambda c: c["categories"][0].update(name=None), "categories[0].name: found `null`"),
    "box of no numbers": (lambda c: c["annotations"][0].update(bbox="abcd"), "annotations[0].bbox: found `str`"),
    "box of three": (
        lambda c: c["annotations"][0]["bbox"].pop(),
        "annotations[0].bbox: expected `array` of",
    ),
    "negative area": (lambda c: c["annotations"][0].update(area=-5), "annotations[0].area: expected `int` >= 0"),
    "runs that overflow to the right sum": (
        lambda c: c["annotations"][0]["segmentation"].update(counts=counts_of([2**58] * 64 + [48 * 64])),
        "annotation 1: RLE has runs of 288230376151711744 pixels, the mask has 3072",
    ),
    "runs of a bomb": (
        lambda c: c["annotations"][0].update(segmentation={"size": [10**5, 10**5], "counts": counts_of([0, 10**10])}),
        "annotation 1: RLE size [100000, 100000], image is [48, 64] [height, width]",
    ),
}
#: What only `check` tells: it is no reason to refuse the dataset.
del REFUSED["category"], REFUSED["size"], REFUSED["image hash"]


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_a_dataset_is_refused_for_whatever_a_command_could_stumble_over(copy: Path, what: str) -> None:
    how, told = REFUSED[what]
    change(copy, "annotations.json", how)
    with pytest.raises(DatasetError) as error:
        Dataset.open(copy)
    assert told in str(error.value)
    assert str(error.value).endswith("; `maskbridge check` lists every problem")
    assert any(told in problem for problem in check(copy))


REFUSED_SPLITS: dict[str, tuple[Change, str]] = {
    **{what: how for what, how in SPLITS.items() if what != "in no test part"},
    "id of text": (
        lambda s: s["folds"][0].update(test=["1"]),
        "splits.json.folds[0].test[0]: found `str`",
    ),
    "part of text": (lambda s: s["folds"][0].update(train="123"), "splits.json.folds[0].train: found `str`"),
    "no part": (lambda s: s["folds"][0].pop("val"), "splits.json.folds[0]: object missing required field `val`"),
    "twice in a part": (lambda s: s["folds"][0]["train"].append(s["folds"][0]["train"][0]), "occurs 2 times"),
    "official": (lambda s: s.update(official={}), "splits.json.official: object missing required field `train`"),
    "official unknown": (lambda s: s["official"]["test"].append(999), "splits.json, official: image 999 is not listed"),
}


@pytest.mark.parametrize("what", sorted(REFUSED_SPLITS))
def test_splits_are_refused_for_whatever_a_command_could_stumble_over(copy: Path, what: str) -> None:
    how, told = REFUSED_SPLITS[what]
    change(copy, "splits.json", how)
    with pytest.raises(DatasetError) as error:
        Dataset.open(copy)
    assert told in str(error.value)


CARDS: dict[str, tuple[Change, str]] = {
    "rules": (lambda d: d.update(rules={}), "dataset.json.rules: object missing required field"),
    "smallest area": (lambda d: d["rules"].update(min_area="x"), "dataset.json.rules.min_area: found `str`"),
    "classes": (lambda d: d.update(classes="abc"), "dataset.json.classes: found `str`, expected `object`"),
    "changes": (lambda d: d.update(changes=None), "dataset.json.changes: found `null`, expected `object`"),
    "near-duplicates": (
        lambda d: d["rules"]["groups"].update(near_duplicates=[["a", "b", "c"]]),
        "dataset.json.rules.groups.near_duplicates[0]: expected `array` of length <= 2",
    ),
    "groups": (lambda d: d["rules"].update(groups=3), "dataset.json.rules.groups: found `int`, expected `object`"),
    "reasons": (
        lambda d: d["changes"]["ignored_files"].update(reasons={"x": [1]}),
        "dataset.json.changes.ignored_files.reasons[...][0]: found `int`, expected `str`",
    ),
    "two types": (
        lambda d: d["changes"].update(one_picture_two_types=[1]),
        "dataset.json.changes.one_picture_two_types[0]: found `int`",
    ),
    "leaks": (
        lambda d: d["changes"].update(official_leaks=[3]),
        "dataset.json.changes.official_leaks: found `array`",
    ),
    "orientation": (lambda d: d["changes"].update(orientation=7), "dataset.json.changes.orientation: found `int`"),
    "masks": (
        lambda d: d["rules"]["binarisation"].update({"more values": {"rule": "x", "files": {"a": {"defect_px": "q"}}}}),
        "dataset.json.rules.binarisation[...].files[...]",
    ),
}


@pytest.mark.parametrize("what", sorted(CARDS))
def test_a_card_is_refused_where_it_is_needed_and_named_by_check(
    copy: Path, tmp_path: Path, refused: Callable[..., str], what: str
) -> None:
    how, told = CARDS[what]
    change(copy, "dataset.json", how, sign=False)
    assert told in refused("card", copy)
    assert told in refused("synthesize", copy, tmp_path / "out")
    assert any(told in problem for problem in check(copy))
    assert Dataset.open(copy).split(0).test, "training needs no card"


@pytest.mark.parametrize("depth", ["abc", None, [1], 10**9, 9])
def test_a_depth_that_no_image_has_is_refused(copy: Path, depth: object) -> None:
    change(copy, "dataset.json", lambda card: card.update(bit_depth=depth), sign=False)
    with pytest.raises(DatasetError, match=r"dataset\.json\.bit_depth: "):
        Dataset.open(copy)
    assert any("bit_depth" in problem for problem in check(copy))


def test_a_dataset_without_a_product_is_refused(copy: Path) -> None:
    change(copy, "dataset.json", lambda card: card.pop("product"), sign=False)
    with pytest.raises(DatasetError, match=r"dataset\.json: object missing required field `product`"):
        Dataset.open(copy)


def test_a_dataset_without_folds_is_for_its_official_parts_alone(copy: Path) -> None:
    change(copy, "splits.json", lambda splits: splits.update(folds=[]))
    dataset = Dataset.open(copy)
    assert dataset.split("official").test
    with pytest.raises(DatasetError, match="has no folds"):
        dataset.split(0)


def test_a_card_and_splits_keep_what_is_not_known_of(copy: Path) -> None:
    for name in ("splits.json", "dataset.json"):
        change(copy, name, lambda content: content.update(note="ours"), sign=False)
    dataset = Dataset.open(copy)
    assert (dataset.splits["note"], dataset.card["note"]) == ("ours", "ours")


def test_a_folder_of_images_that_is_a_link_to_elsewhere_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "images/train").rename(tmp_path / "train")
    (copy / "images/train").symlink_to(tmp_path / "train")
    with pytest.raises(DatasetError, match=r"000\.png\): file_name leaves the images folder by a link"):
        Dataset.open(copy)


@pytest.mark.parametrize("name", ["annotations.json", "splits.json", "dataset.json"])
@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "/proc/self/mem"])
def test_a_file_without_an_end_is_refused_at_once(copy: Path, name: str, what: str) -> None:
    (copy / name).unlink()
    if what == "pipe":
        os.mkfifo(copy / name)
    else:
        (copy / name).symlink_to(what)
    with pytest.raises(DatasetError, match=r"is not a |cannot be read|changed while"):
        Dataset.open(copy)
    assert check(copy)


@pytest.mark.parametrize("file_name", ["../../escaped.png", "/etc/hostname", "train/../../../escaped.png"])
@pytest.mark.parametrize("command", [["export", "coco"], ["export", "yolo"], ["export", "yolo-seg"], ["synthesize"]])
def test_nothing_is_written_or_linked_for_an_image_outside(
    copy: Path, tmp_path: Path, refused: Callable[..., str], command: list[str], file_name: str
) -> None:
    change(copy, "annotations.json", lambda content: content["images"][3].update(file_name=file_name))
    line = refused(*command, copy, tmp_path / "out" / "deep" / "export")
    assert f"image 4 ({file_name}): file_name is not a plain relative path" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", ["hard", "symlink"])
@pytest.mark.parametrize("command", [["export", "coco"], ["export", "yolo"], ["export", "yolo-seg"], ["synthesize"]])
def test_an_image_that_is_a_link_to_another_file_is_not_passed_on(
    copy: Path, tmp_path: Path, refused: Callable[..., str], command: list[str], link: str
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    image = copy / "images/test/stain/000.png"
    image.unlink()
    image.symlink_to(secret)
    line = refused(*command, copy, tmp_path / "out", "--link", link)
    assert "stain/000.png: image is another one than was converted; found sha256 " in line


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
