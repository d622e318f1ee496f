from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.crossval import crossval, merge, predict_folds
from maskbridge.derive import PredictionView
from maskbridge.errors import MaskbridgeError, OptionError, RunError
from maskbridge.predicting import predict_run
from maskbridge.predictions import Run, write_predictions
from maskbridge.thresholds import fold_thresholds
from maskbridge.training import Settings, run_info, train_run


@pytest.fixture(autouse=True)
def nothing_is_flushed(monkeypatch):
    """Hundreds of maps are written here, and none has to outlive a power cut."""
    monkeypatch.setattr("maskbridge.files.os.fsync", lambda _: None)


@pytest.fixture
def merged(fake, tiles, tmp_path) -> Run:
    return crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings())


@pytest.fixture
def made_up(tiles, tmp_path):
    """A run of one fold with given predictions of `val` and `test`, thresholds fitted on `val`."""

    def make(fold, val, test, **more) -> Run:
        info = {
            "approach": "made-up", "options": {}, "fold": fold, "seed": 0, "device": "cpu", "weights_from": "none",
            "dataset": {"path": str(tiles.path), "annotations_sha256": tiles.annotations_sha256,
                        "splits_sha256": tiles.splits_sha256},
            "parameters": 1, "seconds": {"train": 1.0, "val": 1.0, "test": 1.0}, "predict_ms_per_image": 1.0,
            "peak_memory_mb": {"train": 100.0 + fold}, "trained_on": {"good": 1, "defective": 0},
            **more,
        }  # fmt: skip
        run = Run(tmp_path / f"fold{fold}", info)
        write_predictions(run.path, "val", (val(i) for i in tiles.split(fold).val))
        write_predictions(run.path, "test", (test(i) for i in tiles.split(fold).test))
        return run.save(thresholds={str(fold): fold_thresholds(run, tiles)})

    return make


def test_every_labelled_image_is_predicted_once_by_the_fold_that_did_not_see_it(merged, tiles, fake):
    labelled = sorted(i for fold in range(3) for i in tiles.split(fold).test)
    assert sorted(merged.scores("crossval")) == labelled == sorted(set(labelled)) == list(range(21, 40))
    maps = sorted(int(path.stem) for path in (merged.path / "predictions/crossval/maps").iterdir())
    assert maps == labelled
    assert {result["image_id"] for result in merged.detections("crossval")} == set(labelled)
    assert len(fake.given) == 3
    for number, data in enumerate(fake.given):
        assert data.fold == number
        assert not set(data.train) & set(tiles.split(number).test)


def test_the_merged_run_says_what_its_folds_say(merged, tiles):
    info = json.loads((merged.path / "run.json").read_text())
    folds = [Run.open(merged.path / f"fold{fold}").info for fold in range(3)]
    assert (info["fold"], info["folds"], info["approach"]) == ("all", ["fold0", "fold1", "fold2"], "fake")
    assert info["dataset"] == folds[0]["dataset"]
    assert info["seconds"]["train"] == pytest.approx(sum(fold["seconds"]["train"] for fold in folds), abs=0.01)
    assert info["thresholds"] == {str(number): fold["thresholds"][str(number)] for number, fold in enumerate(folds)}
    assert all(set(info["mapping"][kind]) == {"0", "1", "2"} for kind in ("image", "pixel", "detection"))
    assert info["trained_on"]["defective"] == 0
    assert merged.default_part() == "crossval"
    assert not (merged.path / "work").exists()
    assert merged.dataset().path == tiles.path


@pytest.mark.parametrize("gives", ["scores", "maps", "detections", "scores maps detections"])
def test_each_images_decisions_are_those_of_its_own_fold(fake, tiles, tmp_path, gives):
    merged = crossval("fake", tiles, tmp_path / "all", fake.Config(gives=gives), Settings())
    assert_same_decisions(merged, [Run.open(merged.path / f"fold{fold}") for fold in range(3)], tiles)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_decisions_stay_on_any_scale(made_up, tiles, tmp_path, scale):
    def say(fold):
        def predict(image_id):
            rng = np.random.default_rng([fold, image_id])
            return Prediction(
                image_id=image_id,
                score=float(np.float32(scale * (100 + rng.normal(0, 1)))),
                map=np.float32(scale * (fold + rng.lognormal(0, 1, (6, 8)))),
                detections=[
                    Detection(box_ltwh=(3, 3, 6, 5), score=float(rng.beta(0.3, 2))) for _ in range(rng.integers(3))
                ],
            )

        return predict

    runs = [made_up(fold, say(fold), say(fold)) for fold in range(3)]
    assert_same_decisions(merge(tmp_path / "all", runs, tiles), runs, tiles)


