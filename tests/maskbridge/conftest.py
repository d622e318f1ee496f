"""A small dataset and an approach that knows the truth more or less."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest

from maskbridge import plugins
from maskbridge.approach import Detection, Prediction, Trained
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset

FOLDS = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the approach."""

    factor: float = 1.0
    """what scores are multiplied by"""
    gives: str = "scores maps detections"
    """what is predicted"""
    level: int | None = None
    """anything"""
    mode: Literal["soft", "hard"] = "soft"
    """how"""
    sure: bool = False
    """whether it is, in 100 % of cases"""


@pytest.fixture(scope="session")
def tiles_folder(tmp_path_factory, zoo, new_source) -> Path:
    kinds = {
        "crack": [zoo[name] for name in ("line", "diagonal", "pit", "ring", "several", "frame")],
        "stain": [zoo[name] for name in ("corner", "frame", "whole", "several", "ring", "pit")],
    }
    source = new_source(tmp_path_factory.mktemp("source") / "tile", kinds, train=20, good=7)
    folder = tmp_path_factory.mktemp("datasets") / "tiles"
    convert("mvtec", source, folder, ConvertOptions(folds=FOLDS))
    return folder


@pytest.fixture
def tiles(tiles_folder) -> Dataset:
    """20 good images for training; 7 good and 12 defective in 3 folds; 48 x 64 pixels."""
    return Dataset.open(tiles_folder)


@pytest.fixture
def fake(monkeypatch) -> ModuleType:
    """An unsupervised approach by the name of `fake`; `given` lists the data of each training."""
    module = ModuleType("fake")
    module.SUPERVISED = False
    module.PREDICT_OPTIONS = ("factor",)
    module.PRESETS = {"loud": {"factor": 10.0, "level": 3}}
    module.Config = Config
    module.given = []
    module.asked = []

    def train(data, config, weights, context) -> Trained:
        module.given.append(data)
        (weights / "model.json").write_text(json.dumps({"trained": len(data.train)}))
        return Trained(parameters=7, weights_from="none", facts={"noise": 1})

    def predict(data, config, weights, context) -> Iterator[Prediction]:
        trained = json.loads((weights / "model.json").read_text())["trained"]
        for image_id in data.image_ids:
            module.asked.append(image_id)
            yield predicted(data.dataset, image_id, config, trained)

    module.train, module.predict = train, predict
    load, names = plugins.load, plugins.names
    monkeypatch.setattr(plugins, "load", lambda kind, name: module if name == "fake" else load(kind, name))
    monkeypatch.setattr(
        plugins, "names", lambda kind: sorted([*names(kind), *(["fake"] if kind == "approach" else [])])
    )
    return module


@pytest.fixture(scope="session")
def prediction() -> Callable[..., Prediction]:
    return predicted


def predicted(dataset: Dataset, image_id: int, config: Config, trained: int) -> Prediction:
    """The truth with noise that depends on the image, on a scale that depends on the training."""
    rng = np.random.default_rng(image_id)
    mask = dataset.mask(image_id)[::4, ::4]
    noisy = (trained * config.factor * (mask + rng.normal(0, 0.5, mask.shape))).astype(np.float32)
    score = float(trained * config.factor * (bool(mask.any()) + rng.normal(0, 0.5)))
    boxes = [
        Detection(box_ltwh=tuple(a["bbox"]), score=float(rng.uniform(0.2, 0.9)), category_id=a["category_id"])
        for a in dataset.annotations_by_image[image_id]
    ]
    boxes += [Detection(box_ltwh=(1.5, 2.0, 9.0, 7.25), score=float(rng.uniform(0.01, 0.5)), category_id=1)]
    return Prediction(
        image_id=image_id,
        score=score if "scores" in config.gives else None,
        map=noisy if "maps" in config.gives else None,
        detections=boxes if "detections" in config.gives else None,
    )
