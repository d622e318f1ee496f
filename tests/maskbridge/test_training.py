from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from maskbridge.approach import Detection, Prediction
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError, OptionError, RunError
from maskbridge.predicting import predict_run
from maskbridge.predictions import Run
from maskbridge.training import Settings, train_run

KEYS = {
    "approach", "options", "dataset", "fold", "seed", "versions", "device", "seconds", "peak_memory_mb",
    "trained_on", "thresholds", "weights_from", "parameters", "facts", "resumed", "truth_given",
    "start_weights", "seen", "bit_depth",
}  # fmt: skip


@pytest.fixture
def train(fake, tiles, tmp_path):
    """Train the made-up approach into `run`."""

    def run(config=None, path=None, dataset=tiles, **settings) -> Run:
        return train_run("fake", dataset, path or tmp_path / "run", config or fake.Config(), Settings(**settings))

    return run


def test_run_json_says_everything_about_a_run(train, fake, tiles):
    info = json.loads((train(fold=1, seed=5, device="cpu").path / "run.json").read_text())
    assert set(info) == KEYS
    assert info["approach"] == "fake"
    assert info["resumed"] is False
    assert info["options"] == dataclasses.asdict(fake.Config())
    assert info["dataset"] == {
        "path": str(tiles.path),
        "name": "tiles",
        "annotations_sha256": tiles.annotations_sha256,
        "splits_sha256": tiles.splits_sha256,
    }
    assert (info["fold"], info["seed"], info["device"], info["weights_from"]) == (1, 5, "cpu", "none")
    assert {"maskbridge", "python", "numpy", "torch"} <= set(info["versions"])
    assert set(info["seconds"]) == set(info["peak_memory_mb"]) == {"train", "val"}
    assert all(megabytes > 1 for megabytes in info["peak_memory_mb"].values())
    assert set(info["thresholds"]) == {"1"}
    for entry in info["thresholds"]["1"].values():
        assert isinstance(entry["value"], float)
        assert "on val" in entry["rule"]


def test_a_fold_is_trained_on_the_good_images_of_train_and_predicts_val(train, fake, tiles):
    run = train(fold=2)
    split = tiles.split(2)
    assert [data.train for data in fake.given] == [tuple(i for i in split.train if tiles.image_by_id[i].is_good)]
    assert run.info["trained_on"] == {"good": len(fake.given[0].train), "defective": 0}
    assert fake.given[0].val == split.val
    assert tuple(fake.asked) == split.val
    assert set(run.scores("val")) == set(split.val)
    assert not run.has("test")
    assert not (run.path / "work").exists()


@pytest.mark.parametrize("fold", [0, 1, 2, "official"])
def test_an_unsupervised_approach_never_sees_a_defect(train, fake, tiles, fold):
    train(fold=fold)
    for data in fake.given:
        assert all(tiles.image_by_id[i].is_good for i in data.train)
        assert not any(tiles.annotations_by_image[i] for i in data.train)
    if fold == "official":
        assert all(tiles.image_by_id[i].is_good for i in fake.asked)


def test_a_supervised_approach_sees_the_defects_of_train_alone(train, fake, tiles):
    fake.SUPERVISED = True
    run = train(fold=0)
    assert fake.given[0].train == tiles.split(0).train
    assert run.info["trained_on"]["defective"] == sum(not tiles.image_by_id[i].is_good for i in tiles.split(0).train)


def test_a_supervised_approach_refuses_the_official_split_and_touches_nothing(train, fake, tmp_path):
    fake.SUPERVISED = True
    (tmp_path / "run").mkdir()
    with pytest.raises(
        OptionError,
        match=r"learns from labelled defects, and is not trained on the official split; use --fold 0 or crossval",
    ):
        train(fold="official")
    assert list((tmp_path / "run").iterdir()) == []


def test_official_holds_a_tenth_back_for_the_thresholds_and_refits_on_all(train, fake, tiles, prediction):
    run = train(fold="official")
    partial, whole = fake.given
    official = tiles.split("official")
    held = set(whole.train) - set(partial.train)
    assert whole.train == official.train
    assert len(held) == 2
    assert set(fake.asked) == held
    assert partial.val == whole.val == ()
    thresholds = run.info["thresholds"]["official"]
    said = [prediction(tiles, image_id, fake.Config(), len(partial.train)) for image_id in held]
    assert thresholds["image"]["value"] == max(p.score for p in said)
    pixels = np.concatenate([p.map.ravel() for p in said])
    assert np.percentile(pixels, 99.5) <= thresholds["pixel"]["value"] <= pixels.max() * 1.001
    assert thresholds["detection"]["value"] is None
    assert "no defects" in thresholds["detection"]["why"]
    assert json.loads((run.weights / "model.json").read_text()) == {"trained": len(official.train)}
    assert {path.name for path in run.path.iterdir()} == {"weights", "run.json"}