def test_images_without_a_detection_are_still_called_defective_where_everything_is(made_up, tiles, tmp_path):
    """F1-max may accept every image, score 0 of those without a detection included."""

    def silent_on_defects(image_id):
        good = tiles.image_by_id[image_id].is_good
        return Prediction(
            image_id=image_id,
            detections=[Detection(box_ltwh=(1, 1, 5, 5), score=0.1 + image_id / 100)] if good else [],
        )

    runs = [made_up(fold, silent_on_defects, silent_on_defects) for fold in range(3)]
    assert {run.info["thresholds"][str(fold)]["image"]["value"] for fold, run in enumerate(runs)} == {0.0}
    assert_same_decisions(merge(tmp_path / "all", runs, tiles), runs, tiles)


def test_what_the_folds_predicted_is_merged_as_it_is(made_up, tiles, tmp_path):
    """Also confidences that are no shares, and scores of any size; the memory needed is that of the hungriest fold."""

    def say(fold):
        def predict(i):
            detections = [Detection(box_ltwh=(1, 1, 5, 4), score=float(i - 30), category_id=2)]
            anomaly_map = np.float32([[i, 10.0**fold, 3]])
            return Prediction(image_id=i, score=10.0**fold * i, map=anomaly_map, detections=detections)

        return predict

    runs = [made_up(fold, say(fold), say(fold)) for fold in range(3)]
    merged = merge(tmp_path / "all", runs, tiles)
    for run in runs:
        for i, score in run.scores("test").items():
            assert merged.scores("crossval")[i] == score
            np.testing.assert_array_equal(merged.map("crossval", i), run.map("test", i))
        for result in run.detections("test"):
            assert result in merged.detections("crossval")
    assert merged.info["folds"] == ["../fold0", "../fold1", "../fold2"]
    assert merged.info["peak_memory_mb"] == {"train": 102.0}
    assert merged.info["seconds"] == {"train": 3.0, "val": 3.0, "test": 3.0}


def test_a_fold_whose_val_has_no_detection_keeps_its_confidences(made_up, tiles, tmp_path):
    def say(i):
        return Prediction(image_id=i, detections=[Detection(box_ltwh=(1, 1, 5, 5), score=i / 100)])

    runs = [made_up(f, (lambda i: Prediction(image_id=i, detections=[])) if f == 1 else say, say) for f in range(3)]
    assert runs[1].info["thresholds"]["1"]["detection"]["value"] is None
    merged = merge(tmp_path / "all", runs, tiles)
    found = {r["image_id"]: r["score"] for r in merged.detections("crossval")}
    for i in tiles.split(1).test:
        assert found[i] == i / 100
    assert merged.info["mapping"]["detection"]["1"]["note"] == "val has no such value: left as they are"
    assert "note" not in merged.info["mapping"]["detection"]["0"]
    entry = merged.info["thresholds"]["1"]["detection"]
    assert entry["value"] is None
    assert entry["why"]


