"""Fixtures of the YOLO-World tests: data, a refused training, and a trained run in a sealed home."""

from __future__ import annotations

import http.server
import os
import pickle
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from finetune import yolo_world
from maskbridge.approach import Context, TrainData
from maskbridge.dataset import Dataset, Split
from maskbridge.errors import MaskbridgeError
from maskbridge.predictions import Run

TINY = ("--weights", "none", "--text-features", "hashed", "--imgsz", "64", "--batch", "16", "--device", "cpu")


class Exploit:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def exploit(tmp_path):
    """An object that makes the file `executed` when it is unpickled, and its pickle."""
    return Exploit(tmp_path / "executed"), pickle.dumps(Exploit(tmp_path / "executed"))


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture
def data(plates) -> TrainData:
    dataset = Dataset.open(plates)
    split: Split = dataset.split(0)
    return TrainData(dataset=dataset, train=split.train, val=split.val, fold=0)


@pytest.fixture
def refuse(data, tmp_path):
    """Train with options that must be refused before anything is written; the line."""

    def run(kind=MaskbridgeError, data=data, device="cpu", untouched=True, **options) -> str:
        context = Context(device=device, seed=0, work=tmp_path / "run" / "work")
        config = yolo_world.Config(**{"weights": "none", "text_features": "hashed", **options})
        with pytest.raises(kind) as caught:
            yolo_world.train(data, config, tmp_path / "run" / "weights", context)
        assert not (untouched and (tmp_path / "run").exists())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """A home, a working folder, and modules that leave a trace when they are used: CLIP, pip, services that log."""
    folder = tmp_path_factory.mktemp("sealed")
    for name in ("home", "cwd", "modules/pip"):
        (folder / name).mkdir(parents=True)
    trace = f"open({str(folder / 'reached out')!r}, 'w').close()\n"
    for name in ("clip", "clearml", "comet_ml", "dvclive", "mlflow", "ray", "wandb"):
        (folder / "modules" / f"{name}.py").write_text(trace)
    (folder / "modules" / "pip" / "__init__.py").write_text("")
    (folder / "modules" / "pip" / "__main__.py").write_text(trace)
    return folder


@pytest.fixture(scope="session")
def command(sealed):
    """Run maskbridge there."""
    environment = {
        **os.environ,
        "HOME": str(sealed / "home"),
        "PYTHONPATH": str(sealed / "modules"),
        "MASKBRIDGE_CACHE": str(sealed / "cache"),
        "ULTRALYTICS_API_KEY": "a key that must not be used",
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


@pytest.fixture(scope="session")
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


@pytest.fixture
def server(tmp_path):
    """A folder that is served on this machine, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = partial(quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
