from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from finetune import yolo_world
from finetune._yolo_world_text import DIMENSIONS, hashed, text_features
from maskbridge.approach import Context, TrainData
from maskbridge.dataset import Dataset, Split
from maskbridge.errors import DatasetError, MaskbridgeError, OptionError, WeightsError
from maskbridge.predictions import Run

PROMPTS = ["plate chip", "plate scratch", "plate stain"]
TINY = ("--weights", "none", "--text-features", "hashed", "--imgsz", "64", "--batch", "16", "--device", "cpu")
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


class Exploit:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def data(plates) -> TrainData:
    dataset = Dataset.open(plates)
    split: Split = dataset.split(0)
    return TrainData(dataset=dataset, train=split.train, val=split.val, fold=0)


@pytest.fixture
def refuse(data, tmp_path):
    """Train with options that must be refused before anything is written; the line."""

    def run(kind=MaskbridgeError, data=data, **options) -> str:
        context = Context(device="cpu", seed=0, work=tmp_path / "run" / "work")
        config = yolo_world.Config(**{"weights": "none", "text_features": "hashed", **options})
        with pytest.raises(kind) as caught:
            yolo_world.train(data, config, tmp_path / "run" / "weights", context)
        assert not (tmp_path / "run").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


def features_file(path, names=PROMPTS, features=None, **more) -> Path:
    if features is None:
        features = np.random.default_rng(0).normal(3, 1, (len(names), DIMENSIONS))
    np.savez(path, names=np.array(names), features=features, **more)
    return path


def test_features_of_a_file_come_in_the_order_of_the_prompts_and_of_unit_length(tmp_path):
    rows = np.random.default_rng(0).normal(3, 1, (3, DIMENSIONS))
    path = features_file(tmp_path / "text.npz", ["plate stain", "plate chip", "plate scratch"], rows)
    found = text_features(str(path), PROMPTS)
    assert (found.shape, found.dtype) == ((3, DIMENSIONS), np.float32)
    np.testing.assert_allclose(found, (rows / np.linalg.norm(rows, axis=1, keepdims=True))[[1, 2, 0]], atol=1e-6)


def test_a_prompt_that_is_missing_is_named_with_what_is_there(tmp_path):
    path = features_file(tmp_path / "text.npz", ["plate chip", "plate rust"])
    with pytest.raises(
        WeightsError,
        match=r"lacks features of a prompt; found plate chip, plate rust; expected plate scratch, plate stain",
    ):
        text_features(str(path), PROMPTS)


@pytest.mark.parametrize(
    "features",
    [np.ones((3, 511)), np.ones((2, 512)), np.ones(512), np.ones((3, 512, 1)), np.zeros((0, 512)), np.float64(1)],
)
def test_features_of_another_shape_are_refused(tmp_path, features):
    with pytest.raises(WeightsError, match=r"has features of the wrong shape; found \(.*\); expected \(3, 512\)"):
        text_features(str(features_file(tmp_path / "text.npz", PROMPTS, features)), PROMPTS)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_feature_without_a_direction_is_refused(tmp_path, value):
    rows = np.ones((3, DIMENSIONS))
    rows[1] = value
    with pytest.raises(WeightsError, match="has a feature that is zero or not finite"):
        text_features(str(features_file(tmp_path / "text.npz", PROMPTS, rows)), PROMPTS)


def test_a_pickled_object_is_refused_and_not_executed(tmp_path):
    names = np.array([Exploit(tmp_path / "executed"), "b", "c"], dtype=object)
    np.savez(tmp_path / "names.npz", names=names, features=np.ones((3, DIMENSIONS)))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Exploit(tmp_path / "executed")))
    for path in (tmp_path / "names.npz", tmp_path / "plain.npz"):
        with pytest.raises(WeightsError, match="cannot be read as text features"):
            text_features(str(path), PROMPTS)
    assert not (tmp_path / "executed").exists()