def test_runs_that_were_given_truth_are_merged_to_one_that_was_and_scores_the_same(made_up, tiles, tmp_path):
    """Every second defect has its own mask, the others an empty one; two defects of an image keep their order."""
    from evaluation.metrics import evaluate

    def say(image_id):
        return Prediction(
            image_id=image_id,
            detections=[
                Detection(
                    box_ltwh=tuple(map(float, a["bbox"])),
                    score=0.1 * (1 + a["id"] % 7),
                    segmentation=a["segmentation"] if a["id"] % 2 else geometry.encode(np.zeros((48, 64), np.uint8)),
                )
                for a in tiles.annotations_by_image[image_id]
            ],
        )

    runs = [made_up(fold, say, say, truth_given="boxes of the defects") for fold in range(3)]
    merged = merge(tmp_path / "all", runs, tiles)
    assert merged.truth_given == "boxes of the defects"
    assert merged.info["thresholds"] == {str(fold): run.info["thresholds"][str(fold)] for fold, run in enumerate(runs)}
    whole = evaluate(merged, tiles, "crossval", samples=5).metrics
    tested = [a["id"] % 2 for fold in range(3) for i in tiles.split(fold).test for a in tiles.annotations_by_image[i]]
    assert whole["mask"]["iou"]["value"] == pytest.approx(np.mean(tested))
    for fold, run in enumerate(runs):
        alone = evaluate(run, tiles, "test", samples=5).metrics
        for family, name in (("mask", "iou"), ("mask", "dice"), ("instance", "segm_ap")):
            in_fold = whole["folds"][family][name]["values"][str(fold)]
            assert in_fold == pytest.approx(alone[family][name]["value"]), (family, name)


def test_a_fold_whose_val_is_empty_is_merged_as_it_is(fake, tiles, tmp_path):
    """Two images of a type are too few for val to have one."""
    splits = json.loads(json.dumps(tiles.splits))
    for fold in splits["folds"]:
        fold["train"], fold["val"] = sorted(fold["train"] + fold["val"]), []
    dataset = dataclasses.replace(tiles, splits=splits)
    merged = crossval("fake", dataset, tmp_path / "all", fake.Config(), Settings())
    fold0 = Run.open(merged.path / "fold0")
    for i, score in fold0.scores("test").items():
        assert merged.scores("crossval")[i] == score
    for entry in merged.info["thresholds"]["0"].values():
        assert entry["value"] is None


def test_a_finished_crossval_is_refused_kept_or_replaced(merged, fake, tiles, tree):
    before = tree(merged.path)
    again = lambda **settings: crossval("fake", tiles, merged.path, fake.Config(), Settings(**settings))  # noqa: E731
    with pytest.raises(RunError, match="is a finished run"):
        again()
    again(resume=True)
    assert tree(merged.path) == before
    assert len(fake.given) == 3
    with pytest.raises(RunError, match="was started with other seed"):
        again(resume=True, seed=1)
    (merged.path / "fold9").mkdir()
    again(overwrite=True)
    assert len(fake.given) == 6
    assert not (merged.path / "fold9").exists()


def test_an_interrupted_crossval_goes_on_with_the_folds_that_are_left(fake, tiles, tmp_path):
    train = fake.train

    def until_fold_1(data, config, weights, context):
        if data.fold == 1:
            raise KeyboardInterrupt
        return train(data, config, weights, context)

    fake.train = until_fold_1
    again = lambda **settings: crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings(**settings))  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        again()
    fake.train = train
    with pytest.raises(RunError, match="is an unfinished run"):
        again()
    assert again(resume=True).has("crossval")
    assert [data.fold for data in fake.given] == [0, 1, 2]


@pytest.mark.parametrize("settings", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_is_no_run_is_left_alone(fake, tiles, tmp_path, tree, settings):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(RunError, match="is not empty and no run"):
        crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings(**settings))
    assert tree(tmp_path) == before


def test_a_crossval_refused_before_it_began_leaves_no_folder(fake, tiles, tmp_path):
    def refuse(*_):
        raise RunError("no text features")

    fake.train = refuse
    with pytest.raises(RunError):
        crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings())
    assert not (tmp_path / "all").exists()


def test_a_fold_that_cannot_be_trained_is_told_before_the_first_one_is(fake, tiles, tmp_path):
    def check(data, config):
        if data.fold == 2:
            raise RunError("is of another fold")

    fake.check = check
    with pytest.raises(RunError, match="is of another fold"):
        crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings())
    assert fake.given == []
    assert not (tmp_path / "all").exists()


def test_folds_may_differ_in_what_changes_no_result(fake, tiles, tmp_path):
    fake.SAME_RESULT_OPTIONS = ("level",)
    train_run("fake", tiles, tmp_path / "all" / "fold0", fake.Config(level=9), Settings(fold=0))
    (tmp_path / "all" / "work").mkdir()
    (tmp_path / "all" / "work" / "started.json").write_text(
        json.dumps(run_info("fake", tiles, fake.Config(level=9), fold="all", seed=0))
    )
    assert crossval("fake", tiles, tmp_path / "all", fake.Config(), Settings(resume=True)).has("crossval")


