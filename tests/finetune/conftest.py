"""Fixtures: of YOLO-World data, a refused training, a trained run in a sealed home; of SAM small data and trainings."""

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
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from finetune import sam, yolo_world
from maskbridge.approach import Context, PredictData, TrainData
from maskbridge.dataset import Dataset, Image, Split
from maskbridge.errors import MaskbridgeError
from maskbridge.files import sha256_file, write_json
from maskbridge.geometry import instances
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
    for name in ("clip", "clearml", "comet_ml", "dvclive", "mlflow", "ray", "wandb", "ultralytics_platform"):
        (folder / "modules" / f"{name}.py").write_text(trace)
    (folder / "modules" / "pip" / "__init__.py").write_text("")
    (folder / "modules" / "pip" / "__main__.py").write_text(trace)
    return folder


@pytest.fixture(scope="session")
def command(sealed, no_network):
    """Run maskbridge there, without a network."""
    environment = {
        **os.environ,
        "HOME": str(sealed / "home"),
        "PYTHONPATH": os.pathsep.join([str(sealed / "modules"), no_network[0]]),
        "MASKBRIDGE_CACHE": str(sealed / "cache"),
        "ULTRALYTICS_API_KEY": "a key that must not be used",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("YOLO_CONFIG_DIR", "YOLO_OFFLINE", "XDG_CONFIG_HOME", "MASKBRIDGE_WEIGHTS", "ULTRALYTICS_SAFE_LOAD"):
        environment.pop(name, None)

    def start(*words, more=None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "maskbridge", *map(str, words)],
            cwd=sealed / "cwd", env={**environment, **(more or {})},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
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


# ---------------------------------------------------------------- SAM

TINY_SAM = {"arch": "tiny", "weights": "none", "image_size": 64, "batch": 4}


@pytest.fixture
def lab():
    """Small data for SAM, and training and prediction without the command line."""
    return SimpleNamespace(
        tiny=TINY_SAM,
        make_dataset=make_dataset,
        everything=everything,
        train=train_sam,
        predict=predict_sam,
        same_weights=same_weights,
    )


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "plates", goods=6, defective=6)


def make_dataset(folder, *, goods, defective, size_hw=(40, 56), seed=0):
    """Grey noise, with a bright blob where an image is defective."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(1, goods + defective + 1):
        kind = "good" if number <= goods else "spot"
        pixels = rng.normal(100, 12, (*size_hw, 3)).clip(0, 255).astype(np.uint8)
        mask = np.zeros(size_hw, np.uint8)
        if kind == "spot":
            y, x = rng.integers(0, size_hw[0] - 12), rng.integers(0, size_hw[1] - 12)
            mask[y : y + 12, x : x + 12] = 1
            pixels[mask > 0] = 230
        name = f"all/{kind}/{number:03d}.png"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)
        images.append(
            Image(
                id=number,
                file_name=name,
                height=size_hw[0],
                width=size_hw[1],
                sha256=sha256_file(path),
                origin=f"all/{kind}",
                group=number,
            )
        )
        for instance in instances(mask)[0]:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, **instance}
            )
    categories = [{"id": 1, "name": "spot", "supercategory": "plate"}]
    write_json(
        folder / "annotations.json",
        {"images": [vars(image) for image in images], "annotations": annotations, "categories": categories},
    )
    write_json(folder / "splits.json", {"folds": [], "official": None})
    write_json(folder / "dataset.json", {"product": "plate"})
    return Dataset.open(folder)


def everything(dataset, *, val=()):
    ids = tuple(image.id for image in dataset.images)
    return TrainData(dataset=dataset, train=tuple(i for i in ids if i not in val), val=tuple(val), fold=0)


def context(folder, *, device="cpu", resume=False, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    return Context(device=device, seed=seed, work=folder, resume=resume)


def train_sam(dataset, folder, *, val=(), device="cpu", resume=False, **options):
    config = sam.Config(**{**TINY_SAM, "epochs": 2, **options})
    how = context(folder / "work", device=device, resume=resume)
    return config, sam.train(everything(dataset, val=val), config, folder / "weights", how)


def predict_sam(dataset, folder, config):
    ids = tuple(image.id for image in dataset.images)
    data = PredictData(dataset=dataset, image_ids=ids, fold=0, part="test")
    return list(sam.predict(data, config, folder / "weights", context(folder / "work")))


def same_weights(one, two):
    import torch

    a, b = (torch.load(folder / "weights" / "sam.pt", weights_only=True) for folder in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
