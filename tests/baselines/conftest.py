"""A tiny product in the dataset contract, made by hand: diagonal stripes, defects are bright chips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from maskbridge.approach import Context, PredictData, TrainData, Trained
from maskbridge.dataset import Dataset
from maskbridge.files import sha256_file, write_json
from maskbridge.geometry import instances

HEIGHT, WIDTH = 48, 80
CHIPS = (
    (slice(0, 14), slice(30, 52)),
    (slice(20, 36), slice(60, 80)),
    (slice(18, 34), slice(20, 40)),
    (slice(30, 48), slice(0, 20)),
)
TRAIN, TEST_GOOD = 20, 6


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tensors this small are faster with one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("datasets") / "stripes")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(device="cpu", seed=3, work=tmp_path / "work")


@pytest.fixture
def work(dataset: Dataset, context: Context, tmp_path: Path) -> SimpleNamespace:
    """Shortcuts: `train(module, config)`, `scores(module, config)`, and the folder between them."""

    def train(module: ModuleType, config: Any, folder: Path = tmp_path / "run", **changes: Any) -> Trained:
        split = dataset.split("official")
        data = {"dataset": dataset, "train": split.train, "val": (), "fold": "official", **changes}
        return module.train(TrainData(**data), config, folder, context)

    def predictions(module: ModuleType, config: Any, folder: Path = tmp_path / "run", **changes: Any) -> list[Any]:
        data = {"dataset": dataset, "image_ids": dataset.split("official").test, "fold": "official", "part": "test"}
        data |= changes
        return list(module.predict(PredictData(**data), config, folder, context))

    return SimpleNamespace(train=train, predictions=predictions, folder=tmp_path / "run")


@pytest.fixture
def auroc(dataset: Dataset) -> Callable[[list[Any]], float]:
    from sklearn.metrics import roc_auc_score

    def image_auroc(predictions: list[Any]) -> float:
        defective = [not dataset.image_by_id[p.image_id].is_good for p in predictions]
        return float(roc_auc_score(defective, [p.score for p in predictions]))

    return image_auroc


def make_dataset(folder: Path) -> Dataset:
    rng = np.random.default_rng(7)
    kinds = ["train/good"] * TRAIN + ["test/good"] * TEST_GOOD + ["test/chip"] * len(CHIPS)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, origin in enumerate(kinds, start=1):
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        grey = 110 + 30 * np.sin((x + y) / 5) + rng.normal(0, 4, (HEIGHT, WIDTH))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        if origin == "test/chip":
            mask[CHIPS[number - TRAIN - TEST_GOOD - 1]] = 1
            grey[mask > 0] = 250
        path = folder / "images" / origin / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))
        images.append(
            {
                "id": number,
                "file_name": f"{origin}/{path.name}",
                "width": WIDTH,
                "height": HEIGHT,
                "sha256": sha256_file(path),
                "origin": origin,
                "group": number,
            }
        )
        for instance in instances(mask)[0]:
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                **instance,
            }
            annotations.append(entry)
    categories = [{"id": 1, "name": "chip", "supercategory": "stripes"}]
    train = list(range(1, TRAIN + 1))
    test = list(range(TRAIN + 1, len(kinds) + 1))
    splits = {"rule": "by hand", "seed": 0, "folds": [], "official": {"train": train, "test": test}}
    coco = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations.json", coco)
    write_json(folder / "splits.json", splits)
    write_json(folder / "dataset.json", {"product": "stripes"})
    return Dataset.open(folder)