def test_one_fold_of_a_crossval_is_the_same_as_that_fold_trained_alone(merged, fake, tiles, tmp_path):
    alone = train_run("fake", tiles, tmp_path / "alone", fake.Config(), Settings(fold=1))
    assert alone.scores("val") == Run.open(merged.path / "fold1").scores("val")


def test_a_merged_run_is_predicted_again_fold_by_fold_and_merged(merged, tiles, fake, tree, tmp_path):
    before, weights = tree(merged.path), {f"fold{n}": tree(merged.path / f"fold{n}/weights") for n in range(3)}
    old = {n: Run.open(merged.path / f"fold{n}") for n in range(3)}
    scores = {n: run.scores("test") for n, run in old.items()}
    with pytest.raises(OptionError, match="other options make another run"):
        predict_folds(merged, tiles, changes={"factor": 10.0})
    assert tree(merged.path) == before
    again = predict_folds(merged, tiles, changes={"factor": 10.0}, out=tmp_path / "second")
    assert again.path == tmp_path / "second"
    assert tree(merged.path) == before
    assert {name: tree(again.path / name / "weights") for name in weights} == weights
    assert len(fake.given) == 3, "nothing is trained again"
    info = Run.open(again.path).info
    assert info == again.info
    assert (info["fold"], info["folds"]) == ("all", ["fold0", "fold1", "fold2"])
    assert (info["options"]["factor"], info["trained_options"]["factor"]) == (10.0, 1.0)
    for n, run in old.items():
        fold = Run.open(again.path / f"fold{n}")
        assert fold.scores("test") == pytest.approx({i: 10 * score for i, score in scores[n].items()})
        was, now = run.info["thresholds"][str(n)]["image"]["value"], fold.info["thresholds"][str(n)]["image"]["value"]
        assert now == pytest.approx(10 * was)
        assert info["thresholds"][str(n)]["image"]["value"] == now
    every = {i: 10 * score for n in old for i, score in scores[n].items()}
    assert again.scores("crossval") == pytest.approx(every)
    assert_same_decisions(again, [Run.open(again.path / f"fold{n}") for n in range(3)], tiles)
    assert not list(tmp_path.rglob(".*.maskbridge.partial"))
    assert not list(again.path.rglob("work"))


def test_predicting_a_merged_run_again_with_its_own_options_changes_no_prediction(merged, tiles):
    scores, thresholds = merged.scores("crossval"), merged.info["thresholds"]
    again = predict_folds(merged, tiles)
    assert (again.scores("crossval"), again.info["thresholds"]) == (scores, thresholds)


def test_a_second_merged_run_in_the_way_is_refused_or_replaced(merged, tiles, tree, tmp_path):
    predict_folds(merged, tiles, out=tmp_path / "second")
    before = tree(tmp_path)
    with pytest.raises(MaskbridgeError, match="second: is not empty; choose another folder or add --overwrite"):
        predict_folds(merged, tiles, changes={"factor": 2.0}, out=tmp_path / "second")
    for out in ("all", "all/second", "."):
        with pytest.raises(RunError, match="lies in or around the run itself"):
            predict_folds(merged, tiles, out=tmp_path / out, overwrite=True)
    assert tree(tmp_path) == before
    again = predict_folds(merged, tiles, changes={"factor": 2.0}, out=tmp_path / "second", overwrite=True)
    assert again.info["options"]["factor"] == 2.0


