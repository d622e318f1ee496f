"""SAM's own pretrained decoder on MVTec bottle, beside the package's predictor."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from finetune import sam
from finetune._sam_checkpoints import start
from finetune._sam_prediction import Predictor
from finetune._sam_prompts import box_logits
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset, read_image
from maskbridge.prompts import Prompt

DATA = os.environ.get("MASKBRIDGE_DATA")
WEIGHTS = os.environ.get("MASKBRIDGE_WEIGHTS")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (DATA and WEIGHTS), reason="MASKBRIDGE_DATA and MASKBRIDGE_WEIGHTS are not set"),
]


def test_masks_of_the_pretrained_decoder_are_the_packages(tmp_path):
    """Whose logits reach 8 here, on an image encoder of ours."""
    convert("mvtec", Path(DATA) / "mvtec_ad" / "bottle", tmp_path / "bottle", ConvertOptions(link="symlink"))
    dataset = Dataset.open(tmp_path / "bottle")
    torch.manual_seed(0)
    model, _ = start(sam.Config(arch="backbone"))
    ours, theirs = Predictor(model, dataset, torch.device("cpu"), chunk=4), SamPredictor(model.sam)
    most = 0.0
    for image in [image for image in dataset.images if not image.is_good][::20]:
        boxes = [annotation["bbox"] for annotation in dataset.annotations_by_image[image.id]]
        answers = ours.masks(image.id, [Prompt(box_ltwh=tuple(box)) for box in boxes])
        theirs.set_image(read_image(dataset.image_path(image.id)))
        for (left, top, width, height), logits, quality in zip(boxes, answers.logits, answers.quality, strict=True):
            box = np.array([left, top, left + width, top + height])
            corners = torch.from_numpy(theirs.transform.apply_boxes(box[None], image.size_hw)).float()
            told = box_logits(corners, *logits.shape, model.image_size)[0].numpy()
            _, iou, low = theirs.predict(box=box, mask_input=told, multimask_output=False)
            assert np.abs(logits.numpy() - low[0]).max() < 1e-4
            assert float(quality) == pytest.approx(float(iou[0]), abs=1e-4)
            most = max(most, float(np.abs(low).max()))
    assert most > 5  # it does answer
