from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pytest

from maskbridge.approach import Detection, Prediction
from maskbridge.errors import MaskbridgeError, RunError
from maskbridge.predictions import Run, write_predictions

GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3, 4], "score": 0.5}


def run_with(tmp_path, **files) -> Run:
    part = tmp_path / "run" / "predictions" / "test"
    part.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (part / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return Run(tmp_path / "run", {})


def box(**changes) -> Detection:
    return Detection(**{"box_ltwh": (1.0, 2.0, 3.0, 4.0), "score": 0.5, **changes})


def test_what_is_written_is_read_back(tmp_path):
    maps = [np.random.default_rng(i).normal(size=(3, 5)).astype(np.float32) for i in (4, 9)]
    rle = {"size": [3, 5], "counts": "0?"}
    written = [
        Prediction(image_id=4, score=0.1, map=maps[0], detections=[]),
        Prediction(image_id=9, score=-2, map=maps[1], detections=[box(category_id=3), box(segmentation=rle)]),
    ]
    assert write_predictions(tmp_path, "test", written) == 2
    run = Run(tmp_path, {})
    assert run.scores("test") == {4: 0.1, 9: -2.0}
    np.testing.assert_array_equal(run.map("test", 9), maps[1])
    assert run.map("test", 9).dtype == np.float32
    assert run.detections("test") == [
        {"image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 9, "category_id": None, "bbox": [1, 2, 3, 4], "score": 0.5, "segmentation": rle},
    ]


def test_absent_means_not_produced_and_an_empty_list_means_nothing_found(tmp_path):
    write_predictions(tmp_path, "test", [Prediction(image_id=4, detections=[])])
    run = Run(tmp_path, {})
    assert run.detections("test") == []
    assert run.scores("test") is None
    assert run.map("test", 4) is None
    assert not run.has_maps("test")
    with pytest.raises(RunError, match="has no predictions of val; run"):
        run.scores("val")


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"score": float("nan")}, "the score of image 9 is nan"),
        ({"score": float("-inf")}, "the score of image 9 is -inf"),
        ({"score": 1.0, "map": np.float32([[1, np.nan]])}, "the map of image 9 has values that are not finite"),
        ({"score": 1.0, "detections": [box(score=float("nan"))]}, "a detection of image 9 is not finite"),
        ({"score": 1.0, "detections": [box(box_ltwh=(0, 0, float("inf"), 1))]}, "a detection of image 9 is not finite"),
        ({}, "1 of 2 predictions have score"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_written(tmp_path, bad, line):
    kept = {"score": 1.0, "map": np.ones((1, 2), np.float32), "detections": []}
    ok = Prediction(image_id=4, **{name: kept[name] for name in bad or {"score"}})
    with pytest.raises(RunError, match=line):
        write_predictions(tmp_path, "test", [ok, Prediction(image_id=9, **bad)])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "scores",
    [
        {"1": "0.5"}, {"1": None}, {"1": 0.5, "01": 0.7},
        {"1": True}, {"one": 0.5}, {"-1": 0.5}, {"1.0": 1}, [0.5], 3, None,
        '{"1": NaN}', '{"1": Infinity}', '{"1": 1e999}', '{"1": 1' + "0" * 400 + "}", '{"1": 1' + "0" * 9000 + "}",
        "", "{", "[" * 100_000, b"\xff".decode("latin1"),
    ],
)  # fmt: skip
def test_hostile_scores_are_told_in_one_line(tmp_path, scores):
    with pytest.raises(MaskbridgeError) as caught:
        run_with(tmp_path, scores=scores).scores("test")
    assert "scores.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"score": "0.5"}, {"score": None}, {"score": True}, {"score": 10**400},
        {"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, "4"]}, {"bbox": "abcd"}, {"bbox": None}, {"bbox": {"a": 1}},
        {"bbox": [1, 2, -3, 4]}, {"bbox": [1, 2, 3, -0.1]}, {"bbox": [[1], 2, 3, 4]}, {"image_id": "1"},
        {"segmentation": None}, {"segmentation": "x"}, {"segmentation": [[1, 2, 3, 4, 5, 6]]}, {"segmentation": {}},
        {"segmentation": {"size": [3, 5], "counts": [0, 15]}}, {"segmentation": {"size": [3, 5], "counts": ""}},
        {"segmentation": {"size": [3, 5], "counts": "zzzz"}}, {"segmentation": {"size": [3, 5], "counts": "é"}},
        {"segmentation": {"size": [3, 5], "counts": "o" * 500}}, {"segmentation": {"size": [3], "counts": "0?"}},
        {"segmentation": {"size": [3, 6], "counts": "0?"}}, {"segmentation": {"size": ["3", 5], "counts": "0?"}},
        {"image_id": 1.0}, {"image_id": [1]}, {"category_id": "crack"}, {"category_id": 1.5},
    ],
)  # fmt: skip
def test_a_hostile_detection_is_told_with_its_place(tmp_path, entry):
    with pytest.raises(RunError, match=r"detections\.json, entry 1: "):
        run_with(tmp_path, detections=[GOOD, {**GOOD, **entry}]).detections("test")