@pytest.mark.parametrize("error", [RunError("has not predicted test"), KeyboardInterrupt()], ids=["refused", "ctrl-c"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_merged_run_that_fails_half_way_is_not_there(merged, tiles, fake, tree, tmp_path, error, overwrite):
    if overwrite:
        predict_folds(merged, tiles, out=tmp_path / "second")
    before = tree(tmp_path)
    fake.predict = failing_in_fold_1(fake.predict, error)
    with pytest.raises(type(error)):
        predict_folds(merged, tiles, changes={"factor": 2.0}, out=tmp_path / "second", overwrite=overwrite)
    assert tree(tmp_path) == before


def test_a_merged_run_that_fails_half_way_keeps_what_was_merged(merged, tiles, fake, tree):
    kept = ["run.json", "predictions", "fold1", "fold2"]
    before, predict = {name: tree_of(merged.path / name, tree) for name in kept}, fake.predict
    fake.predict = failing_in_fold_1(predict, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        predict_folds(merged, tiles)
    assert {name: tree_of(merged.path / name, tree) for name in kept} == before
    fake.predict = predict
    again = predict_folds(merged, tiles)
    assert again.scores("crossval") == merged.scores("crossval")


@pytest.mark.parametrize("resume", [False, True])
def test_a_crossval_is_replaced_only_by_one_that_is_whole(merged, tiles, fake, tree, tmp_path, resume):
    before, train = tree(merged.path), fake.train

    def failing(data, *rest):
        if data.fold == 1:
            raise KeyboardInterrupt
        return train(data, *rest)

    fake.train = failing
    how = Settings(overwrite=True, resume=resume)
    with pytest.raises(KeyboardInterrupt):
        crossval("fake", tiles, merged.path, fake.Config(), how)
    assert tree(merged.path) == before
    fake.train = train
    fake.given.clear()
    again = crossval("fake", tiles, merged.path, fake.Config(factor=1.0), how)
    assert [data.fold for data in fake.given] == ([1, 2] if resume else [0, 1, 2])
    assert again.scores("crossval") == merged.scores("crossval")
    assert not list(tmp_path.glob(".*"))


def test_a_merged_run_without_one_of_its_folds_is_refused(merged, tiles, tmp_path):
    shutil.rmtree(merged.path / "fold1")
    with pytest.raises(RunError, match="fold1: is not a finished run"):
        predict_folds(merged, tiles, out=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_one_fold_alone_is_what_predict_run_takes(merged, tiles):
    with pytest.raises(RunError, match=r"is a merged cross-validation; predict one fold: .*/all/fold0"):
        predict_run(merged, tiles, "test")


def test_a_second_crossval_of_other_options_is_resumed_as_it_is(merged, tiles, fake, tmp_path):
    again = predict_folds(merged, tiles, changes={"factor": 2.0}, out=tmp_path / "second")
    resumed = crossval("fake", tiles, again.path, fake.Config(), Settings(resume=True))
    assert resumed.scores("crossval") == again.scores("crossval")
    assert resumed.info["options"]["factor"] == 2.0


def test_runs_on_different_images_are_not_put_side_by_side(merged):
    from evaluation.leaderboard import evaluate_runs

    for one, two in (("fold0", "fold1"), (".", "fold2")):
        with pytest.raises(RunError, match="runs on different images cannot be compared"):
            evaluate_runs([merged.path / one, merged.path / two])


def test_a_run_on_other_annotations_is_refused_with_both_hashes(merged, tiles):
    from evaluation.leaderboard import evaluate_runs

    other = merged.save(dataset={**merged.info["dataset"], "annotations_sha256": "0" * 64})
    line = f"have changed since the run; found sha256 {tiles.annotations_sha256}; expected sha256 {'0' * 64}"
    with pytest.raises(RunError, match=line):
        evaluate_runs([other.path])


def tree_of(path, tree):
    return path.read_bytes() if path.is_file() else tree(path)


def failing_in_fold_1(predict, error):
    """Predict until the second image of fold 1's test part."""

    def failing(data, *rest):
        for number, prediction in enumerate(predict(data, *rest)):
            if (data.fold, data.part, number) == (1, "test", 1):
                raise error
            yield prediction

    return failing


def assert_same_decisions(merged, runs, dataset):
    """Image, pixel and detection decisions, of given or derived predictions, before and after merging."""
    whole = PredictionView(merged, dataset, "crossval")
    for run in runs:
        part = PredictionView(run, dataset, "test")
        fold = str(run.info["fold"])
        cuts = {
            kind: [r.info["thresholds"][fold][kind]["value"] for r in (run, merged)]
            for kind in ("image", "pixel", "detection")
        }
        assert all((before is None) == (after is None) for before, after in cuts.values())
        for image_id in part.image_ids:
            before, after = cuts["image"]
            if before is not None:
                assert (part.scores().value[image_id] >= before) == (whole.scores().value[image_id] >= after)
            before, after = cuts["pixel"]
            if before is not None:
                np.testing.assert_array_equal(
                    part.maps().value(image_id) >= np.float32(before),
                    whole.maps().value(image_id) >= np.float32(after),
                )
            before, after = cuts["detection"]
            if before is not None and run.detections("test") is not None:
                kept = [
                    [r["score"] >= cut for r in view.detections().value if r["image_id"] == image_id]
                    for view, cut in ((part, before), (whole, after))
                ]
                assert kept[0] == kept[1]


def test_folds_of_different_options_are_not_merged(merged, tiles):
    runs = [Run.open(merged.path / f"fold{fold}") for fold in range(3)]
    runs[1] = runs[1].save(options={**runs[1].info["options"], "factor": 7.0})
    with pytest.raises(RunError, match=r"fold1: was predicted with other options than the first fold; found factor"):
        merge(merged.path, runs, tiles)


def test_types_of_images_are_merged_as_they_are(made_up, tiles, tmp_path):
    def say(image_id):
        return Prediction(image_id=image_id, score=image_id / 100, type=tiles.image_by_id[image_id].defect_type)

    merged = merge(tmp_path / "all", [made_up(fold, say, say) for fold in range(3)], tiles)
    assert merged.types("crossval") == {i: tiles.image_by_id[i].defect_type for i in range(21, 40)}


def test_folds_that_tell_no_costs_are_merged_without(merged, tiles):
    told = ("approach", "dataset", "fold", "options")
    for fold in range(3):
        run = Run.open(merged.path / f"fold{fold}")
        Run(run.path, {key: run.info[key] for key in told}).save()
    runs = [Run.open(merged.path / f"fold{fold}") for fold in range(3)]
    again = Run.open(merge(merged.path, runs, tiles).path)
    assert again.scores("crossval") == merged.scores("crossval")
    assert (again.info["seconds"], again.info["thresholds"], again.info["parameters"]) == ({}, {}, None)


def test_thresholds_of_other_folds_in_the_run_of_a_fold_do_not_count(merged, tiles):
    run = Run.open(merged.path / "fold2")
    run.save(thresholds={**run.info["thresholds"], "0": {"image": {"value": 77.0}}})
    again = merge(merged.path, [Run.open(merged.path / f"fold{fold}") for fold in range(3)], tiles)
    assert again.info["thresholds"] == merged.info["thresholds"]


@pytest.mark.parametrize("name", ["scores.json", "detections.json"])
def test_predictions_of_other_images_are_not_merged(merged, tiles, name):
    path = merged.path / "fold1/predictions/test" / name
    foreign = merged.path / "fold1/predictions/val" / name
    path.write_bytes(foreign.read_bytes())
    with pytest.raises(RunError, match=r"of other images|belongs to no image of the part"):
        merge(merged.path, [Run.open(merged.path / f"fold{fold}") for fold in range(3)], tiles)


def test_a_fold_that_is_a_link_elsewhere_stays_a_fold(merged, tiles, fake, tmp_path):
    shutil.move(merged.path / "fold1", tmp_path / "elsewhere")
    (merged.path / "fold1").symlink_to(tmp_path / "elsewhere")
    predict_folds(Run.open(merged.path), tiles)
    again = Run.open(merged.path)
    assert again.info["folds"] == ["fold0", "fold1", "fold2"]
    second = predict_folds(again, tiles, changes={"factor": 3.0}, out=tmp_path / "second")
    assert Run.open(second.path).info["folds"] == ["fold0", "fold1", "fold2"]
    assert (second.path / "fold1" / "run.json").is_file()


def test_a_merged_run_without_all_its_folds_is_not_predicted(merged, tiles):
    before = merged.scores("crossval")
    run = merged.save(folds=["fold0", "fold2"])
    with pytest.raises(RunError, match="is not of each fold once"):
        predict_folds(run, tiles)
    assert Run.open(merged.path).scores("crossval") == before
