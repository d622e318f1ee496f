"""SAM: segment defects with Segment Anything, prompted by boxes, points or another run, or without any prompt.

    maskbridge train sam datasets/bottle runs/bottle-sam-0 --fold 0
    maskbridge predict runs/bottle-sam-0 datasets/bottle --prompts runs/bottle-yolo-world-0 --out runs/bottle-both-0
    maskbridge train sam datasets/bottle runs/tiny --preset tiny       # small, from scratch

By default the image encoder stays frozen and runs once per image: its output is kept on disk and shared by all folds.
What is trained is the mask decoder and, where the encoder is not SAM's own, a small neck before it; `--train lora` and
`--train full` go into the encoder. Without a prompt the sigmoid of the low-resolution logits is the anomaly map.
Kirillov et al., Segment Anything, 2023, https://arxiv.org/abs/2304.02643.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import DatasetError, OptionError
from maskbridge.negatives import negative_count
from maskbridge.progress import say_once
from maskbridge.prompts import ORACLE, absolute_source, find_prompts, refuse_unfit_source
from maskbridge.prompts import truth_given as truth_given
from maskbridge.weights import AUTO, NONE

SUPERVISED = True
PREDICT_OPTIONS = ("prompts", "max_prompts", "grid", "average_views", "chunk")
SAME_RESULT_OPTIONS = ("chunk", "accumulate", "devices", "nodes")
MODEL_FORMATS = {"segment-anything": "pth", "onnx": "onnx"}

#: Kinds of prompts that can be trained.
PROMPT_KINDS = ("none", "box", "point", "mask")
#: Words of `--prompts` that need no other run; anything else is one.
_GRID = "grid"

PRESETS = {
    "tiny": {"arch": "tiny", "weights": NONE, "image_size": 128, "epochs": 10, "lr": 1e-3},
    "box": {"prompts": ORACLE, "image_size": 640, "lr": 2e-4, "augment": True, "epochs": 30, "average_views": 4},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    arch: Literal["auto", "vit_b", "vit_l", "vit_h", "vit_t", "backbone", "tiny"] = "auto"
    """Image encoder: SAM's own (vit_b, vit_l, vit_h), MobileSAM's (vit_t), a pretrained torchvision network
    (backbone), or a small random ViT (tiny). auto: vit_b if its checkpoint is at hand, else backbone if its weights
    are."""

    weights: str = AUTO
    """SAM's weights: a checkpoint, auto (look it up; it is not fetched) or none (random). backbone and tiny
    take the prompt encoder and mask decoder from it; so does any other from a checkpoint of these two alone."""

    backbone: str = "mobilenet_v2"
    """Torchvision network of the arch backbone."""

    backbone_weights: str = AUTO
    """Weights of the backbone: a file, auto (weights folder, cache, else a download checked by the 8 digits of its
    SHA-256 that its publisher states) or none (random)."""

    image_size: int = 384
    """Longest side that images are resized to, pixels; the official models always take 1024."""

    train: Literal["decoder", "lora", "full"] = "decoder"
    """What is trained: the mask decoder (and the neck of backbone and tiny), low-rank adapters in encoder and decoder
    with the rest of the decoder, or encoder and decoder."""

    lora_rank: int = 4
    """Rank of the adapters."""

    lora_targets: tuple[str, ...] = ("qkv", "proj", "q_proj", "k_proj", "v_proj", "out_proj")
    """Name of linear layers that get adapters; give it again for each."""

    cache: Literal["fp16", "fp32", "off"] = "fp16"
    """How a frozen encoder's output is kept on disk; off: it runs again for every image of every epoch."""

    views: int = 1
    """Fixed views of each training image (turned, mirrored), 1 to 8, each of which is cached."""

    augment: bool = False
    """Turn, mirror, crop and light every image anew, which turns the cache off."""

    train_prompts: tuple[str, ...] = (AUTO,)
    """Kind of prompt that is trained: none, box, point, or mask (a box and the mask made of it before); give it again
    for each. auto: what --prompts needs (none, point for a grid, box for anything else)."""

    instances: int = 4
    """Defects of an image that are prompted for in one step, at most."""

    jitter: float = 0.1
    """Standard deviation of a training box's sides in parts of its width and height; at most 20 of 1024 pixels,
    as in SAM's own training."""

    box_mask: Literal["auto", "yes", "no"] = "auto"
    """Whether SAM is told a box as a low-resolution mask too, so that it has only to mend it; auto: unless the image
    encoder is one that SAM was trained with."""

    epochs: int = 10
    """Passes over the defective images."""

    lr: float = 5e-4
    """Learning rate at its height."""

    neck_lr: float = 1e-3
    """The same of the neck of backbone and tiny, which starts at random."""

    weight_decay: float = 1e-2
    """Weight decay of AdamW."""

    focal_weight: float = 20.0
    """What the focal loss weighs beside the dice loss; 20 in SAM's own training."""

    batch: int = 8
    """Images in one step, over all devices."""

    accumulate: int = 1
    """Pieces that each device takes a step in: less memory, the same result."""

    chunk: int = 4
    """Prompts in one call of the decoder: memory against speed, the same result."""

    negatives: str = "1x"
    """Good images in an epoch, drawn anew each time: all, a number, or a ratio to the defective ones (1.5x)."""

    patience: int = 8
    """Epochs without a better validation dice after which training stops."""

    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Numbers that training computes with; auto: bf16 on a GPU that has it, else 32."""

    devices: int = 1
    """Devices of each machine to train on."""

    nodes: int = 1
    """Machines to train on; give the command on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT set."""

    prompts: str = NONE
    """What points SAM at defects: none (it finds them by itself), grid (points all over the image), a run folder (its
    boxes, or the peaks of its maps), or oracle (the true boxes; only masks are then judged)."""

    max_prompts: int = 100
    """Prompts of an image that are taken from another run, at most, the surest first."""

    average_views: int = 1
    """Views of an image (turned, mirrored) that masks and maps are averaged over, 1 to 8."""

    grid: int = 16
    """Points along each side of the grid."""

    def __post_init__(self) -> None:
        """Keep a run by its absolute path, and refuse what cannot be used.

        Raises:
            OptionError: When an option does not fit.
        """
        object.__setattr__(self, "prompts", absolute_source(self.prompts, (NONE, _GRID)))
        for name in ("train_prompts", "lora_targets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check(self)

    def start_files(self) -> list[Path]:
        """SAM's checkpoint and the backbone's."""
        from finetune._sam_checkpoints import local_files

        return local_files(self)

    @property
    def trained_prompts(self) -> tuple[str, ...]:
        """Kinds of prompts that are trained."""
        return (self.asked,) if self.train_prompts == (AUTO,) else self.train_prompts

    @property
    def asked(self) -> str:
        """Kind of prompt that is asked with in prediction; of a run boxes, where it has any."""
        return {NONE: "none", _GRID: "point"}.get(self.prompts, "box")


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Train, and keep the best epoch by the validation images.

    Writes `sam.pt`, a plain SAM state dict, and `sam.json`, how to build the model for it; with adapters also
    `lora.pt`, the adapters and the rest of what was trained.

    Raises:
        DatasetError: When no image of the training part has a defect.
        OptionError: When an option does not fit.
        RunError: When the run that is to prompt does not fit.
        WeightsError: When weights cannot be found or do not fit.
    """
    check(data, config)

    from finetune._sam_finetune import finetune
    from finetune._sam_launch import launch

    return launch(finetune, config, context, data, weights)