@pytest.mark.parametrize("entry", [{"score": float("nan")}, {"bbox": [1, 2, float("inf"), 4]}])
def test_a_number_that_is_none_is_told_with_its_byte(tmp_path, entry):
    with pytest.raises(RunError, match=r"detections\.json: a number is not finite; found (NaN|Infinity) at byte \d+"):
        run_with(tmp_path, detections=[GOOD, {**GOOD, **entry}]).detections("test")


def test_endless_nesting_and_objects_without_end_are_refused_before_they_are_built(tmp_path):
    """Half a gigabyte of brackets, or of empty lists, ends at the first entry."""
    for content in ("[" * 5_000_000, "[" + "[]," * 2_000_000 + "[]]", json.dumps([GOOD])[:-2] + ',"x":' + "[" * 10**6):
        run = run_with(tmp_path, detections=content)
        tracemalloc.start()
        with pytest.raises(RunError, match=r"detections\.json"):
            run.detections("test")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * len(content)


@pytest.mark.parametrize("entry", [None, 5, "text", [], [1, 2], {}, {"image_id": 1}])
def test_an_entry_that_is_no_result_is_told_with_its_place(tmp_path, entry):
    with pytest.raises(RunError, match=r"detections\.json, entry 0: is not a COCO result"):
        run_with(tmp_path, detections=[entry]).detections("test")


@pytest.mark.parametrize("content", ["{}", "3", '"[]"', "null", "[" * 100_000, "[1,", ""])
def test_detections_that_are_no_list_are_told_in_one_line(tmp_path, content):
    with pytest.raises(MaskbridgeError, match=r"detections\.json"):
        run_with(tmp_path, detections=content).detections("test")


def test_a_map_that_is_none_is_told(tmp_path):
    run = run_with(tmp_path)
    maps = run.path / "predictions" / "test" / "maps"
    maps.mkdir()
    for content, line in (
        (np.ones(3), "is not a map"),
        (np.ones((0, 4)), "is not a map"),
        (np.full((2, 3), np.nan), "has values that are not finite"),
        (np.full((2, 3), 1e300), "has values that are not finite"),
        (np.array([["a", "b"]]), "is not an array of numbers"),
        (np.full((2, 3), 1j), "is not an array of numbers"),
        (np.array([[None, {}]], dtype=object), "cannot be read as an array"),
    ):
        np.save(maps / "1.npy", content, allow_pickle=True)
        with pytest.raises(RunError, match=line):
            run.map("test", 1)
    (maps / "1.npy").write_bytes(b"")
    with pytest.raises(RunError, match="cannot be read as an array"):
        run.map("test", 1)
    (maps / "1.npy").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(RunError, match=r"1\.npy: cannot be read as an array"):
        run.map("test", 1)
    with (maps / "1.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**7)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(RunError, match=r"1\.npy: cannot be read as an array"):
        run.map("test", 1)
    for text in ("(" * 9000, str({"descr": "<f4", "fortran_order": False, "shape": (10**40, 4)})):
        head = text.encode("latin-1") + b"\n"
        (maps / "1.npy").write_bytes(b"\x93NUMPY\2\0" + len(head).to_bytes(4, "little") + head)
        with pytest.raises(RunError, match=r"1\.npy: cannot be read as an array"):
            run.map("test", 1)
    (maps / "1.npy").unlink()
    os.mkfifo(maps / "1.npy")
    with pytest.raises(MaskbridgeError, match=r"1\.npy: is not a regular file; found a pipe"):
        run.map("test", 1)
    with pytest.raises(RunError, match=r"2\.npy: the map of an image is missing"):
        run.map("test", 2)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "3",
        "[]",
        '["approach", "dataset", "fold", "options"]',
        "{}",
        '{"approach": 1, "fold": 0, "options": {}, "dataset": 3}',
    ],
)
def test_a_run_json_that_is_none_is_told(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(MaskbridgeError, match=r"run\.json"):
        Run.open(tmp_path)


def test_a_folder_without_run_json_is_no_finished_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a finished run; expected run\.json inside; train it"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"thresholds": 3}, {"thresholds": []}, {"thresholds": {"0": 3}}, {"thresholds": {"0": {"image": 5}}},
        {"thresholds": {"0": {"image": {"value": "a"}}}}, {"seconds": "x"}, {"seconds": {"train": "a"}},
        {"peak_memory_mb": [1]}, {"trained_on": {"defective": "x"}}, {"parameters": "many"}, {"options": []},
        {"predict_ms_per_image": []}, {"dataset": {}}, {"dataset": 3}, {"fold": "zzz"}, {"fold": None},
        {"approach": 7}, {"parameters": float("nan")}, {"seconds": {"train": float("inf")}}, {"approach": "\ud800"},
        {"parameters": "\ud800"},
        {"thresholds": {"0": {"image": {"value": float("nan")}}}},
        {"weights_from": {"a": 1}}, {"versions": 5}, {"seed": "x"}, {"facts": 4},
        {"truth_given": 3}, {"truth_given": True}, {"truth_given": ""},
    ],
)  # fmt: skip
def test_a_run_json_with_values_of_another_kind_is_told_in_one_line(tmp_path, change):
    sha = {"path": "d", "annotations_sha256": "a", "splits_sha256": "b"}
    whole = {"approach": "knn", "dataset": sha, "fold": 0, "options": {}, "thresholds": {"0": {"image": {"value": 1}}}}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(whole))
    assert Run.open(tmp_path).info == whole
    path.write_text(json.dumps({**whole, **change}))
    with pytest.raises(RunError, match=r"run\.json: is not what maskbridge writes"):
        Run.open(tmp_path)


