from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from finetune import _yolo_world_text, yolo_world
from maskbridge.approach import Context, PredictData, TrainData
from maskbridge.cli import main
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, OptionError, WeightsError
from maskbridge.files import sha256_file, write_json
from maskbridge.predictions import Run
from maskbridge.start_weights import source_name, start_from

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


@pytest.mark.parametrize(("part", "words"), [("train", "no image to train on has"), ("val", "no image of val has")])
def test_a_part_without_a_defect_is_refused(refuse, data, part, words):
    good = tuple(i for i in getattr(data, part) if data.dataset.image_by_id[i].is_good)
    line = refuse(DatasetError, dataclasses.replace(data, **{part: good}))
    assert f"{words} a defect; found fold 0" in line


def test_without_a_text_encoder_every_way_out_is_named(refuse, monkeypatch, tmp_path):
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_yolo_world_text, "WEIGHTS_URL", "http://127.0.0.1:1/ViT-B-32.pt")
    line = refuse(OptionError, text_features="auto")
    assert "--text-features FILE" in line
    assert "--text-features hashed" in line


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("0", "no GPU here; found --device 0, 0 GPUs; use --device cpu"),
        ("cuda:1", "no GPU here"),
        ("0,1", "no GPU here"),
        ("0,0", "no such device"),
        ("gpu", "no such device"),
    ],
)
@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_one_line(refuse, device, words, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert words in refuse(OptionError, device=device)


def test_the_device_is_looked_at_before_weights_and_text_features(refuse, monkeypatch):
    for name in ("start_weights", "prepare"):
        monkeypatch.setattr(yolo_world, name, lambda *_: pytest.fail("looked for"))
    assert "no such device; found --device banana" in refuse(OptionError, device="banana", weights="auto")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_cpu_is_refused_before_anything_is_written(refuse, precision):
    assert f"half precision is for a GPU; found --precision {precision}" in refuse(OptionError, precision=precision)


@pytest.mark.slow
def test_weights_of_a_run_of_another_fold_are_refused_and_their_start_is_told(trained, refuse, data, tmp_path):
    best = trained.weights / "best.pt"
    copied = shutil.copy(best, tmp_path / "copied.pt")
    for path in (best, Path(copied)):
        config = yolo_world.Config(weights=str(path))
        assert config.start_files() == [path]
        assert source_name(path) == f"none, text features hashed, {path.name} of a run", "still marked"
        assert [seen.fold for seen in start_from(config, data).seen] == [0]
        other = data.dataset.split(1)
        with pytest.raises(WeightsError, match=r"images that this fold is judged by; .* seen by run, fold 0 of plates"):
            start_from(config, dataclasses.replace(data, train=other.train, val=other.val, fold=1))
    assert "is a folder" in refuse(WeightsError, weights=str(trained.path))


@pytest.mark.slow
def test_devices_are_named_as_ultralytics_does(monkeypatch):
    import torch

    from finetune._yolo_world_models import device_name

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = {name: device_name(name) for name in ("auto", "cpu", "cuda", "cuda:1", "0", "0,1", "cuda:0,cuda:1")}
    assert list(names.values()) == ["0", "cpu", "0", "1", "0", "0,1", "0,1"]
    with pytest.raises(OptionError, match="no GPU 2 here; found --device 2, 2 GPUs; use --device 0 to 1"):
        device_name("2")


@pytest.mark.slow
def test_an_official_name_that_does_not_exist_lists_those_that_do(refuse):
    line = refuse(OptionError, weights="yolov8n-worldv2")
    assert "yolov8s-worldv2, yolov8m-worldv2, yolov8l-worldv2, yolov8x-worldv2 (there is no n)" in line


@pytest.mark.slow
@pytest.mark.parametrize("option", ["absent.pt", "runs/x/yolov8s.pt", "https://127.0.0.1:1/yolov8s.pt", "x/y"])
def test_a_path_that_is_not_there_is_never_looked_up_on_the_network(refuse, monkeypatch, option, tmp_path):
    from finetune._yolo_world_ultralytics import downloads

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "safe_download", lambda **_: pytest.fail("fetched"))
    assert "no such file" in refuse(WeightsError, weights=option)


