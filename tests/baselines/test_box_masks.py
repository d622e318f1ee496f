"""Controls for segmenters: masks of boxes, with nothing learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from baselines import _box_masks, box_fill, grabcut
from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.cli import main
from maskbridge.convert import ConvertOptions, convert
from maskbridge.crossval import crossval
from maskbridge.dataset import Dataset, read_image
from maskbridge.errors import OptionError
from maskbridge.predicting import predict_run
from maskbridge.predictions import Run, write_predictions
from maskbridge.training import Settings, train_run

BOX = (18.0, 12.0, 30.0, 22.0)
controls = pytest.mark.parametrize("name", ["box-fill", "grabcut"])


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--quiet` of one test is not that of the next."""
    monkeypatch.setenv("MASKBRIDGE_QUIET", "")


def blob(size_hw: tuple[int, int] = (60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A bright ellipse in noise, H x W x 3, and its mask, H x W; `BOX` is its box and a margin."""
    mask = np.zeros(size_hw, np.uint8)
    cv2.ellipse(mask, (32, 22), (12, 8), 30, 0, 360, 1, -1)
    noise = np.random.default_rng(5).normal(0, 12, (*size_hw, 3))
    return (70 + 90 * mask[..., None] + noise).clip(0, 255).astype(np.uint8), mask > 0


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def whole_box(size_hw: tuple[int, int], box_ltwh: tuple[float, float, float, float]) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    mask[_box_masks.filled(size_hw, box_ltwh)] = True
    return mask


@pytest.fixture
def cut() -> Callable[..., np.ndarray]:
    def run(image: np.ndarray, box_ltwh: tuple[float, float, float, float], **options: object) -> np.ndarray:
        return grabcut.cut(image, box_ltwh, grabcut.Config(**options))

    return run


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory, new_source) -> Dataset:
    """6 good training images; 5 good and 9 defective in 3 folds, every defect a rectangle; 48 x 64 pixels."""
    masks = []
    for n in range(9):
        mask = np.zeros((48, 64), np.uint8)
        mask[n : n + 9 + n, 3 * n : 3 * n + 17] = 255
        if n % 3 == 0:
            mask[40:47, 50 - n : 61 - n] = 255
        masks.append(mask)
    source = new_source(tmp_path_factory.mktemp("source") / "plate", {"chip": masks}, train=6, good=5)
    folder = tmp_path_factory.mktemp("datasets") / "rectangles"
    convert("mvtec", source, folder, ConvertOptions(folds=3))
    return Dataset.open(folder)


@pytest.fixture
def detector(rectangles: Dataset, tmp_path: Path) -> Callable[..., Run]:
    """A run of fold 0 with boxes or maps."""

    def make(gives: str) -> Run:
        def say(image_id: int) -> Prediction:
            if gives == "maps":
                return Prediction(image_id=image_id, map=np.ones((12, 16), np.float32))
            boxes = [Detection(box_ltwh=(2.5, 3.25, 20.0, 9.5), score=0.25, category_id=1)]
            return Prediction(image_id=image_id, detections=boxes)

        hashes = {name: getattr(rectangles, name) for name in ("annotations_sha256", "splits_sha256")}
        run = Run(
            tmp_path / gives,
            {
                "approach": "made-up", "options": {}, "fold": 0, "dataset": {"path": str(rectangles.path), **hashes},
                "thresholds": {"0": {"pixel": {"value": 0.5, "rule": "given"}}},
            },
        )  # fmt: skip
        for part in ("val", "test"):
            write_predictions(run.path, part, map(say, rectangles.split(0).part(part)))
        return run.save()

    return make


@pytest.mark.parametrize(
    ("box_ltwh", "rows", "columns"),
    [
        ((2, 1, 3, 4), (1, 5), (2, 5)),  # whole pixels
        ((2.4, 1.4, 3.2, 4.2), (1, 6), (2, 6)),  # 2.4 to 5.6 holds the centres 2.5 to 5.5
        ((2.6, 1.6, 2.8, 3.8), (2, 5), (3, 5)),  # 2.6 to 5.4 holds 3.5 and 4.5
        ((1.5, 0.5, 1, 1), (0, 1), (1, 2)),  # half-open: the centre at its start is in, the one at its end is not
        ((2.5, 1.5, 2, 2), (1, 3), (2, 4)),
        ((3.6, 2.6, 0.2, 0.3), (3, 4), (4, 5)),  # no centre: the nearest pixel
        ((0, 0, 9, 7), (0, 7), (0, 9)),  # the whole image
        ((-0.4, -0.4, 2, 2), (0, 2), (0, 2)),  # out of the frame by rounding
        ((7, 5, 2.4, 2.4), (5, 7), (7, 9)),
        ((9, 7, 0.3, 0.3), (6, 7), (8, 9)),  # at the far corner
        ((8, 6, 1, 1), (6, 7), (8, 9)),  # one pixel
    ],
)
def test_a_box_fills_the_pixels_whose_centres_lie_in_it(box_ltwh, rows, columns) -> None:
    expected = np.zeros((7, 9), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(whole_box((7, 9), box_ltwh), expected)


def test_grabcut_finds_a_bright_blob_in_noise_better_than_the_box_does(cut) -> None:
    image, mask = blob()
    found = cut(image, BOX)
    assert iou(found, mask) > 0.9
    assert iou(whole_box(mask.shape, BOX), mask) < 0.6


def test_grabcut_never_leaves_the_box(cut) -> None:
    image, mask = blob()
    half = (18.0, 12.0, 14.0, 22.0)
    found = cut(image, half)
    assert found.any()
    assert not (found & ~whole_box(mask.shape, half)).any()


def test_grabcut_is_the_same_every_time_whatever_was_cut_before(cut) -> None:
    image, _ = blob()
    first = cut(image, BOX)
    cv2.setRNGSeed(77)
    cut(image[::-1].copy(), (1.0, 2.0, 30.0, 20.0))
    np.testing.assert_array_equal(cut(image, BOX), first)


def test_a_piece_made_smaller_is_cut_in_the_frame_of_the_image(cut) -> None:
    """A defect in one corner of a large box, which a mix-up of rows and columns, or of scales, would miss."""
    image = np.random.default_rng(3).normal(60, 8, (300, 500, 3))
    mask = np.zeros((300, 500), bool)
    mask[40:100, 260:420] = True
    image[mask] += 110
    found = cut(image.clip(0, 255).astype(np.uint8), (200.0, 30.0, 240.0, 200.0), side=64)
    assert iou(found, mask) > 0.85


@pytest.mark.parametrize("size_hw", [(60, 80), (5, 7), (1, 1), (1, 30)])
def test_grabcut_is_the_box_where_nothing_lies_around_it(cut, size_hw) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    assert cut(image, (0.0, 0.0, float(size_hw[1]), float(size_hw[0]))).all()


def test_grabcut_is_the_box_where_nothing_is_left_of_it(cut) -> None:
    """What is in the box is what lies around it: an even image, all of it background."""
    image = np.full((60, 80, 3), 90, np.uint8)
    found = cut(image, BOX)
    labels = np.full((60, 80), cv2.GC_BGD, np.uint8)
    labels[12:34, 18:48] = cv2.GC_PR_FGD
    cv2.grabCut(image, labels, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    assert not (labels == cv2.GC_PR_FGD).any(), "the case that is meant"
    np.testing.assert_array_equal(found, whole_box((60, 80), BOX))


@pytest.mark.parametrize("size_hw", [(1, 5000), (5000, 1)])
@pytest.mark.parametrize("length", [1, 60, 4000])
def test_an_image_of_one_row_or_column_is_cut(cut, size_hw, length) -> None:
    line = np.random.default_rng(2).normal(60, 8, 5000)
    line[100 : 100 + length] += 120
    image = np.repeat(line.clip(0, 255).astype(np.uint8).reshape(*size_hw, 1), 3, axis=2)
    wide = size_hw[0] == 1
    box = (100.0, 0.0, float(length), 1.0) if wide else (0.0, 100.0, 1.0, float(length))
    found = cut(image, box)
    assert found.shape == size_hw
    assert iou(found, whole_box(size_hw, box)) > 0.9


@pytest.mark.parametrize("box_ltwh", [(0.0, 0.0, 1.0, 1.0), (79.0, 59.0, 1.0, 1.0), (40.0, 0.0, 40.0, 60.0)])
def test_a_box_at_the_frame_is_cut(cut, box_ltwh) -> None:
    image, mask = blob()
    found = cut(image, box_ltwh)
    assert found.any()
    assert not (found & ~whole_box(mask.shape, box_ltwh)).any()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", ["grey", "colour"])
def test_grey_and_16_bit_images_are_cut_as_8_bit_colour_ones_are(cut, png, tmp_path, depth, colour) -> None:
    image, mask = blob()
    pixels = image[..., 0] if colour == "grey" else image
    stored = pixels.astype(np.uint16) * (257 if depth == 16 else 1)
    path = tmp_path / "image.png"
    path.write_bytes(png(stored, depth=depth, colour_type=0 if colour == "grey" else 2))
    read = read_image(path)
    assert (read.shape, read.dtype) == ((60, 80, 3), np.uint8)
    found = cut(read, BOX)
    assert iou(found, mask) > 0.9
    expected = np.repeat(image[..., :1], 3, axis=2) if colour == "grey" else image
    np.testing.assert_array_equal(found, cut(expected, BOX))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"iterations": 0}, "--iterations cannot be used; found 0; expected 1 or more"),
        ({"context": -0.1}, "--context cannot be used; found -0.1; expected 0.0 or more"),
        ({"context": float("nan")}, "--context cannot be used; found nan"),
        ({"context": float("inf")}, "--context cannot be used; found inf"),
        ({"side": 7}, "--side cannot be used; found 7; expected 8 or more"),
    ],
)
def test_an_option_that_cannot_work_is_refused_wherever_it_is_given(options, line) -> None:
    with pytest.raises(OptionError) as caught:
        grabcut.Config(**options)
    assert line in str(caught.value)


@pytest.mark.parametrize("module", [box_fill, grabcut], ids=["box-fill", "grabcut"])
def test_the_truth_is_said_to_be_given_and_another_run_is_not(module, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert module.truth_given(module.Config()) == "boxes of the defects"
    other = module.Config(prompts="runs/one")
    assert module.truth_given(other) is None
    assert other.prompts == str(tmp_path / "runs" / "one")


@controls
def test_masks_of_a_run_keep_its_boxes_scores_and_types(name, rectangles, detector, tmp_path) -> None:
    config = {"box-fill": box_fill, "grabcut": grabcut}[name].Config(prompts=str(detector("boxes").path))
    run = predict_run(train_run(name, rectangles, tmp_path / "run", config, Settings()), rectangles, "test")
    assert run.info["truth_given"] is None
    assert run.info["trained_on"] == {"good": 0, "defective": 0}
    assert run.info["parameters"] == 0
    results = run.detections("test")
    assert [r["image_id"] for r in results] == list(rectangles.split(0).test)
    for result in results:
        assert (result["bbox"], result["score"], result["category_id"]) == ([2.5, 3.25, 20.0, 9.5], 0.25, 1)
        mask = geometry.decode(result["segmentation"]) > 0
        box = np.zeros((48, 64), bool)
        box[3:13, 2:22] = True
        assert mask.any()
        assert (mask == box).all() if name == "box-fill" else not (mask & ~box).any()


@controls
@pytest.mark.parametrize("command", ["train", "crossval"])
def test_a_run_with_maps_alone_is_refused_before_anything_is_made(name, command, rectangles, detector, refused) -> None:
    maps = detector("maps")
    line = refused(command, name, rectangles.path, maps.path.parent / "run", "--prompts", maps.path, "--quiet")
    assert line == f"maskbridge: {maps.path}: has maps alone, and boxes are needed; name a run with detections\n"


@controls
def test_other_prompts_that_do_not_fit_leave_a_run_as_it_is(
    name, rectangles, detector, refused, tmp_path, capfd
) -> None:
    run, maps = tmp_path / "run", detector("maps")
    assert main(["train", name, str(rectangles.path), str(run)]) == 0
    words = ["predict", run, rectangles.path, "--prompts"]
    assert "other options make another run" in refused(*words, maps.path)
    assert "has maps alone" in refused(*words, maps.path, "--out", tmp_path / "second")
    assert "is no run to prompt with" in refused(*words, tmp_path / "none", "--out", tmp_path / "second")


@controls
def test_other_prompts_make_a_second_run_that_is_no_longer_given_truth(
    name, rectangles, detector, tmp_path, capfd, tree
) -> None:
    run, second, boxes = tmp_path / "run", tmp_path / "second", detector("boxes")
    assert main(["train", name, str(rectangles.path), str(run)]) == 0
    before = tree(run)
    words = ["predict", "--prompts", boxes.path, run, rectangles.path, "--out", second]
    assert main([str(word) for word in words]) == 0, capfd.readouterr().err
    assert tree(run) == before
    assert (Run.open(run).truth_given, Run.open(second).truth_given) == ("boxes of the defects", None)
    assert Run.open(second).info["options"]["prompts"] == str(boxes.path)
    assert sorted(path.name for path in second.iterdir()) == ["predictions", "run.json", "weights"]


@controls
def test_an_oracle_over_all_folds_is_judged_on_masks_alone(name, rectangles, tmp_path, capfd) -> None:
    """Every defect is a rectangle: its filled box is its mask, and nothing else of the run has a figure."""
    assert main(["crossval", name, str(rectangles.path), str(tmp_path / "all")]) == 0, capfd.readouterr().err
    merged = Run.open(tmp_path / "all")
    assert merged.truth_given == "boxes of the defects"
    assert all(e["value"] is None for fold in merged.info["thresholds"].values() for e in fold.values())
    words = ["evaluate", str(merged.path), "--samples", "20", "--out", str(tmp_path / "board")]
    assert main(words) == 0, capfd.readouterr().err
    metrics = json.loads((merged.path / "metrics.json").read_text())
    for metric in ("iou", "dice"):
        value = metrics["mask"][metric]["value"]
        assert value == 1 if name == "box-fill" else 0 < value <= 1
    assert metrics["image"]["auroc"]["value"] is None
    assert metrics["instance"]["bbox_ap"]["value"] is None


@controls
def test_a_control_prompted_by_a_run_over_all_folds_is_judged_like_any_other(name, rectangles, tmp_path) -> None:
    """The detector of each fold is sure of a box that its fold alone has."""
    folder = tmp_path / "detector"
    hashes = {key: getattr(rectangles, key) for key in ("annotations_sha256", "splits_sha256")}
    info = {"approach": "made-up", "options": {}, "dataset": {"path": str(rectangles.path), **hashes}}
    for fold in range(3):
        run = Run(folder / f"fold{fold}", {**info, "fold": fold})
        for part in ("val", "test"):
            boxes = [Detection(box_ltwh=(4.0 + fold, 5.0, 20.0, 9.0), score=0.2 + 0.1 * fold)]
            image_ids = rectangles.split(fold).part(part)
            write_predictions(run.path, part, (Prediction(image_id=i, detections=boxes) for i in image_ids))
        run.save()
    Run(folder, {**info, "fold": "all"}).save()
    config = {"box-fill": box_fill, "grabcut": grabcut}[name].Config(prompts=str(folder))
    merged = crossval(name, rectangles, tmp_path / "all", config, Settings())
    fold_of = rectangles.fold_of_image()
    results = merged.detections("crossval")
    assert sorted(r["image_id"] for r in results) == sorted(fold_of)
    assert all(r["bbox"][0] == 4.0 + fold_of[r["image_id"]] for r in results)
    shutil.rmtree(folder / "fold2")
    assert main(["predict", str(tmp_path / "all"), str(rectangles.path), "--out", str(tmp_path / "again")]) == 1
    assert not (tmp_path / "again").exists()