def test_a_file_that_holds_no_features_is_told_in_one_line(tmp_path):
    whole = features_file(tmp_path / "text.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("names.npy", b"nothing")
    np.savez(tmp_path / "other.npz", names=PROMPTS)
    np.savez(tmp_path / "scalar.npz", names=np.array("plate"), features=np.ones((1, DIMENSIONS)))
    np.savez(tmp_path / "texts.npz", names=PROMPTS, features=np.array([["a"] * DIMENSIONS] * 3))
    np.save(tmp_path / "array.npy", np.ones((3, DIMENSIONS)))
    contents = {"empty.npz": b"", "text.txt": b"nothing", "cut.npz": whole[: len(whole) // 2], "head.npz": whole[:30]}
    contents["flipped.npz"] = whole[:400] + bytes(byte ^ 0xFF for byte in whole[400:900]) + whole[900:]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "zip.npz", "other.npz", "scalar.npz", "texts.npz", "array.npy", "absent.npz", "."):
        with pytest.raises(WeightsError, match="cannot be read as text features") as caught:
            text_features(str(tmp_path / name), PROMPTS)
        assert "\n" not in str(caught.value)


def test_hashed_features_are_fixed_of_unit_length_and_tell_texts_apart():
    found = text_features("hashed", PROMPTS)
    np.testing.assert_array_equal(found, text_features("hashed", PROMPTS))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found @ found.T - np.eye(3)).max() < 0.2
    assert hashed("plate chip") @ hashed("Plate chip") < 0.2


def test_without_text_features_both_ways_out_are_named(refuse):
    line = refuse(OptionError, text_features="")
    assert "--text-features FILE" in line
    assert "--text-features hashed" in line


def test_prompts_are_product_and_type_with_spaces(plates):
    dataset = Dataset.open(plates)
    assert list(yolo_world.default_prompts(dataset)) == ["chip", "scratch", "stain"]
    assert list(yolo_world.default_prompts(dataset).values()) == PROMPTS


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
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        yolo_world.Config(**options)


def test_a_training_part_without_a_defect_is_refused(refuse, data):
    good = tuple(i for i in data.train if data.dataset.image_by_id[i].is_good)
    line = refuse(DatasetError, TrainData(dataset=data.dataset, train=good, val=data.val, fold=0))
    assert "no image to train on has a defect; found fold 0" in line


@pytest.mark.slow
def test_weights_that_cannot_be_used_are_one_line_and_never_executed(refuse, tmp_path):
    import torch

    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Exploit(tmp_path / "executed")))
    torch.save({"model": Exploit(tmp_path / "executed")}, tmp_path / "torch.pt")
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


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A home, a working folder, and modules `clip` and `pip` that leave a trace when they are used."""
    folder = tmp_path_factory.mktemp("sealed")
    for name in ("home", "cwd", "modules/pip"):
        (folder / name).mkdir(parents=True)
    trace = f"open({str(folder / 'reached out')!r}, 'w').close()\n"
    (folder / "modules" / "clip.py").write_text(trace)
    (folder / "modules" / "pip" / "__init__.py").write_text("")
    (folder / "modules" / "pip" / "__main__.py").write_text(trace)
    return folder


@pytest.fixture(scope="module")
def command(sealed):
    """Run maskbridge there."""
    environment = {
        **os.environ,
        "HOME": str(sealed / "home"),
        "PYTHONPATH": str(sealed / "modules"),
        "MASKBRIDGE_CACHE": str(sealed / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    for name in ("YOLO_CONFIG_DIR", "YOLO_OFFLINE", "XDG_CONFIG_HOME", "MASKBRIDGE_WEIGHTS", "ULTRALYTICS_SAFE_LOAD"):
        environment.pop(name, None)

    def start(*words) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "maskbridge", *map(str, words)],
            cwd=sealed / "cwd", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def trained(command, sealed, plates, tree) -> Run:
    """Two epochs, and predictions of test."""
    path = sealed / "run"
    before = tree(plates)
    for words in (
        ["train", "yolo-world", plates, path, *TINY, "--epochs", 2],
        ["predict", path, plates, "--device", "cpu"],
    ):
        process = command(*words)
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert "\r" not in err
    assert tree(plates) == before
    return Run.open(path)


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


@pytest.fixture
def surer(trained, command, plates, tmp_path) -> Run:
    """The run with a checkpoint that detects something, which two epochs do not teach, and its predictions."""
    import torch

    import finetune._yolo_world_trainer  # noqa: F401  # sets where Ultralytics keeps its settings

    path = shutil.copytree(trained.path, tmp_path / "surer")
    checkpoint = torch.load(path / "weights" / "best.pt", weights_only=False)
    for scale in (checkpoint["ema"] or checkpoint["model"]).model[-1].cv4:
        scale.bias.data += 6
    torch.save(checkpoint, path / "weights" / "best.pt")
    process = command("predict", path, plates, "--device", "cpu")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return Run.open(path)


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
def test_a_training_that_was_killed_goes_on(command, sealed, plates, tree):
    path = sealed / "killed"
    words = ["train", "yolo-world", plates, path, *TINY, "--epochs", 4]
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
