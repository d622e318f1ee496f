"""What a pretrained decoder makes of boxes before any training, by the strength of a random neck: `sam.py neck`."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from finetune import _sam_checkpoints, sam
from finetune._sam_answers import answer
from finetune._sam_embeddings import Embeddings
from finetune._sam_examples import Examples
from maskbridge.dataset import Dataset

STRENGTHS = (1.0, 0.3, 0.1, 0.05, 0.02, 0.0)


def neck(given: argparse.Namespace) -> None:
    dataset = Dataset.open(given.dataset)
    defective = [i for i in dataset.split(0).train if dataset.annotations_by_image[i]]
    ids = defective[:: max(1, len(defective) // given.images)][: given.images]
    print(f"{dataset.name}, {len(ids)} training images, true boxes")
    for box_mask in ("no", "yes"):
        config = sam.Config(arch="backbone", image_size=given.image_size, prompts="oracle", box_mask=box_mask)
        torch.manual_seed(0)
        model, _ = _sam_checkpoints.start(config)
        examples = Examples(dataset, model, Embeddings(model, torch.device("cpu")), config, ids, seed=0)
        step = examples.validation(ids)
        for strength in STRENGTHS:
            with torch.inference_mode():
                model.sam.image_encoder.neck[-1].weight.fill_(strength)
                overlaps: list[float] = []
                for place, items in enumerate(step.items):
                    embedding = examples.embed(step, [place], torch.device("cpu"))
                    found = answer(model, embedding, items, [0] * len(items))[0].numpy() > 0
                    true = np.stack([item.target for item in items]) >= 0.5
                    both, either = ((found & true).sum((1, 2)), (found | true).sum((1, 2)))
                    overlaps += (both / np.maximum(either, 1)).tolist()
            told = "box as tokens and as a mask" if model.box_mask else "box as tokens alone"
            print(f"{told}, neck at {strength}: mean IoU {np.mean(overlaps):.3f}", flush=True)