def test_a_folder_in_the_place_of_predictions_is_told(tmp_path):
    run = run_with(tmp_path)
    (run.path / "predictions/test/detections.json").mkdir()
    with pytest.raises(RunError, match=r"detections\.json: is not a regular file; found a folder"):
        run.detections("test")


def test_types_are_read_back_and_absent_where_none_were_given(tmp_path):
    write_predictions(tmp_path, "test", [Prediction(image_id=i, type=t) for i, t in ((3, "good"), (5, "crack"))])
    run = Run(tmp_path, {})
    assert run.types("test") == {3: "good", 5: "crack"}
    assert run.scores("test") is None
    write_predictions(tmp_path, "test", [Prediction(image_id=3, score=0.5)])
    assert run.types("test") is None


@pytest.mark.parametrize("content", [b'{"1": 2}', b'{"one": "good"}', b"[1]", b'{"1": null}'])
def test_hostile_types_are_told_in_one_line(tmp_path, content):
    write_predictions(tmp_path, "test", [Prediction(image_id=3, type="good")])
    (tmp_path / "predictions" / "test" / "types.json").write_bytes(content)
    with pytest.raises(RunError) as error:
        Run(tmp_path, {}).types("test")
    assert "types.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_type_for_some_images_alone_is_refused(tmp_path):
    with pytest.raises(RunError, match="1 of 2 predictions have type"):
        write_predictions(
            tmp_path, "test", [Prediction(image_id=3, score=0.1, type="good"), Prediction(image_id=4, score=0.5)]
        )


@pytest.mark.parametrize("key", ["0", "01", "-1", "\u0663", "\u00b2", "x", "", "9" * 5000])
def test_a_score_that_no_image_id_names_is_refused(tmp_path, key):
    run = run_with(tmp_path)
    (run.path / "predictions/test/scores.json").write_text(json.dumps({key: 1.0}))
    with pytest.raises(RunError, match=r"scores\.json: a score is not named by an image id; found '"):
        run.scores("test")


def test_predictions_that_a_killed_exchange_has_put_aside_come_back(tmp_path):
    run = run_with(tmp_path, scores={"4": 0.25})
    told = {"path": "ds", "annotations_sha256": "0", "splits_sha256": "0"}
    Run(run.path, {"approach": "a", "dataset": told, "fold": 0, "options": {}}).save()
    parts = run.path / "predictions"
    (parts / "test").rename(parts / ".test.maskbridge.old")
    assert Run.open(run.path).scores("test") == {4: 0.25}
    (parts / ".test.maskbridge.old").mkdir()
    (parts / ".test.maskbridge.old" / "scores.json").write_text("{}")
    assert Run.open(run.path).scores("test") == {4: 0.25}
    assert [path.name for path in parts.iterdir()] == ["test"]