def test_weights_of_another_task_or_name_are_not_taken_for_those_asked_for(monkeypatch, tmp_path):
    from finetune._yolo_world_start import _find

    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path))
    for name in ("yolov8s-seg.pt", "yolov8s-cls.pt", "yolov8s-world.pt", "yolov8s.safetensors", "yolov8s-oiv7.pt"):
        (tmp_path / name).write_bytes(b"")
    for option, name in (("auto", "yolov8s-worldv2.pt"), ("yolov8s", "yolov8s.pt")):
        with pytest.raises(WeightsError, match=rf"^{name}: start weights are not here"):
            _find(option, "auto")
    (tmp_path / "yolov8s_coco_mine.pt").write_bytes(b"")
    assert _find("auto", "auto").name == "yolov8s_coco_mine.pt"
    with pytest.raises(WeightsError, match=r"^yolov8s.pt: start weights are not here"):
        _find("yolov8s", "auto")
    for name in ("yolov8s.pt", "yolov8m-worldv2-mine.pt"):
        (tmp_path / name).write_bytes(b"")
    assert _find("yolov8s.pt", "auto").name == "yolov8s.pt"
    assert _find("auto", "auto").name == "yolov8m-worldv2-mine.pt", "a YOLO-World first"


@pytest.mark.parametrize(("option", "name"), [("auto", "yolov8s-worldv2"), ("yolov8m.pt", "yolov8m")])
def test_official_weights_are_not_fetched_and_the_error_says_where_they_belong(monkeypatch, tmp_path, option, name):
    """Ultralytics states no SHA-256 of them."""
    from finetune import _yolo_world_start

    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)
    with pytest.raises(WeightsError) as caught:
        _yolo_world_start.start_weights(option, "auto")
    line = str(caught.value)
    for words in (f"{name}.pt", "not fetched", f"in {tmp_path / 'cache'}", _yolo_world_start.PAGE, "--weights none"):
        assert words in line
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(WeightsError, match=f"in {tmp_path / 'weights'}"):
        _yolo_world_start.start_weights(option, "auto")
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_weights_that_cannot_be_used_are_one_line_and_never_executed(refuse, tmp_path, exploit):
    import torch

    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(exploit[1])
    torch.save({"model": exploit[0]}, tmp_path / "torch.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "tensors.pt")
    (tmp_path / "named.pth").write_bytes(b"")
    for name in ("text.pt", "empty.pt", "pickle.pt", "torch.pt", "tensors.pt", "named.pth"):
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
def test_nothing_is_written_outside_the_run_and_nothing_reaches_out(trained, sealed, command, no_network, tmp_path):
    process = command("export-model", trained.path, tmp_path / "defects.onnx", "--format", "onnx")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    written = [path.relative_to(sealed / "home") for path in (sealed / "home").rglob("*") if path.is_file()]
    assert [path for path in written if path.parent != Path(".cache/matplotlib")] == []
    assert list((sealed / "cwd").iterdir()) == []
    assert not (sealed / "reached out").exists()
    assert not no_network[1].exists(), no_network[1].read_text()
    assert sorted(path.name for path in trained.path.iterdir()) == ["predictions", "run.json", "weights"]
    assert [path.name for path in sorted(trained.weights.iterdir())] == ["best.pt", "text-features.npz"]


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
    kept = _yolo_world_text.read_features(trained.weights / "text-features.npz")
    assert _yolo_world_text.source_name(str(trained.weights / "text-features.npz")) == "hashed", "marked in a file too"
    assert list(kept) == PROMPTS


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


@pytest.mark.slow
def test_half_written_checkpoints_of_a_killed_training_are_not_used(command, sealed, plates, tiny):
    """Ultralytics writes last.pt and best.pt in place; the copies beside them are whole."""
    path = sealed / "torn"
    words = ["train", "yolo-world", plates, path, *tiny, "--epochs", 3]
    folder = path / "work" / "ultralytics"
    process = command(*words)
    deadline = time.monotonic() + 300
    while not (folder / "resume.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for name in ("last.pt", "best.pt"):
        whole = (folder / "weights" / name).read_bytes()
        (folder / "weights" / name).write_bytes(whole[: len(whole) // 3])
    process = command(*words, "--resume")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    process = command("predict", path, plates, "--device", "cpu")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_a_training_that_was_killed_after_its_last_epoch_is_finished(data, tmp_path, monkeypatch):
    from finetune import _yolo_world_trainer

    def killed(self):
        raise KeyboardInterrupt

    config = yolo_world.Config(weights="none", text_features="hashed", imgsz=64, epochs=1)
    context = Context(device="cpu", seed=0, work=tmp_path / "work")
    with monkeypatch.context() as patched:
        patched.setattr(_yolo_world_trainer.Trainer, "final_eval", killed)
        with pytest.raises(KeyboardInterrupt):
            yolo_world.train(data, config, tmp_path / "weights", context)
    trained = yolo_world.train(data, config, tmp_path / "weights", dataclasses.replace(context, resume=True))
    assert trained.facts["epochs_trained"] == 1
    assert not (tmp_path / "executed").exists()
    assert (tmp_path / "weights" / "best.pt").stat().st_size < 10e6, "without the optimiser's state"


@pytest.mark.slow
def test_a_checkpoint_of_a_run_in_the_making_is_not_executed_either(data, tmp_path, exploit):
    folder = tmp_path / "work" / "ultralytics"
    folder.mkdir(parents=True)
    for name in ("resume.pt", "kept-best.pt"):
        (folder / name).write_bytes(exploit[1])
    config = yolo_world.Config(weights="none", text_features="hashed", imgsz=64, epochs=1)
    context = Context(device="cpu", seed=0, work=tmp_path / "work", resume=True)
    with pytest.raises(WeightsError, match="cannot be read as an Ultralytics checkpoint"):
        yolo_world.train(data, config, tmp_path / "weights", context)
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resume.pt", "kept-best.pt"])
def test_each_checkpoint_of_a_run_in_the_making_is_read_safely(data, tmp_path, exploit, trained, name):
    folder = tmp_path / "work" / "ultralytics"
    folder.mkdir(parents=True)
    for other in ("resume.pt", "kept-best.pt"):
        shutil.copy(trained.weights / "best.pt", folder / other)
    (folder / name).write_bytes(exploit[1])
    config = yolo_world.Config(weights="none", text_features="hashed", imgsz=64, epochs=1)
    context = Context(device="cpu", seed=0, work=tmp_path / "work", resume=True)
    with pytest.raises(WeightsError, match=rf"{name}: cannot be read as an Ultralytics checkpoint"):
        yolo_world.train(data, config, tmp_path / "weights", context)
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_checkpoint_that_is_replaced_in_training_and_label_caches_are_not_executed(
    data, tmp_path, exploit, monkeypatch, name
):
    """Ultralytics unpickles both at the end of training, and what lies beside the labels at its beginning."""
    from finetune import _yolo_world_trainer

    def replaced(trainer):
        whole(trainer)
        (trainer.wdir / name).write_bytes(exploit[1])

    def with_caches(*given):
        prepared = prepare(*given)
        for part in ("train", "val"):
            (prepared.yaml.parent / "labels" / f"{part}.cache").write_bytes(exploit[1])
        return prepared

    whole, prepare = _yolo_world_trainer.Trainer.save_model, yolo_world.prepare
    monkeypatch.setattr(_yolo_world_trainer.Trainer, "save_model", replaced)
    monkeypatch.setattr(yolo_world, "prepare", with_caches)
    config = yolo_world.Config(weights="none", text_features="hashed", imgsz=64, epochs=1)
    context = Context(device="cpu", seed=0, work=tmp_path / "work")
    with pytest.raises(WeightsError, match=rf"{name}: cannot be read as an Ultralytics checkpoint"):
        yolo_world.train(data, config, tmp_path / "weights", context)
    assert not (tmp_path / "executed").exists()


def test_ultralytics_own_reading_at_the_end_of_training_and_of_label_caches_is_safe(tmp_path, exploit):
    from finetune._yolo_world_ultralytics import dataset, torch_utils

    for name in ("last.pt", "train.cache"):
        (tmp_path / name).write_bytes(exploit[1])
    assert torch_utils.strip_optimizer(tmp_path / "last.pt") == {}
    with pytest.raises(FileNotFoundError):
        dataset.load_dataset_cache_file(tmp_path / "train.cache")
    assert not (tmp_path / "executed").exists()


def test_ultralytics_fetches_nothing_and_hangs_no_service_into_training(monkeypatch):
    """In a process where it was imported online: its own switches are set too late there."""
    from finetune._yolo_world_ultralytics import callbacks, checks, downloads

    for module in ("requests.head", "requests.get", "urllib.request.urlopen"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("asked"))
    assert checks.check_font("a font that nobody has.ttf") is None
    for fetch in (downloads.attempt_download_asset, downloads.safe_download):
        with pytest.raises(ConnectionError, match="nothing is fetched for Ultralytics"):
            fetch("yolov8s-worldv2.pt")
    trainer = type("Trainer", (), {"callbacks": callbacks.get_default_callbacks()})()
    before = {event: list(called) for event, called in trainer.callbacks.items()}
    callbacks.add_integration_callbacks(trainer)
    assert trainer.callbacks == before
    assert downloads.is_url("https://example.org/yolov8s.pt"), "a question that needs no network"


@pytest.mark.slow
def test_training_that_ended_early_does_not_go_on_when_it_is_resumed(data, tmp_path, monkeypatch):
    from finetune import _yolo_world_trainer

    def stop(trainer):
        trainer.stop = True

    def killed(self):
        raise KeyboardInterrupt

    config = yolo_world.Config(weights="none", text_features="hashed", imgsz=64, epochs=50)
    context = Context(device="cpu", seed=0, work=tmp_path / "work")
    with monkeypatch.context() as patched:
        patched.setattr(_yolo_world_trainer, "_set_class_features", _stopping(_yolo_world_trainer, stop))
        patched.setattr(_yolo_world_trainer.Trainer, "final_eval", killed)
        with pytest.raises(KeyboardInterrupt):
            yolo_world.train(data, config, tmp_path / "weights", context)
    trained = yolo_world.train(data, config, tmp_path / "weights", dataclasses.replace(context, resume=True))
    assert trained.facts["epochs_trained"] == 1


def _stopping(module, stop):
    """The callback that sets the features, which also has training stopped at the end of its first epoch."""
    whole = module._set_class_features

    def both(trainer):
        whole(trainer)
        trainer.add_callback("on_train_epoch_end", stop)

    return both


@pytest.mark.slow
def test_an_image_that_ultralytics_leaves_out_is_named(zoo_dataset, tmp_path):
    """It ignores images with a side under 10 px in silence."""
    import cv2

    folder = shutil.copytree(zoo_dataset, tmp_path / "thin")
    dataset = Dataset.open(folder)
    split = dataset.split(0)
    victim = next(i for i in split.train if dataset.annotations_by_image[i])
    path = dataset.image_path(victim)
    cv2.imwrite(str(path), np.zeros((9, 64, 3), dtype=np.uint8))
    known = dataclasses.replace(dataset.image_by_id[victim], sha256=sha256_file(path))
    dataset = dataclasses.replace(
        dataset, images=tuple(known if image.id == victim else image for image in dataset.images)
    )
    config = yolo_world.Config(weights="none", text_features="hashed", imgsz=64, epochs=1)
    data = TrainData(dataset=dataset, train=split.train, val=split.val, fold=0)
    with pytest.raises(DatasetError, match=r"Ultralytics cannot read images; found 1 of .*sides of 10 px or more"):
        yolo_world.train(data, config, tmp_path / "weights", Context(device="cpu", seed=0, work=tmp_path / "work"))


@pytest.mark.slow
def test_a_time_budget_ends_training_early_and_never_adds_epochs(command, sealed, plates, tiny):
    for name, epochs, minutes in (("hurried", 500, 0.05), ("leisurely", 2, 60)):
        words = ["train", "yolo-world", plates, sealed / name, *tiny, "--epochs", epochs, "--time-budget", minutes]
        process = command(*words)
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
    assert 1 <= Run.open(sealed / "hurried").info["facts"]["epochs_trained"] < 100
    assert Run.open(sealed / "leisurely").info["facts"]["epochs_trained"] == 2


@pytest.mark.slow
def test_too_little_memory_says_what_to_lower(plates, sealed):
    """Under a limit of the address space that the batch does not fit into."""
    code = (
        "import resource, sys\n"
        "from finetune import _yolo_world_trainer\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20),) * 2)\n"
        "from maskbridge.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for batch, remedy in (("64", "try --batch 32"), ("2", "try --imgsz 960")):
        words = ["train", "yolo-world", str(plates), str(sealed / "small"), "--weights", "none", "--device", "cpu"]
        words += ["--text-features", "hashed", "--imgsz", "1280", "--batch", batch, "--epochs", "1", "--overwrite"]
        environment = {**os.environ, "HOME": str(sealed / "home"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 1, done.stderr
        line = done.stderr.splitlines()[-1]
        assert f"too little memory; found --batch {batch}, --imgsz 1280; {remedy}" in line


@pytest.mark.slow
def test_ultralytics_does_not_halve_the_batch_in_silence(refuse, monkeypatch, tmp_path):
    """On a GPU it retries with half the batch: another training than was asked for."""
    from finetune import _yolo_world_trainer

    def full_once(self, batch):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("CUDA out of memory")
        return whole(self, batch)

    calls, whole = [], _yolo_world_trainer.Trainer.preprocess_batch
    monkeypatch.setattr(_yolo_world_trainer.Trainer, "preprocess_batch", full_once)
    line = refuse(OptionError, imgsz=64, batch=16, epochs=1, untouched=False)
    assert "too little memory; found --batch 16, --imgsz 64; try --batch 8" in line
    assert len(calls) == 1


@pytest.mark.slow
def test_the_onnx_file_gives_the_same_boxes(surer, plates, tmp_path):
    """Read by onnxruntime alone; letterbox, decoding and non-maximum suppression are written anew here."""
    import cv2
    import onnxruntime

    process_path = tmp_path / "defects.onnx"
    assert main(["export-model", str(surer.path), str(process_path), "--format", "onnx"]) == 0
    assert main(["export-model", str(surer.path), "--format", "onnx"]) == 0
    assert (surer.weights / "yolo-world.onnx").is_file()
    session = onnxruntime.InferenceSession(str(process_path), providers=["CPUExecutionProvider"])
    dataset = Dataset.open(plates)
    count = 0
    for image_id in dataset.split(0).test[::3]:
        image = cv2.imread(str(dataset.image_path(image_id)))
        height, width = image.shape[:2]
        assert height != width
        gain = 64 / max(height, width)
        new_w, new_h = round(width * gain), round(height * gain)
        pad_w, pad_h = (-new_w % 32) / 2, (-new_h % 32) / 2
        left, top = round(pad_w - 0.1), round(pad_h - 0.1)
        right, bottom = round(pad_w + 0.1), round(pad_h + 0.1)
        small = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
        small = cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114,) * 3)
        blob = np.ascontiguousarray(small[None, :, :, ::-1].transpose(0, 3, 1, 2), dtype=np.float32) / 255
        out = session.run(None, {session.get_inputs()[0].name: blob})[0][0].T
        centre, size, scores = out[:, :2], out[:, 2:4], out[:, 4:]
        boxes = (np.hstack([centre - size / 2, centre + size / 2]) - [left, top, left, top]) / gain
        boxes = np.clip(boxes, 0, [width, height, width, height])
        mine = [r for r in surer.detections("test") if r["image_id"] == image_id]
        for result in mine:
            number = dataset.categories.index(next(c for c in dataset.categories if c["id"] == result["category_id"]))
            x, y, w, h = result["bbox"]
            distance = np.abs(boxes - [x, y, x + w, y + h]).max(axis=1) + 10 * np.abs(
                scores[:, number] - result["score"]
            )
            assert distance.min() < 1e-2
        count += len(mine)
    assert count > 0


@pytest.mark.slow
def test_a_model_is_not_exported_where_it_cannot_be(trained, refused, tmp_path):
    merged = tmp_path / "merged"
    merged.mkdir()
    write_json(merged / "run.json", {**trained.info, "fold": "all"})
    assert "is not exported in this format; found coreml; expected onnx" in refused(
        "export-model", trained.path, tmp_path / "x", "--format", "coreml"
    )
    assert "is a merged cross-validation" in refused("export-model", merged, tmp_path / "x", "--format", "onnx")
    (tmp_path / "taken.onnx").write_text("mine")
    assert "is in the way" in refused("export-model", trained.path, tmp_path / "taken.onnx", "--format", "onnx")


@pytest.mark.slow
def test_rehearsed_images_are_mixed_in_and_their_types_are_not_predicted(command, sealed, plates, tiny):
    other = shutil.copytree(plates, sealed / "discs")
    for name in ("annotations.json", "dataset.json"):
        text = (other / name).read_text()
        text = text.replace('"supercategory": "plate"', '"supercategory": "disc"')
        (other / name).write_text(text.replace('"product": "plate"', '"product": "disc"'))
    path = sealed / "rehearsed"
    process = command("train", "yolo-world", plates, path, *tiny, "--epochs", 1, "--rehearse", other)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    run = Run.open(path)
    facts = run.info["facts"]
    fold = Dataset.open(plates).split(0)
    assert facts["rehearsed_images"] == sum(run.info["trained_on"].values())
    assert facts["rehearsed_left_out"] == 0, "fold 0 of the same images: its train is ours"
    leaking = command("train", "yolo-world", plates, sealed / "leak", *tiny, "--epochs", 1, "--fold", 1,
                      "--rehearse", plates)  # fmt: skip
    _, err = leaking.communicate(timeout=500)
    assert leaking.returncode == 0, err
    ours = set(Dataset.open(plates).split(1).train)
    assert Run.open(sealed / "leak").info["facts"]["rehearsed_left_out"] == len(set(fold.train) - ours) > 0
    from finetune._yolo_world_ultralytics import load

    model = load(run.weights / "best.pt")
    assert model.names == {0: "chip", 1: "scratch", 2: "stain"}
    assert model.txt_feats.shape == (1, 3, 512)
    assert {r["category_id"] for r in run.detections("val")} <= {1, 2, 3}


@pytest.mark.slow
def test_tiles_are_trained_on_and_predicted(command, sealed, plates, tiny):
    path = sealed / "tiled"
    process = command("train", "yolo-world", plates, path, *tiny, "--epochs", 1, "--tile", 80)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    run = Run.open(path)
    assert run.info["trained_on"]["defective"] > 22
    process = command("predict", path, plates, "--device", "cpu", "--tile", 0, "--out", sealed / "whole")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert [Run.open(sealed / name).info["options"]["tile"] for name in ("tiled", "whole")] == [80, 0]
    assert not (sealed / "whole" / "work").exists()


@pytest.mark.slow
def test_several_gpus_are_trained_on_by_a_process_that_finds_everything(plates, tmp_path, monkeypatch, no_network):
    """Ultralytics' own DDP starts processes from a file. Without GPUs: that file, run as one process on the CPU."""
    from ultralytics.engine import trainer as engine
    from ultralytics.utils import dist

    from finetune import _yolo_world_trainer as ultralytics
    from finetune._yolo_world_text import hashed, write_features
    from finetune._yolo_world_ultralytics import load
    from maskbridge import plugins
    from maskbridge.export import ExportOptions

    def one_process(trainer):
        file = dist.generate_ddp_file(trainer)
        return [sys.executable, file], file

    data = tmp_path / "yolo"
    plugins.load("format", "yolo").export(Dataset.open(plates), data, ExportOptions())
    names = ["chip", "scratch", "stain"]
    write_features(data / ultralytics.FEATURES, names, np.stack([hashed(name) for name in names]), "hashed")
    options = {
        "model": "yolov8n-worldv2.yaml", "pretrained": False, "data": str(data / "data.yaml"), "epochs": 1, "imgsz": 64,
        "device": "cpu", "plots": False, "amp": False, "project": str(tmp_path), "name": "run", "exist_ok": True,
    }  # fmt: skip
    trainer = ultralytics.Trainer(overrides=options)
    trainer.ddp = True
    monkeypatch.setattr(dist, "USER_CONFIG_DIR", dist.USER_CONFIG_DIR)
    monkeypatch.setattr(engine, "generate_ddp_command", one_process)
    monkeypatch.setenv("YOLO_CONFIG_DIR", "")
    monkeypatch.setenv("PYTHONPATH", no_network[0])
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    trainer.train()
    assert not no_network[1].exists(), no_network[1].read_text()
    assert not list((tmp_path / "temporary").iterdir()), "all of it is in the run"
    for name in ("weights/best.pt", ultralytics.RESUME, ultralytics.KEPT_BEST):
        assert (tmp_path / "run" / name).is_file()
    assert load(tmp_path / "run" / "weights" / "best.pt").txt_feats.shape == (1, 3, 512)


@pytest.mark.slow
def test_every_option_of_training_reaches_ultralytics(tmp_path):
    from finetune._yolo_world_data import Prepared
    from finetune._yolo_world_fit import _overrides

    prepared = Prepared(tmp_path / "data.yaml", np.zeros((1, 512), np.float32), "hashed", 0, 1, 0, 0, 0, 0)
    context = Context(device="0", seed=7, work=tmp_path)
    given = {"epochs": 3, "imgsz": 96, "batch": 4, "patience": 5, "freeze": 10, "mosaic": 0.5}
    config = yolo_world.Config(**given, lr=2e-3, precision="bf16", time_budget=90)
    found = _overrides(config, context, prepared, tmp_path / "start.pt", "s", "0,1")
    expected = {**given, "lr0": 2e-3, "nbs": 4, "optimizer": "AdamW", "amp": "bf16", "time": 1.5, "seed": 7}
    expected |= {"device": "0,1", "model": "yolov8s-worldv2.yaml", "pretrained": str(tmp_path / "start.pt")}
    assert {name: found[name] for name in expected} == expected
    auto = _overrides(yolo_world.Config(optimizer="auto"), context, prepared, None, "n", "cpu")
    assert [auto[name] for name in ("optimizer", "nbs", "time", "pretrained", "amp")] == [
        "auto",
        64,
        None,
        False,
        False,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "calls"), [(0, 0), (40, 1)])
def test_prediction_looks_at_tiles_where_they_are_asked_for(trained, plates, tmp_path, monkeypatch, tile, calls):
    def looked(*arguments, **options):
        seen.append(options["tile"])
        return whole(*arguments, **options)

    seen, whole = [], yolo_world.detect_tiled
    monkeypatch.setattr(yolo_world, "detect_tiled", looked)
    dataset = Dataset.open(plates)
    data = PredictData(dataset=dataset, image_ids=dataset.split(0).test[:1], fold=0, part="test")
    config = yolo_world.Config(imgsz=64, tile=tile)
    context = Context(device="cpu", seed=0, work=tmp_path)
    assert len(list(yolo_world.predict(data, config, trained.weights, context))) == 1
    assert seen == [tile] * calls


@pytest.mark.parametrize("tile", [0, 40])
def test_the_detector_is_given_bgr_and_its_corners_become_left_top_width_height(plates, tmp_path, monkeypatch, tile):
    """Ultralytics takes arrays as OpenCV reads them."""
    import cv2

    corners = np.array([[3.0, 5.0, 13.0, 8.0], [20.0, 1.0, 24.0, 31.0]], dtype=np.float32)
    found = SimpleNamespace(xyxy=corners, conf=np.array([0.9, 0.4], np.float32), cls=np.array([2.0, 0.0], np.float32))
    boxes = SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: found))
    seen: list[np.ndarray] = []

    def look(image, **options):
        seen.append(image)
        return [SimpleNamespace(boxes=boxes)]

    monkeypatch.setattr(yolo_world, "_open", lambda checkpoint: SimpleNamespace(predict=look))
    monkeypatch.setattr(yolo_world, "detect_tiled", lambda detect, image, **options: detect(image))
    dataset = Dataset.open(plates)
    image_id = dataset.split(0).test[0]
    data = PredictData(dataset=dataset, image_ids=(image_id,), fold=0, part="test")
    context = Context(device="cpu", seed=0, work=tmp_path)
    (prediction,) = yolo_world.predict(data, yolo_world.Config(tile=tile), tmp_path, context)
    pixels = cv2.imread(str(dataset.image_path(image_id)))
    assert not np.array_equal(pixels, pixels[:, :, ::-1]), "an image without colour shows no order"
    np.testing.assert_array_equal(seen, [pixels])
    assert [tuple(d.box_ltwh) for d in prediction.detections] == [(3.0, 5.0, 10.0, 3.0), (20.0, 1.0, 4.0, 30.0)]
    ids = [category["id"] for category in dataset.categories]
    assert [d.category_id for d in prediction.detections] == [ids[2], ids[0]]
