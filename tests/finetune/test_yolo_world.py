from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from finetune import yolo_world
from maskbridge.approach import TrainData
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, OptionError, WeightsError
from maskbridge.predictions import Run

PROMPTS = ["plate chip", "plate scratch", "plate stain"]
#: Runs in a process of its own: a plain Ultralytics model, without any help of ours.
PLAIN = """
import json, sys
import cv2
from ultralytics import YOLOWorld
model = YOLOWorld(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    options = dict(conf=0.001, iou=0.6, imgsz=64, max_det=100, device="cpu", verbose=False)
    boxes = model.predict(cv2.imread(path), **options)[0].boxes
    rows = zip(boxes.xyxy, boxes.conf, boxes.cls)
    found[path] = [[*map(float, box), float(score), int(number)] for box, score, number in rows]
print(json.dumps({"names": model.names, "found": found}))
"""


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch": 0},
        {"imgsz": 16},
        {"lr": 0},
        {"lr": float("nan")},
        {"iou": 0},
        {"iou": 1.1},
        {"scale": "q"},
        {"freeze": 23},
        {"mosaic": 1.5},
        {"time_budget": -1},
        {"tile": 16},
        {"tile_overlap": 1.0},
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(OptionError, match=next(iter(options)).replace("_", "-")):
        yolo_world.Config(**options)


def test_a_training_part_without_a_defect_is_refused(refuse, data):
    good = tuple(i for i in data.train if data.dataset.image_by_id[i].is_good)
    line = refuse(DatasetError, TrainData(dataset=data.dataset, train=good, val=data.val, fold=0))
    assert "no image to train on has a defect; found fold 0" in line


@pytest.mark.slow
def test_weights_that_cannot_be_used_are_one_line_and_never_executed(refuse, tmp_path, exploit):
    import torch

    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(exploit[1])
    torch.save({"model": exploit[0]}, tmp_path / "torch.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "tensors.pt")
    for name in ("text.pt", "empty.pt", "pickle.pt", "torch.pt", "tensors.pt", "absent.pt"):
        line = refuse(WeightsError, weights=str(tmp_path / name))
        assert name in line
        assert "cannot be read as an Ultralytics checkpoint" in line
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_a_safe_loader_does_not_depend_on_who_imported_ultralytics_first(tmp_path):
    code = (
        "import ultralytics\n"
        "import finetune._yolo_world_trainer\n"
        "from ultralytics.nn import tasks\n"
        "print(tasks.SAFE_LOAD)"
    )
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path)}
    out = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert out.splitlines()[-1] == "True"


@pytest.mark.slow
def test_nothing_is_written_outside_the_run_and_nothing_reaches_out(trained, sealed):
    written = [path.relative_to(sealed / "home") for path in (sealed / "home").rglob("*") if path.is_file()]
    assert [path for path in written if path.parent != Path(".cache/matplotlib")] == []
    assert list((sealed / "cwd").iterdir()) == []
    assert not (sealed / "reached out").exists()
    assert sorted(path.name for path in trained.path.iterdir()) == ["predictions", "run.json", "weights"]
    assert [path.name for path in trained.weights.iterdir()] == ["best.pt"]


@pytest.mark.slow
def test_run_json_marks_random_weights_and_hashed_text(trained, plates):
    info, dataset = trained.info, Dataset.open(plates)
    assert info["weights_from"] == "none, text features hashed"
    assert info["facts"]["text_features"] == "hashed"
    assert info["facts"]["epochs_trained"] == 2
    assert info["facts"]["prompts"] == dict(zip(["chip", "scratch", "stain"], PROMPTS, strict=True))
    defective = sum(bool(dataset.annotations_by_image[i]) for i in dataset.split(0).train)
    assert info["trained_on"] == {"good": round(0.2 * defective), "defective": defective}
    assert info["parameters"] > 1e6


@pytest.mark.slow
def test_the_checkpoint_opens_in_plain_ultralytics_with_the_same_boxes_and_names(surer, plates, tmp_path):
    dataset = Dataset.open(plates)
    paths = {str(dataset.image_path(i)): i for i in dataset.split(0).test[::3]}
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    out = subprocess.check_output(
        [sys.executable, "-c", PLAIN, str(surer.weights / "best.pt"), *paths], text=True, env=environment, cwd=tmp_path
    )
    plain = json.loads(out.splitlines()[-1])
    assert list(plain["names"].values()) == [category["name"] for category in dataset.categories]
    count = 0
    for path, image_id in paths.items():
        ours = [r for r in surer.detections("test") if r["image_id"] == image_id]
        theirs = plain["found"][path]
        assert len(ours) == len(theirs)
        for mine, (x0, y0, x1, y1, score, number) in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine["bbox"], [x0, y0, x1 - x0, y1 - y0], atol=1e-3)
            assert mine["score"] == pytest.approx(score, abs=1e-6)
            assert mine["category_id"] == dataset.categories[number]["id"]
        count += len(ours)
    assert count > 0


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on(command, sealed, plates, tree, tiny):
    path = sealed / "killed"
    words = ["train", "yolo-world", plates, path, *tiny, "--epochs", 4]
    before = tree(plates)
    process = command(*words)
    resume = path / "work" / "ultralytics" / "resume.pt"
    deadline = time.monotonic() + 300
    while not resume.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert resume.is_file()
    assert not (path / "run.json").exists()
    epochs_before = len((path / "work" / "ultralytics" / "results.csv").read_text().splitlines()) - 1
    assert 1 <= epochs_before < 4
    process = command(*words)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "is an unfinished run; --resume goes on" in err
    process = command(*words, "--resume")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    run = Run.open(path)
    assert run.info["facts"]["epochs_trained"] == 4
    assert run.info["facts"]["text_features"] == "hashed"
    assert run.has("val")
    assert not (path / "work").exists()
    assert tree(plates) == before