def test_official_holds_back_whole_groups(train, fake, tiles):
    images = tuple(dataclasses.replace(image, group=image.id // 7) for image in tiles.images)
    train(dataset=dataclasses.replace(tiles, images=images), fold="official")
    partial, whole = fake.given
    groups = [{i // 7 for i in ids} for ids in (partial.train, set(whole.train) - set(partial.train))]
    assert not groups[0] & groups[1]


def test_a_leak_into_the_official_test_part_is_told_before_training(train, tiles, capsys):
    train(fold="official")
    assert "near-duplicates" not in capsys.readouterr().err
    first, tested = tiles.split("official").train[0], tiles.split("official").test
    images = tuple(
        dataclasses.replace(image, group=tiles.image_by_id[first].group) if image.id == tested[0] else image
        for image in tiles.images
    )
    train(dataset=dataclasses.replace(tiles, images=images), fold="official", overwrite=True)
    said = capsys.readouterr().err
    assert f"{tiles.path}: 1 of 19 test images of the official split (" in said
    assert "share a group (near-duplicates) with its training part, so figures on it are too good" in said
    assert "maskbridge convert --drop-leaks leaves the training copies out" in said
    train(dataset=dataclasses.replace(tiles, images=images), fold=0, overwrite=True)
    assert "near-duplicates" not in capsys.readouterr().err


def test_official_with_one_group_alone_is_refused(train, tiles, tmp_path):
    images = tuple(dataclasses.replace(image, group=1) for image in tiles.images)
    with pytest.raises(OptionError, match="too few good training images to hold a tenth back; found 20 in 1 groups"):
        train(dataset=dataclasses.replace(tiles, images=images), fold="official")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fold", [0, "official"])
def test_another_seed_holds_others_back_and_the_same_seed_the_same(train, fake, tmp_path, fold):
    for number, seed in enumerate((0, 0, 1)):
        train(path=tmp_path / str(number), fold=fold, seed=seed)
    first, second, third = (fake.given[i].train for i in ((0, 2, 4) if fold == "official" else (0, 1, 2)))
    assert first == second
    assert (first != third) == (fold == "official")


@pytest.mark.parametrize("fold", [0, "official"])
def test_a_score_that_is_not_finite_ends_the_training_in_one_line(train, fake, fold):
    fake.predict = lambda data, *_: (Prediction(image_id=i, score=float("nan")) for i in data.image_ids)
    with pytest.raises(RunError, match=r"the score of image \d+ is nan"):
        train(fold=fold)


@pytest.mark.parametrize("change", ["swapped", "left out", "twice", "unasked"])
def test_an_approach_that_predicts_other_images_than_asked_is_caught(train, fake, change):
    def predict(data, *_):
        ids = list(data.image_ids)
        ids = {"swapped": ids[::-1], "left out": ids[:-1], "twice": [ids[0], *ids], "unasked": [*ids, 999]}[change]
        return (Prediction(image_id=i, score=1.0) for i in ids)

    fake.predict = predict
    with pytest.raises(RunError, match=r"another image than it was asked for|did not predict image"):
        train(fold=0)


def test_no_threshold_without_anything_to_set_it_by(train, fake):
    entries = train(fake.Config(gives="scores"), fold=0).info["thresholds"]["0"]
    assert entries["image"]["value"] is not None
    for kind in ("pixel", "detection"):
        assert entries[kind]["value"] is None
        assert entries[kind]["why"]


def test_a_finished_run_is_refused_kept_or_replaced(train, fake, tree, tmp_path):
    run = train(fold=0)
    before = tree(run.path)
    with pytest.raises(RunError, match=r"is a finished run; name another, or add --overwrite"):
        train(fold=0)
    assert train(fold=0, resume=True).info == run.info
    assert tree(run.path) == before
    assert len(fake.given) == 1
    (run.path / "metrics.json").write_text("{}")
    train(fold=1, overwrite=True)
    assert Run.open(run.path).info["fold"] == 1
    assert not (run.path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("settings", "options", "what"),
    [({"fold": 1}, {}, "fold"), ({"seed": 3}, {}, "seed"), ({}, {"factor": 2.0}, "options")],
)
def test_resume_with_something_else_is_refused_for_finished_and_unfinished_runs(
    train, fake, tmp_path, settings, options, what
):
    train(fold=0)
    interrupted(train, fake, tmp_path / "cut")
    for path in (tmp_path / "run", tmp_path / "cut"):
        with pytest.raises(RunError, match=f"was started with other {what}; found"):
            train(fake.Config(**options), path=path, **{"fold": 0, **settings}, resume=True)


def test_resume_may_change_what_changes_no_result(train, fake, tmp_path):
    fake.SAME_RESULT_OPTIONS = ("factor",)
    interrupted(train, fake, tmp_path / "cut")
    run = train(fake.Config(factor=2.0), path=tmp_path / "cut", fold=0, resume=True)
    assert run.info["options"]["factor"] == 2.0
    with pytest.raises(RunError, match=r"other options; found \{'level': None\}; expected \{'level': 77\}"):
        train(fake.Config(level=77), path=tmp_path / "cut", fold=0, resume=True)


def test_resume_takes_a_dataset_that_was_moved_but_none_that_changed(train, tiles, tmp_path):
    train(fold=0)
    moved = Dataset.open(shutil.copytree(tiles.path, tmp_path / "moved"))
    assert train(dataset=moved, fold=0, resume=True).info["dataset"]["path"] == str(tiles.path)
    changed = dataclasses.replace(moved, splits_sha256="0" * 64)
    with pytest.raises(RunError, match="was started with other dataset"):
        train(dataset=changed, fold=0, resume=True)


def test_an_interrupted_run_is_told_resumed_or_replaced(train, fake, tmp_path):
    path = tmp_path / "cut"
    interrupted(train, fake, path)
    with pytest.raises(RunError, match="is an unfinished run; --resume goes on, --overwrite starts anew"):
        train(path=path, fold=0)
    whole = train(path=path, fold=0, resume=True)
    assert whole.info["facts"] == {"noise": 1}
    assert whole.info["resumed"] is True
    assert fake.left_for_resume == "epoch 1"
    interrupted(train, fake, tmp_path / "again")
    train(path=tmp_path / "again", fold=0, overwrite=True)
    assert fake.left_for_resume is None


@pytest.mark.parametrize("settings", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("inside", ["thesis.txt", "weights/mine.pt", "work/mine.txt", "fold0/mine.txt"])
def test_a_folder_that_is_no_run_is_left_alone(train, tree, tmp_path, settings, inside):
    (tmp_path / "run" / inside).parent.mkdir(parents=True)
    (tmp_path / "run" / inside).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(RunError, match=r"is not empty and no run; name another folder"):
        train(fold=0, **settings)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("settings", [{}, {"resume": True}, {"overwrite": True}])
def test_a_file_in_the_way_is_left_alone(train, tmp_path, settings):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match="is in the way; found a file"):
        train(fold=0, **settings)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_training_refused_before_it_began_leaves_no_folder(train, fake, tmp_path):
    def train_refused(*_):
        raise OptionError("no text features")

    fake.train = train_refused
    with pytest.raises(OptionError):
        train(fold=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fold", [-1, 3, 99])
def test_a_fold_that_is_not_there_is_refused(train, tmp_path, fold):
    with pytest.raises(MaskbridgeError, match=f"no such fold; found {fold}; expected 0 to 2"):
        train(fold=fold)
    assert not (tmp_path / "run").exists()


def test_predict_adds_the_part_and_its_cost_and_keeps_the_thresholds(train, tiles):
    run = train(fold=0)
    done = predict_run(run, tiles, "test")
    assert set(done.scores("test")) == set(tiles.split(0).test)
    assert done.info["thresholds"] == run.info["thresholds"]
    assert set(done.info["seconds"]) == {"train", "val", "test"}
    assert done.info["predict_ms_per_image"] > 0
    assert Run.open(run.path).info == done.info
    assert not (run.path / "work").exists()


def test_other_options_in_place_are_refused_and_nothing_changes(train, fake, tiles, tree):
    run = predict_run(train(fold=0), tiles, "test")
    before = tree(run.path)
    fake.asked.clear()
    line = "other options make another run; found factor 1.0 -> 10.0; name a folder for it with --out"
    with pytest.raises(OptionError, match=line):
        predict_run(run, tiles, "val", changes={"factor": 10.0})
    assert tree(run.path) == before
    assert not fake.asked


def test_what_changes_no_result_may_be_other_for_a_prediction_and_the_run_stays_what_it_is(train, fake, tiles):
    fake.SAME_RESULT_OPTIONS = ("level",)
    run = predict_run(train(fold=0), tiles, "test", changes={"level": 7})
    assert run.info["options"]["level"] is None
    assert set(run.scores("test")) == set(tiles.split(0).test)


def test_a_second_run_of_other_options_is_still_the_one_that_was_trained(train, fake, tiles, tmp_path):
    predict_run(train(fold=0), tiles, "test", changes={"factor": 10.0}, out=tmp_path / "second")
    assert train(path=tmp_path / "second", fold=0, resume=True).info["options"]["factor"] == 10.0
    with pytest.raises(RunError, match=r"other options; found \{'factor': 1.0\}; expected \{'factor': 10.0\}"):
        train(fake.Config(factor=10.0), path=tmp_path / "second", fold=0, resume=True)


def test_what_a_killed_prediction_has_left_is_removed_by_the_next_and_never_taken(train, tiles):
    run = train(fold=0)
    for left in ("work/predicted", "predictions/.test.maskbridge.partial/maps", "predictions/.val.maskbridge.partial"):
        (run.path / left).mkdir(parents=True)
        (run.path / left / "99.npy").write_bytes(b"half")
    run = predict_run(run, tiles, "test")
    assert not (run.path / "work").exists()
    assert sorted(path.name for path in (run.path / "predictions").iterdir()) == ["test", "val"]
    assert {int(path.stem) for path in (run.path / "predictions/test/maps").iterdir()} == set(tiles.split(0).test)


def test_of_two_commands_on_one_run_the_second_is_refused(train, fake, tiles, tree):
    run, predict, refused = train(fold=0), fake.predict, []

    def meanwhile(data, *rest):
        before = tree(run.path)
        for act in (
            lambda: predict_run(run, tiles, "test"),
            lambda: train(fold=0, overwrite=True),
            lambda: train(fold=0, resume=True),
        ):
            with pytest.raises(MaskbridgeError, match="run: another command is working on it; wait until it is done"):
                act()
            refused.append(act)
        assert tree(run.path) == before
        yield from predict(data, *rest)

    fake.predict = meanwhile
    done = predict_run(run, tiles, "test")
    assert len(refused) == 3
    assert set(done.scores("test")) == set(tiles.split(0).test)


def test_options_that_stay_as_they_were_are_no_change(train, tiles, fake):
    run = predict_run(train(fold=0), tiles, "test")
    fake.asked.clear()
    predict_run(run, tiles, "val", changes={"factor": 1.0})
    assert tuple(fake.asked) == tiles.split(0).val
    assert run.has("test")


def test_official_refuses_changed_options_and_has_no_val(train, tiles, tree):
    run = predict_run(train(fold="official"), tiles, "test")
    before = tree(run.path)
    with pytest.raises(OptionError, match="thresholds of the official split are those of the training"):
        predict_run(run, tiles, "test", changes={"factor": 2.0})
    with pytest.raises(RunError, match="fold official has no part val"):
        predict_run(run, tiles, "val")
    assert tree(run.path) == before


def test_a_second_run_leaves_the_first_as_it_is_and_has_its_weights(train, tiles, tree, tmp_path):
    first = predict_run(train(fold=0), tiles, "test")
    before = tree(first.path)
    second = predict_run(first, tiles, "test", changes={"factor": 10.0}, out=tmp_path / "second")
    assert tree(first.path) == before
    assert second.path == tmp_path / "second"
    assert Run.open(second.path).info == second.info
    assert tree(second.weights) == tree(first.weights) != {}
    assert sorted(path.name for path in second.path.iterdir()) == ["predictions", "run.json", "weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "second"]


def test_a_second_run_is_of_the_new_options_with_thresholds_fitted_anew(train, fake, tiles, tmp_path):
    first = predict_run(train(fold=0), tiles, "test")
    second = predict_run(first, tiles, "test", changes={"factor": 10.0}, out=tmp_path / "second")
    assert (second.info["options"]["factor"], second.info["trained_options"]["factor"]) == (10.0, 1.0)
    for part in ("val", "test"):
        assert second.scores(part) == pytest.approx({i: 10 * score for i, score in first.scores(part).items()})
    was, now = (run.info["thresholds"]["0"]["image"]["value"] for run in (first, second))
    assert now == pytest.approx(10 * was)
    assert set(second.info["seconds"]) == {"train", "val", "test"}
    assert second.info["seconds"]["train"] == first.info["seconds"]["train"]
    third = predict_run(second, tiles, "test", changes={"factor": 2.0}, out=tmp_path / "third")
    assert third.info["trained_options"]["factor"] == 1.0


def test_a_second_run_of_the_same_options_is_the_same(train, tiles, tmp_path):
    first = predict_run(train(fold=0), tiles, "test")
    second = predict_run(first, tiles, "test", out=tmp_path / "second")
    assert second.info["thresholds"] == first.info["thresholds"]
    assert second.scores("test") == first.scores("test")


def test_a_second_run_of_val_alone_has_no_test_and_none_of_its_cost(train, tiles, tmp_path):
    first = predict_run(train(fold=0), tiles, "test")
    second = predict_run(first, tiles, "val", out=tmp_path / "second")
    assert second.has("val")
    assert not second.has("test")
    assert set(second.info["seconds"]) == set(second.info["peak_memory_mb"]) == {"train", "val"}


def test_training_a_second_run_anew_leaves_the_weights_of_the_first(train, fake, tiles, tree, tmp_path):
    first = train(fold=0)
    predict_run(first, tiles, "test", changes={"factor": 10.0}, out=tmp_path / "second")
    before = tree(first.path)
    train(path=tmp_path / "second", fold=1, overwrite=True)
    assert tree(first.path) == before


def test_a_second_run_in_the_way_is_refused_or_replaced(train, tiles, tree, tmp_path):
    first = predict_run(train(fold=0), tiles, "test")
    again = lambda **more: predict_run(first, tiles, "test", out=tmp_path / "second", **more)  # noqa: E731
    again(changes={"factor": 3.0})
    (tmp_path / "second" / "metrics.json").write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(MaskbridgeError, match="second: is not empty; choose another folder or add --overwrite"):
        again(changes={"factor": 4.0})
    assert tree(tmp_path) == before
    assert again(changes={"factor": 4.0}, overwrite=True).info["options"]["factor"] == 4.0
    assert not (tmp_path / "second" / "metrics.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("inside", [None, "mine.txt", "weights/mine.pt"])
def test_what_is_no_run_is_never_replaced_by_a_second_run(train, tiles, tree, tmp_path, overwrite, inside):
    first, mine = train(fold=0), tmp_path / "mine"
    if inside is None:
        mine.write_text("mine")
    else:
        (mine / inside).parent.mkdir(parents=True)
        (mine / inside).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(MaskbridgeError, match=r"is in the way|is not empty|is left alone"):
        predict_run(first, tiles, "test", out=mine, overwrite=overwrite)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", ["run", "run/second", ".", "link"])
def test_a_second_run_in_or_around_the_first_is_refused_even_to_replace_it(train, tiles, tree, tmp_path, out):
    first = train(fold=0)
    (tmp_path / "link").symlink_to(first.path)
    (tmp_path / "run.json").write_text((first.path / "run.json").read_text())
    before = tree(tmp_path)
    with pytest.raises(RunError, match="lies in or around the run itself"):
        predict_run(first, tiles, "test", out=tmp_path / out, overwrite=True)
    assert tree(tmp_path) == before


def test_official_has_no_second_run(train, tiles, tree, tmp_path):
    run = train(fold="official")
    before = tree(tmp_path)
    with pytest.raises(OptionError, match="there is no val to fit others on; found --out; train again"):
        predict_run(run, tiles, "test", out=tmp_path / "second")
    with pytest.raises(OptionError, match="thresholds of the official split are those of the training"):
        predict_run(run, tiles, "test", changes={"factor": 2.0}, out=tmp_path / "second")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("error", [RunError("has not predicted test"), KeyboardInterrupt()], ids=["refused", "ctrl-c"])
@pytest.mark.parametrize("asked", ["val", "test"])
@pytest.mark.parametrize(
    ("changes", "out", "overwrite"),
    [({}, None, False), ({}, "new", False), ({"factor": 2.0}, "old", True)],
)
def test_a_prediction_that_fails_half_way_leaves_every_run_as_it_was(
    train, fake, tiles, tree, tmp_path, error, asked, changes, out, overwrite
):
    first = predict_run(train(fold=0), tiles, "test")
    predict_run(first, tiles, "test", out=tmp_path / "old")
    before, predict = tree(tmp_path), fake.predict

    def failing(data, *rest):
        for number, prediction in enumerate(predict(data, *rest)):
            if data.part == asked and number == 1:
                raise error
            yield prediction

    fake.predict = failing
    part, path = "test" if changes or out else asked, None if out is None else tmp_path / out
    with pytest.raises(type(error)):
        predict_run(first, tiles, part, changes=changes, out=path, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_each_part_is_told_to_the_approach_by_its_name_and_fold(train, fake, tiles, tmp_path):
    told, predict = [], fake.predict

    def listening(data, *rest):
        told.append((data.fold, data.part, data.image_ids))
        return predict(data, *rest)

    fake.predict = listening
    run = train(fold=2)
    split = tiles.split(2)
    assert told == [(2, "val", split.val)]
    predict_run(run, tiles, "test", out=tmp_path / "second")
    assert told[1:] == [(2, "val", split.val), (2, "test", split.test)]
    train(fold="official", path=tmp_path / "official")
    assert [(fold, part) for fold, part, _ in told[3:]] == [("official", "train")]


def test_truth_given_goes_by_the_options_of_the_prediction_and_leaves_no_threshold(train, fake, tiles, tmp_path):
    """The made-up approach is given the boxes where its factor is 1."""
    fake.truth_given = lambda config: "boxes of the defects" if config.factor == 1.0 else None
    predict = fake.predict

    def told(data, config, *rest):
        for prediction in predict(data, config, *rest):
            given = [
                Detection(box_ltwh=tuple(a["bbox"]), score=0.5)
                for a in data.dataset.annotations_by_image[prediction.image_id]
            ]
            yield Prediction(image_id=prediction.image_id, detections=given) if config.factor == 1.0 else prediction

    fake.predict = told
    run = train(fold=0)
    assert run.info["truth_given"] == "boxes of the defects"
    for entry in run.info["thresholds"]["0"].values():
        assert entry == {
            "value": None,
            "why": "the run was given the boxes of the defects, which exist only where there is a defect",
        }
    honest = predict_run(run, tiles, "test", changes={"factor": 2.0}, out=tmp_path / "honest")
    assert honest.info["truth_given"] is None
    assert all(entry["value"] is not None for entry in honest.info["thresholds"]["0"].values())
    back = predict_run(honest, tiles, "test", changes={"factor": 1.0}, out=tmp_path / "back")
    assert back.info["truth_given"] == "boxes of the defects"
    assert all(entry["value"] is None for entry in back.info["thresholds"]["0"].values())


def test_a_run_without_truth_says_so(train):
    assert train(fold=0).info["truth_given"] is None


def test_options_of_another_version_are_refused(train, tiles):
    run = train(fold=0).save(options={"momentum": 1})
    with pytest.raises(OptionError, match="has options of another version"):
        predict_run(run, tiles, "test")


def test_a_dataset_that_has_changed_since_is_refused_with_both_hashes(train, tiles, tmp_path):
    copy = shutil.copytree(tiles.path, tmp_path / "copy")
    run = train(dataset=Dataset.open(copy), fold=0)
    for name in ("annotations", "splits"):
        path = copy / f"{name}.json"
        path.write_text(path.read_text() + " ")
        with pytest.raises(RunError) as caught:
            run.dataset()
        found = getattr(Dataset.open(copy), f"{name}_sha256")
        assert f"found sha256 {found}" in str(caught.value)
        assert f"expected sha256 {run.info['dataset'][f'{name}_sha256']}" in str(caught.value)
        path.write_text(path.read_text()[:-1])
    assert run.dataset(tiles.path).path == tiles.path


def test_val_without_a_defect_gives_thresholds_that_say_why(fake, zoo, new_source, tmp_path):
    source = new_source(tmp_path / "source", {"crack": [zoo["line"], zoo["ring"]]}, train=6, good=8)
    convert("mvtec", source, tmp_path / "data", ConvertOptions(folds=2))
    dataset = Dataset.open(tmp_path / "data")
    assert all(dataset.image_by_id[i].is_good for i in dataset.split(0).val)
    run = train_run("fake", dataset, tmp_path / "run", fake.Config(), Settings(fold=0))
    for entry in run.info["thresholds"]["0"].values():
        assert entry["value"] is None
        assert entry["why"]


def interrupted(train, fake, path):
    """Train until Ctrl-C after something was left in the work folder; then let `train` work again."""
    whole = fake.train

    def cut(data, config, weights, context):
        (context.work / "epoch.txt").write_text("epoch 1")
        raise KeyboardInterrupt

    fake.train = cut
    with pytest.raises(KeyboardInterrupt):
        train(path=path, fold=0)

    def going_on(data, config, weights, context):
        file = context.work / "epoch.txt"
        fake.left_for_resume = file.read_text() if context.resume and file.exists() else None
        return whole(data, config, weights, context)

    fake.train = going_on


def test_a_kill_before_run_json_says_of_the_prediction_leaves_the_run_as_it_was_said(train, tiles, monkeypatch):
    run = train(fold=0)

    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_run(run, tiles, "test")
    assert Run.open(run.path).info == run.info


@pytest.mark.parametrize("error", [OptionError("no such weights"), KeyboardInterrupt()], ids=["refused", "ctrl-c"])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_replaced_only_by_one_that_is_whole(train, fake, tiles, tree, tmp_path, error, resume, finished):
    """Whatever ends the training, the run that is there stays; nothing lies beside it but what can be gone on with."""
    whole = fake.train
    if finished:
        before = tree(predict_run(train(fold=0), tiles, "test").path)
    else:
        interrupted(train, fake, tmp_path / "run")
        before = tree(tmp_path / "run")

    def failing(data, config, weights, context):
        (context.work / "epoch.txt").write_text("3")
        raise error

    fake.train = failing
    with pytest.raises(type(error)):
        train(fold=0, overwrite=True, resume=resume)
    assert tree(tmp_path / "run") == before
    assert [path.name for path in tmp_path.glob(".*")] == ([".run.maskbridge.partial"] if resume else [])
    left = []

    def going_on(data, config, weights, context):
        left.append((context.work / "epoch.txt").is_file())
        return whole(data, config, weights, context)

    fake.train = going_on
    new = train(fold=0, overwrite=True, resume=resume)
    assert left == [resume]
    assert new.path == tmp_path / "run"
    assert Run.open(new.path).info == new.info
    assert not new.has("test")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["run.json", "work/started.json"])
def test_a_folder_with_a_file_of_our_name_that_is_not_ours_is_never_replaced(train, tree, tmp_path, name):
    (tmp_path / "run" / "work").mkdir(parents=True)
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    (tmp_path / "run" / name).write_text('{"config": {"dataset": "mine"}, "options": {}}')
    before = tree(tmp_path)
    for settings in ({"overwrite": True}, {"resume": True}, {"overwrite": True, "resume": True}):
        with pytest.raises(RunError, match="is not empty and no run"):
            train(**settings)
    assert tree(tmp_path) == before


def test_a_kill_in_the_first_moments_leaves_nothing_that_stands_in_the_way(train, tmp_path, monkeypatch):
    """The folder appears with its claim, whole; before that there is only what the next command removes."""

    def killed(*args, **options):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("maskbridge.run_folders.write_json", killed)
        patch.setattr("maskbridge.folders._remove", lambda *_: None)  # as a kill leaves it
        with pytest.raises(SystemExit):
            train(fold=0)
    assert [path.name for path in tmp_path.iterdir()] == [".run.maskbridge.partial"]
    train(fold=0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_predictions_that_are_a_link_to_elsewhere_are_not_written_through(train, tiles, tmp_path, tree):
    run = train()
    elsewhere = (run.path / "predictions").rename(tmp_path / "elsewhere")
    (run.path / "predictions").symlink_to(elsewhere)
    before = tree(tmp_path)
    with pytest.raises(RunError, match=r"predictions: is a link, and predictions are written into the run alone"):
        predict_run(run, tiles, "test")
    assert tree(tmp_path) == before


def test_the_device_is_told_before_anything_is_done(train, fake, tmp_path):
    with pytest.raises(OptionError, match="--device cannot be used; found 'banana'; expected auto, cpu, cuda"):
        train(device="banana")
    assert fake.given == []
    assert not (tmp_path / "run").exists()
