"""YOLO-World on MVTec bottle, from real start weights and with CLIP's own text features of the COCO names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from finetune._yolo_world_prompts import prompts
from finetune._yolo_world_text import hashed, write_features
from maskbridge.cli import main
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.predictions import Run

DATA = os.environ.get("MASKBRIDGE_DATA")
WEIGHTS = os.environ.get("MASKBRIDGE_WEIGHTS")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (DATA and WEIGHTS), reason="MASKBRIDGE_DATA and MASKBRIDGE_WEIGHTS are not set"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """One epoch at 64 px on fold 0, and predictions of test."""
    folder = tmp_path_factory.mktemp("bottle")
    convert("mvtec", Path(DATA) / "mvtec_ad" / "bottle", folder / "bottle", ConvertOptions(link="symlink"))
    from finetune._yolo_world_models import coco_names

    own = list(prompts(Dataset.open(folder / "bottle")).values())
    coco = np.load(Path(WEIGHTS) / "clip_vit_b32_text" / "coco_clip_a+cname.npy").astype(np.float32)
    rows = np.concatenate([coco, np.stack([hashed(text) for text in own])])
    write_features(folder / "text.npz", [*coco_names(), *own], rows, "CLIP and hashed")
    words = ["train", "yolo-world", folder / "bottle", folder / "run", "--text-features", folder / "text.npz"]
    assert main([*map(str, words), "--imgsz", "64", "--epochs", "1", "--device", "cpu"]) == 0
    assert main(["predict", str(folder / "run"), str(folder / "bottle"), "--device", "cpu"]) == 0
    return Run.open(folder / "run")


def test_345_tensors_of_a_plain_yolov8_fit(run):
    assert run.info["weights_from"] == "yolov8n_coco_from_int8.pt"
    assert run.info["facts"]["tensors_transferred"] == {"fitted": 345, "of": 412}
    assert run.info["facts"]["scale"] == "n"


def test_what_a_poured_model_does_not_find_cannot_be_forgotten(run):
    """The contrastive heads of a plain YOLOv8 are random: it finds next to nothing by name."""
    facts = run.info["facts"]["forgetting"]
    assert facts["share"] is None
    assert facts["of"] < 20
    assert facts["images"] == 12
    assert "fewer than 20" in facts["why"]


def test_every_labelled_bottle_of_the_fold_is_looked_at(run):
    assert run.has("test")
    types = {category["id"] for category in run.dataset().categories}
    assert {result["category_id"] for result in run.detections("test")} <= types
