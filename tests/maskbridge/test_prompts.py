"""Prompts of the truth and of other runs, and which runs may prompt for which images."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.approach import Detection, PredictData, Prediction
from maskbridge.crossval import crossval
from maskbridge.dataset import Dataset
from maskbridge.errors import OptionError, RunError
from maskbridge.predicting import predict_run
from maskbridge.predictions import Run, write_predictions
from maskbridge.prompts import ORACLE, Prompt, absolute_source, find_prompts, refuse_unfit_source
from maskbridge.training import Settings, train_run

SIZE_HW = (48, 64)


@pytest.fixture(autouse=True)
def nothing_is_flushed(monkeypatch):
    """None of what is written here has to outlive a power cut."""
    monkeypatch.setattr("maskbridge.files.os.fsync", lambda _: None)


@pytest.fixture
def asked(tiles):
    """The images of a part of a fold."""

    def make(fold=0, part="test", dataset=tiles) -> PredictData:
        return PredictData(dataset=dataset, image_ids=dataset.split(fold).part(part), fold=fold, part=part)

    return make


@pytest.fixture
def prompting(tiles, tmp_path):
    """A run of fold 0 with given predictions of `val` and `test`, and a pixel threshold."""

    def make(say, *, pixel=0.5, parts=("val", "test"), **info) -> Run:
        hashes = {"annotations_sha256": tiles.annotations_sha256, "splits_sha256": tiles.splits_sha256}
        run = Run(
            tmp_path / "prompting",
            {
                "approach": "made-up", "options": {}, "fold": 0, "dataset": {"path": str(tiles.path), **hashes},
                "thresholds": {"0": {"pixel": {"value": pixel, "rule": "given"}}}, **info,
            },
        )  # fmt: skip
        for part in parts:
            write_predictions(run.path, part, map(say, tiles.split(0).part(part)))
        return run.save()

    return make


def boxed(*scores):
    """A prediction with a box of each score; the box tells the place in the list."""

    def say(image_id):
        boxes = [
            Detection(box_ltwh=(float(n % 50), 2.5, 7.25, 9.0), score=score, category_id=1 + n % 2)
            for n, score in enumerate(scores)
        ]
        return Prediction(image_id=image_id, detections=boxes)

    return say


def test_the_truth_is_every_box_in_the_order_of_the_dataset(tiles, asked):
    for fold, part in ((0, "val"), (1, "test"), ("official", "test")):
        data = asked(fold, part)
        prompts = find_prompts(ORACLE, data)
        for image_id in data.image_ids:
            boxes = [tuple(map(float, a["bbox"])) for a in tiles.annotations if a["image_id"] == image_id]
            assert prompts(image_id) == [Prompt(box_ltwh=box) for box in boxes]
    several = next(i for i in tiles.annotations_by_image if len(tiles.annotations_by_image[i]) == 3)
    assert [prompt.score for prompt in find_prompts(ORACLE, asked())(several)] == [1.0] * 3


def test_boxes_of_a_run_come_surest_first_with_their_score_and_type(prompting, asked):
    data = asked()
    prompts = find_prompts(str(prompting(boxed(0.2, 0.9, 0.5)).path), data)
    box = lambda place: (float(place), 2.5, 7.25, 9.0)  # noqa: E731
    for image_id in data.image_ids:
        assert prompts(image_id) == [
            Prompt(box_ltwh=box(1), score=0.9, category_id=2),
            Prompt(box_ltwh=box(2), score=0.5, category_id=1),
            Prompt(box_ltwh=box(0), score=0.2, category_id=1),
        ]


def test_of_more_than_100_boxes_of_an_image_the_surest_100_are_taken(prompting, asked):
    scores = [n / 1000 for n in range(130)]
    data = asked()
    prompts = find_prompts(str(prompting(boxed(*scores)).path), data)
    for image_id in data.image_ids:
        assert [prompt.score for prompt in prompts(image_id)] == sorted(scores, reverse=True)[:100]


def test_a_run_without_a_detection_gives_an_empty_list_for_each_image(prompting, asked):
    data = asked()
    prompts = find_prompts(str(prompting(boxed()).path), data)
    assert [prompts(image_id) for image_id in data.image_ids] == [[]] * len(data.image_ids)


def test_a_run_that_finds_nothing_makes_valid_predictions_of_what_it_prompts(prompting, tiles, tmp_path):
    from baselines.box_fill import Config
    from evaluation.metrics import evaluate

    found = prompting(boxed())
    config = Config(prompts=str(found.path))
    run = predict_run(train_run("box-fill", tiles, tmp_path / "run", config, Settings()), tiles, "test")
    assert run.detections("test") == []
    assert evaluate(run, tiles, "test", samples=5).metrics["mask"]["iou"]["value"] is None
    assert evaluate(run, tiles, "test", samples=5).metrics["instance"]["segm_ap50"]["value"] == 0


def test_a_peak_is_the_highest_pixel_of_its_component_in_pixels_of_the_image(prompting, asked):
    """Two components, of a map at the size of the image; rows and columns cannot be mixed up."""
    high = np.zeros(SIZE_HW, np.float32)
    high[5:9, 50:60] = 0.6
    high[7, 58] = 0.8
    high[40:44, 3:5] = 0.7
    high[41, 4] = 0.95
    data = asked()
    prompts = find_prompts(str(prompting(lambda i: Prediction(image_id=i, map=high)).path), data)
    for image_id in data.image_ids:
        first, second = prompts(image_id)
        assert (first.point_xy, second.point_xy) == ((4.5, 41.5), (58.5, 7.5))
        assert 1 > first.score > second.score > 0.5
        assert first.box_ltwh is first.category_id is None


def test_a_peak_of_a_coarse_map_lies_where_the_resized_map_is_highest(prompting, asked):
    coarse = np.zeros((12, 16), np.float32)
    coarse[2, 13] = 1.0
    [prompt] = find_prompts(str(prompting(lambda i: Prediction(image_id=i, map=coarse)).path), asked())(
        asked().image_ids[0]
    )
    x, y = prompt.point_xy
    assert abs(x - 13.5 * 4) <= 1
    assert abs(y - 2.5 * 4) <= 1


@pytest.mark.parametrize("shape", ["plateau", "ring", "u", "diagonal", "pixel"])
def test_the_peak_of_a_plateau_lies_on_it_whatever_its_shape(prompting, asked, shape):
    flat = np.zeros(SIZE_HW, np.float32)
    if shape == "plateau":
        flat[10:15, 30:37] = 1
    elif shape == "ring":
        flat[4:36, 8:42] = 1
        flat[10:30, 14:36] = 0
    elif shape == "u":
        flat[4:30, 5:7] = flat[4:30, 50:52] = flat[28:30, 5:52] = 1
    elif shape == "diagonal":
        flat[np.arange(21) + 4, np.arange(21) + 30] = 1
    else:
        flat[47, 63] = 1
    [prompt] = find_prompts(str(prompting(lambda i: Prediction(image_id=i, map=flat)).path), asked())(
        asked().image_ids[0]
    )
    x, y = prompt.point_xy
    assert (x % 1, y % 1) == (0.5, 0.5)
    assert flat[int(y), int(x)] == 1
    if shape == "plateau":
        assert prompt.point_xy == (33.5, 12.5)


def test_a_higher_pixel_of_another_component_draws_no_peak_away(prompting, asked):
    """The bounding box of one component holds the other."""
    nested = np.zeros(SIZE_HW, np.float32)
    nested[4:36, 8:42] = 0.6
    nested[10:30, 14:36] = 0
    nested[20, 25] = 1.0
    data = asked()
    first, second = find_prompts(str(prompting(lambda i: Prediction(image_id=i, map=nested)).path), data)(
        data.image_ids[0]
    )
    assert first.point_xy == (25.5, 20.5)
    assert nested[int(second.point_xy[1]), int(second.point_xy[0])] == np.float32(0.6)


def test_a_map_below_its_threshold_prompts_for_nothing(prompting, asked):
    data = asked()
    low = np.full(SIZE_HW, 0.4, np.float32)
    prompts = find_prompts(str(prompting(lambda i: Prediction(image_id=i, map=low)).path), data)
    assert [prompts(image_id) for image_id in data.image_ids] == [[]] * len(data.image_ids)


def test_a_run_with_boxes_and_maps_prompts_with_its_boxes(prompting, asked):
    def say(image_id):
        high = np.ones(SIZE_HW, np.float32)
        return Prediction(image_id=image_id, map=high, detections=boxed(0.3)(image_id).detections)

    data = asked()
    [prompt] = find_prompts(str(prompting(say).path), data)(data.image_ids[0])
    assert prompt == Prompt(box_ltwh=(0.0, 2.5, 7.25, 9.0), score=0.3, category_id=1)


def refusal(source, data, **more) -> str:
    with pytest.raises(RunError) as caught:
        find_prompts(str(source), data, **more)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_run_with_scores_alone_has_nothing_to_prompt_with(prompting, asked):
    run = prompting(lambda i: Prediction(image_id=i, score=0.5))
    line = refusal(run.path, asked())
    assert line == (
        f"{run.path}: has nothing to prompt with; found the run has neither detections nor maps; "
        "name a run with detections or maps"
    )


def test_a_run_with_maps_and_no_pixel_threshold_says_why(prompting, asked):
    run = prompting(lambda i: Prediction(image_id=i, map=np.ones(SIZE_HW, np.float32)), pixel=None)
    assert "has nothing to prompt with; found no pixel threshold for fold 0" in refusal(run.path, asked())


def test_maps_are_refused_where_boxes_are_needed(prompting, asked):
    run = prompting(lambda i: Prediction(image_id=i, map=np.ones(SIZE_HW, np.float32)))
    line = refusal(run.path, asked(), boxes_alone=True)
    assert line == f"{run.path}: has maps alone, and boxes are needed; name a run with detections"
    shutil.rmtree(run.path)
    assert find_prompts(str(prompting(boxed()).path), asked(), boxes_alone=True)


def test_a_part_that_is_not_predicted_comes_with_the_command_to_run(prompting, asked, tiles):
    run = prompting(boxed(0.5), parts=("val",))
    assert find_prompts(str(run.path), asked(part="val"))
    line = refusal(run.path, asked())
    assert "has not predicted the images of test that it is to prompt for" in line
    assert line.endswith(f"; maskbridge predict {run.path} {tiles.path} --part test")


def test_the_command_that_a_refusal_names_is_what_helps(fake, tiles, asked, tmp_path, capsys):
    from maskbridge.cli import main

    run = train_run("fake", tiles, tmp_path / "run", fake.Config(), Settings())
    command = refusal(run.path, asked()).rpartition("; maskbridge ")[2]
    assert main(command.split()) == 0, capsys.readouterr().err
    assert find_prompts(str(run.path), asked())


def test_a_run_of_another_fold_is_refused_as_it_may_have_seen_the_images(prompting, asked):
    run = prompting(boxed(0.5))
    for fold in (1, 2):
        line = refusal(run.path, asked(fold))
        assert "is of another fold and may have seen the images that it is to prompt for" in line
        assert line.endswith(f"; found fold 0; expected fold {fold}; name a run over all folds")
    assert "is of another fold" in refusal(run.path, asked("official"))


@pytest.mark.parametrize("changed", ["annotations", "splits"])
def test_a_run_of_another_dataset_or_of_other_folds_is_refused_with_both_hashes(
    prompting, asked, tiles, tmp_path, changed
):
    copy = shutil.copytree(tiles.path, tmp_path / "copy")
    (copy / f"{changed}.json").write_text((tiles.path / f"{changed}.json").read_text() + " ")
    other = Dataset.open(copy)
    line = refusal(prompting(boxed(0.5)).path, asked(dataset=other))
    assert f"the {changed} of dataset {copy} have changed since the run" in line
    assert f"found sha256 {getattr(other, f'{changed}_sha256')}" in line
    assert f"expected sha256 {getattr(tiles, f'{changed}_sha256')}" in line


def test_a_dataset_that_was_moved_is_the_same(prompting, asked, tiles, tmp_path):
    moved = Dataset.open(shutil.copytree(tiles.path, tmp_path / "moved"))
    data = asked(dataset=moved)
    assert len(find_prompts(str(prompting(boxed(0.5)).path), data)(data.image_ids[0])) == 1


@pytest.mark.parametrize("source", ["nothing", "a file", "empty"])
def test_what_is_no_run_is_refused(asked, tmp_path, source):
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "empty").mkdir()
    line = refusal(tmp_path / source, asked())
    assert ("is no run to prompt with" in line) == (source != "empty")
    assert ("is not a finished run" in line) == (source == "empty")


def test_a_run_that_was_given_truth_passes_none_on(prompting, asked):
    """Its boxes are the true ones: what it prompted would be told where to look, and say that it was not."""
    run = prompting(boxed(), truth_given="boxes of the defects")
    line = refusal(run.path, asked())
    assert "was given the boxes of the defects, and would pass them on; oracle gives them openly" in line


def test_a_merged_run_lends_each_fold_its_own_fold(fake, tiles, asked, tmp_path):
    merged = crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings())
    for fold in range(3):
        own = Run.open(merged.path / f"fold{fold}")
        for part in ("val", "test"):
            data = asked(fold, part)
            lent, alone = (find_prompts(str(path), data) for path in (merged.path, own.path))
            for image_id in data.image_ids:
                scores = sorted((r["score"] for r in own.detections(part) if r["image_id"] == image_id), reverse=True)
                assert [prompt.score for prompt in lent(image_id)] == scores != []
                assert lent(image_id) == alone(image_id)


def test_a_merged_run_whose_fold_is_gone_is_refused(fake, tiles, asked, tmp_path):
    merged = crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings())
    shutil.rmtree(merged.path / "fold1")
    assert find_prompts(str(merged.path), asked(0))
    assert f"{merged.path}/fold1: is not a finished run" in refusal(merged.path, asked(1))


def test_an_official_run_lends_its_test_part_to_val_and_test_of_every_fold(fake, tiles, asked, tmp_path):
    """It learned from good training images alone, so it has seen none of the labelled ones."""
    run = predict_run(
        train_run("fake", tiles, tmp_path / "run", fake.Config(), Settings(fold="official")), tiles, "test"
    )
    by_image = {i: [r["score"] for r in run.detections("test") if r["image_id"] == i] for i in range(21, 40)}
    for fold in range(3):
        for part in ("val", "test"):
            data = asked(fold, part)
            prompts = find_prompts(str(run.path), data)
            for image_id in data.image_ids:
                assert [p.score for p in prompts(image_id)] == sorted(by_image[image_id], reverse=True) != []
    refuse_unfit_source(str(run.path), tiles, 1)


def test_an_official_run_that_is_not_predicted_comes_with_the_command_for_test(fake, tiles, asked, tmp_path):
    run = train_run("fake", tiles, tmp_path / "run", fake.Config(), Settings(fold="official"))
    line = refusal(run.path, asked(0, "val"))
    assert line.endswith(f"; maskbridge predict {run.path} {tiles.path} --part test")


def test_an_official_run_that_has_not_predicted_all_images_is_refused(fake, tiles, tmp_path):
    run = predict_run(
        train_run("fake", tiles, tmp_path / "run", fake.Config(), Settings(fold="official")), tiles, "test"
    )
    data = PredictData(dataset=tiles, image_ids=(1, 2, 21), fold=0, part="test")
    assert "has not predicted all images that it is to prompt for; found [1, 2]" in refusal(run.path, data)


def test_a_source_is_refused_before_training_for_whichever_part_it_lacks(prompting, tiles):
    for parts, missing in ((("val",), "test"), (("test",), "val")):
        run = prompting(boxed(0.5), parts=parts)
        with pytest.raises(RunError, match=f"has not predicted the images of {missing}"):
            refuse_unfit_source(str(run.path), tiles, 0)
        shutil.rmtree(run.path)
    refuse_unfit_source(str(prompting(boxed(0.5)).path), tiles, 0)
    refuse_unfit_source(ORACLE, tiles, 2)


def test_a_source_is_kept_by_its_absolute_path_and_a_word_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    assert absolute_source("runs/one") == f"{here}/runs/one"
    assert absolute_source("runs/../one/") == f"{here}/one"
    assert absolute_source(f"{here}/one") == f"{here}/one"
    assert absolute_source(ORACLE) == ORACLE
    assert absolute_source("grid", ("none", "grid")) == "grid"
    assert absolute_source("grid") == f"{here}/grid"


def test_the_boxes_of_the_truth_hold_their_defects(tiles, asked):
    """The frame is the image's, half-open: row by column, not column by row."""
    for image_id in asked().image_ids:
        for prompt, annotation in zip(
            find_prompts(ORACLE, asked())(image_id), tiles.annotations_by_image[image_id], strict=True
        ):
            assert geometry.box(annotation["segmentation"]) == prompt.box_ltwh


@pytest.mark.parametrize("where", ["in place", "out"])
def test_a_run_cannot_prompt_itself(prompting, asked, tmp_path, where):
    from maskbridge.predicting import predict_run

    run = prompting(boxed())
    run = run.save(approach="box-fill", options={"prompts": "oracle", "max_prompts": 100})
    out = None if where == "in place" else tmp_path / "second"
    source = run.path if out is None else out
    with pytest.raises(RunError, match="cannot prompt itself"):
        predict_run(run, run.dataset(), "test", changes={"prompts": str(source)}, out=out)
    assert run.has("test")


def test_a_word_that_is_nearly_one_of_the_approach_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"--prompts is unknown; found gird; expected .*; did you mean grid\?"):
        absolute_source("gird", ("none", "grid"))
    (tmp_path / "gird").mkdir()
    assert absolute_source("gird", ("none", "grid")) == str(tmp_path / "gird")
    assert absolute_source("grid", ("none", "grid")) == "grid"