def check(data: TrainData, config: Config) -> None:
    """Refuse what cannot be trained, before anything is.

    Raises:
        DatasetError: When no image of the training part has a defect.
        OptionError: When an option does not fit.
        RunError: When the run that is to prompt does not fit.
    """
    table = data.dataset.annotations_by_image
    defective = [image_id for image_id in data.train if table[image_id]]
    if not defective:
        raise DatasetError("no image to train on has a defect", where=data.dataset.path, found=f"fold {data.fold}")
    negative_count(config.negatives, good=len(data.train) - len(defective), defective=len(defective))
    if config.prompts not in (NONE, _GRID):
        refuse_unfit_source(config.prompts, data.dataset, data.fold)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Predict images; what is given for each depends on the prompts.

    Without any: the anomaly map, without padding, at the decoder's resolution; its maximum is the score. With the true
    boxes: a mask for each. With another run or a grid: a mask for each prompt, the map and the score they make.

    Raises:
        RunError: When the run that is to prompt does not fit.
        WeightsError: When the checkpoint is not there or does not fit.
    """
    prompts = None if config.prompts in (NONE, _GRID) else find_prompts(config.prompts, data, config.max_prompts)

    from finetune._sam_checkpoints import open_run
    from finetune._sam_launch import device_of
    from finetune._sam_prediction import Predictor

    device = device_of(context.device)
    model = open_run(weights)
    model.sam.to(device)
    if model.trained_prompts and config.asked not in model.trained_prompts:
        say_once(f"--prompts {config.prompts}: this SAM was trained for {', '.join(model.trained_prompts)} alone")
    predictor = Predictor(model, data.dataset, device, chunk=config.chunk, views=config.average_views)
    for image_id in data.image_ids:
        if config.prompts == NONE:
            yield predictor.without_prompt(image_id)
        elif config.prompts == _GRID:
            yield predictor.of_grid(image_id, config.grid)
        elif config.prompts == ORACLE:
            assert prompts is not None, "the truth prompts"
            yield predictor.of_truth(image_id, prompts(image_id))
        else:
            assert prompts is not None, "a run prompts"
            yield predictor.of_prompts(image_id, prompts(image_id))


def export_model(format: str, config: Config, weights: Path, out: Path) -> None:
    """Write the model for `segment_anything` or, without the image encoder, as ONNX.

    Raises:
        WeightsError: When the checkpoint is not there or does not fit.
    """
    from finetune._sam_export import export_onnx, export_state_dict

    (export_onnx if format == "onnx" else export_state_dict)(weights, out)


def _check(config: Config) -> None:
    bounds = {
        "epochs": 1, "batch": 1, "accumulate": 1, "chunk": 1, "instances": 1, "grid": 1, "max_prompts": 1,
        "lora_rank": 1, "patience": 1, "lr": 0.0, "neck_lr": 0.0, "focal_weight": 0.0, "weight_decay": 0.0,
        "jitter": 0.0,
    }  # fmt: skip
    for name, least in bounds.items():
        value = getattr(config, name)
        if not least <= value < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise OptionError(f"{option} cannot be used", found=value, expected=f"{least} or more")
    for name in ("views", "average_views"):
        if not 1 <= getattr(config, name) <= 8:
            option = f"--{name.replace('_', '-')}"
            raise OptionError(f"{option} cannot be used", found=getattr(config, name), expected="1 to 8")
    if config.augment and config.views > 1:
        found = f"--views {config.views}"
        raise OptionError("--augment makes a new view each time", found=found, expected="one of the two")
    found = ", ".join(config.train_prompts)
    if config.train_prompts != (AUTO,) and not (set(config.train_prompts) <= set(PROMPT_KINDS) and found):
        raise OptionError("--train-prompts is not known", found=found, expected=", ".join(PROMPT_KINDS))
