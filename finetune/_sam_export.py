"""A trained SAM for other programs: a plain state dict, or prompt encoder and mask decoder as ONNX.

    export_state_dict(run.weights, Path("defects.pth"))     # sam_model_registry["vit_b"](checkpoint="defects.pth")
    export_onnx(run.weights, Path("defects.onnx"))

ONNX is written by the package's own `SamOnnxModel`, with the inputs and outputs of its export script
(https://github.com/facebookresearch/segment-anything#onnx-export).
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from segment_anything.utils.onnx import SamOnnxModel

from finetune._sam_checkpoints import open_run
from finetune._sam_model import EMBEDDING_CHANNELS, REGISTERED
from maskbridge.files import write_bytes
from maskbridge.progress import say

_OPSET = 17


class _FirstMask(SamOnnxModel):  # type: ignore[misc]
    """Gives the mask that is trained; with few points the package would choose among the three that are not."""

    def select_masks(
        self, masks: torch.Tensor, iou_preds: torch.Tensor, num_points: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return masks[:, :1], iou_preds[:, :1]


def export_state_dict(weights: Path, out: Path) -> None:
    """Write a plain state dict, adapters folded in.

    Raises:
        WeightsError: When the checkpoint is not there or does not fit.
    """
    model = open_run(weights)
    buffer = io.BytesIO()
    torch.save(model.sam.state_dict(), buffer)
    write_bytes(out, buffer.getvalue())
    if model.arch not in REGISTERED:
        say(f"{out}: segment_anything has no arch {model.arch}; its prompt encoder and mask decoder fit there alone")


def export_onnx(weights: Path, out: Path) -> None:
    """Write prompt encoder and mask decoder; image embeddings go in.

    Raises:
        WeightsError: When the checkpoint is not there or does not fit.
    """
    model = open_run(weights)
    sam = model.sam
    height, width = sam.prompt_encoder.image_embedding_size
    inputs = {
        "image_embeddings": torch.randn(1, EMBEDDING_CHANNELS, height, width),
        "point_coords": torch.rand(1, 5, 2) * model.image_size,
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * height, 4 * width),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([model.image_size * 2 // 3, model.image_size], dtype=torch.float32),
    }
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: the model is made for it
        torch.onnx.export(
            _FirstMask(sam, return_single_mask=True),
            tuple(inputs.values()),
            cast(Any, buffer),
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    write_bytes(out, buffer.getvalue())
