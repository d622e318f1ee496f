"""YOLO-World: detect defects with an open-vocabulary detector, fine-tuned by Ultralytics' own trainer.

    maskbridge train yolo-world datasets/bottle runs/bottle-yolo-world-0 --fold 0

The fold is exported as exact YOLO labels, the class prompts become fixed text features, and the best epoch on `val`
is kept as `weights/best.pt`, which plain `YOLOWorld(path)` opens. docs/yolo-world.md has the defaults' reasons.
Cheng et al., YOLO-World: Real-Time Open-Vocabulary Object Detection, CVPR 2024, https://arxiv.org/abs/2401.17270.
Ultralytics is AGPL-3.0.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune._yolo_world_data import prepare, refuse_without_defects
from finetune._yolo_world_forgetting import measure_forgetting, probe_paths
from finetune._yolo_world_prompts import prompts as prompts_of
from finetune._yolo_world_start import SCALES, local_start, start_weights
from finetune._yolo_world_text import HASHED, write_features
from finetune._yolo_world_tiles import Detections, detect_tiled
from maskbridge.approach import Context, Detection, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import OptionError, WeightsError
from maskbridge.progress import say
from maskbridge.start_weights import source_name
from maskbridge.weights import AUTO, NONE

SUPERVISED = True
PREDICT_OPTIONS = ("iou", "tile", "tile_overlap")
#: Ultralytics' own image size, four times the cost.
PRESETS: dict[str, dict[str, Any]] = {"gpu": {"imgsz": 640}}
#: Formats of `maskbridge export-model`.
MODEL_FORMATS = {"onnx": "onnx"}
#: Detections are kept down to this confidence, so that average precision sees the whole curve.
LEAST_CONFIDENCE = 0.001
MOST_DETECTIONS = 100
_CHECKPOINT = "best.pt"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of YOLO-World."""

    weights: str = AUTO
    """start weights: a YOLO-World or plain YOLOv8 checkpoint, none (random), an official name (yolov8s-worldv2; s, m,
    l and x have one) in MASKBRIDGE_WEIGHTS or the cache, or auto: the first yolov8*-worldv2*.pt there, else
    yolov8*.pt; nothing is fetched"""
    scale: Literal["auto", "n", "s", "m", "l", "x"] = "auto"
    """model scale that the weights must have; auto: that of the weights, n where they are none"""
    prompt: tuple[str, ...] = ()
    """type="text", once for each type: what a defect type is called for the text encoder, instead of product and
    type with spaces"""
    text_features: str = AUTO
    """text features of the prompts: auto (CLIP ViT-B/32's text encoder), an .npz file that `maskbridge
    text-features` made, or hashed, a stand-in that knows no language and marks the run"""
    epochs: int = 100
    """passes over the training part at most"""
    imgsz: int = 320
    """side of the square that images are fitted into, in pixels"""
    batch: int = 16
    """images in one step"""
    lr: float = 1e-3
    """learning rate of AdamW at the start"""
    optimizer: Literal["adamw", "auto"] = "adamw"
    """adamw: AdamW, a step for each batch; auto: Ultralytics' own choice of optimiser and learning rate, a step for
    every 64 images, --lr not used"""
    patience: int = 30
    """epochs without a better val score after which training stops"""
    freeze: int = 0
    """layers kept as they start, counted from the image; the backbone of YOLO-World is the first 10"""
    mosaic: float = 1.0
    """share of training images that are mosaics of four, until ten epochs before the end"""
    labels: Literal["boxes", "polygons"] = "boxes"
    """what Ultralytics is given in training: exact boxes, or exact polygons, of which it takes the box again after it
    has moved, scaled and cut an image"""
    negatives: str = "0.2"
    """good images in training: all, a number, or a ratio to the defective ones"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """number format in training: auto is fp16 (mixed) on a GPU and fp32 on a CPU"""
    time_budget: float = 0
    """minutes of training at most, by Ultralytics' own timer, which fits the epochs and the decay of the learning
    rate into them; 0 for no limit; a resumed training has them anew"""
    tile: int = 0
    """side of square tiles in pixels of the image, for small defects: training and prediction see the overlapping
    tiles and the whole image; 0 for the whole image alone"""
    tile_overlap: float = 0.2
    """share of a tile that its neighbour has too"""
    iou: float = 0.6
    """overlap above which non-maximum suppression drops the weaker box"""
    rehearse: str = ""
    """dataset whose defective training images are mixed in, against forgetting; its types are not predicted"""
    probe: str = ""
    """folder of images on which forgetting is measured, instead of three photographs that Ultralytics and matplotlib
    bring along"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        object.__setattr__(self, "prompt", tuple(self.prompt))
        for name, fits, expected in (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("imgsz", self.imgsz >= 32, "32 or more"),
            ("batch", self.batch >= 1, "1 or more"),
            ("lr", self.lr > 0, "above 0"),
            ("scale", self.scale in (AUTO, *SCALES), "auto, n, s, m, l or x"),
            ("patience", self.patience >= 0, "0 or more"),
            ("freeze", 0 <= self.freeze <= 22, "0 to 22"),
            ("mosaic", 0 <= self.mosaic <= 1, "0 to 1"),
            ("time_budget", self.time_budget >= 0, "0 or more"),
            ("tile", self.tile == 0 or self.tile >= 32, "0, or 32 or more"),
            ("tile_overlap", 0 <= self.tile_overlap <= 0.9, "0 to 0.9"),
            ("iou", 0 < self.iou <= 1, "above 0, to 1"),
        ):
            if not fits:
                raise OptionError(
                    f"--{name.replace('_', '-')} is out of range", found=getattr(self, name), expected=expected
                )

    def start_files(self) -> list[Path]:
        """The checkpoint."""
        found = local_start(self.weights, self.scale)
        return [] if found is None else [found]


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Fine-tune, and keep the best epoch on `val` as `best.pt`.

    Raises:
        DatasetError: When `train` or `val` has no defect, or the types cannot be class names.
        OptionError: When text features are missing, a prompt or the device does not fit, or memory is too small.
        WeightsError: When start weights cannot be found or read.
    """
    refuse_without_defects(data)
    texts = prompts_of(data.dataset, config.prompt)
    probe_paths(config.probe)  # refused before anything is written
    from finetune import _yolo_world_fit, _yolo_world_models

    device = _yolo_world_models.device_name(context.device)
    _yolo_world_fit.amp_of(config.precision, device)  # refused before anything is written
    start, scale = start_weights(config.weights, config.scale)
    prepared = prepare(data, texts, config, context)
    folder = _yolo_world_fit.fit(config, context, prepared, start=start, scale=scale, device=device)
    best = folder / "weights" / "best.pt"
    parameters = _yolo_world_models.keep_classes(best, list(texts), weights / _CHECKPOINT)
    write_features(weights / "text-features.npz", list(texts.values()), prepared.features, prepared.encoder)
    source = NONE if start is None else source_name(start)
    transferred = _yolo_world_fit.transferred(context.work, source)
    rows = (folder / "results.csv").read_text(encoding="utf-8").splitlines()[1:]
    epochs = len({row.split(",")[0].strip() for row in rows})  # one that was begun again after a kill counts once
    shutil.rmtree(prepared.yaml.parent)
    say(f"yolo-world: {epochs} of at most {config.epochs} epochs trained")
    return Trained(
        parameters=parameters,
        weights_from=source if prepared.encoder != HASHED else f"{source}, text features {HASHED}",
        trained_on=prepared.trained_on,
        also_trained_on=prepared.also_trained_on,
        facts={
            "scale": scale,
            "tensors_transferred": transferred,
            "text_features": prepared.encoder,
            "prompts": texts,
            "epochs_trained": epochs,
            "rehearsed_images": prepared.rehearsed,
            "rehearsed_left_out": prepared.rehearsed_left_out,
            "left_out_tiles": prepared.left_out_tiles,
            "forgetting": measure_forgetting(
                start, scale, weights / _CHECKPOINT, config.probe, config.text_features, context.work, device
            ),
        },
    )


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Boxes with defect types; no map.

    Raises:
        WeightsError: When the checkpoint cannot be read.
    """
    from finetune._yolo_world_models import device_name

    model = _open(weights / _CHECKPOINT)
    device = device_name(context.device).split(",")[0]

    def detect(image: Any) -> Detections:
        result = model.predict(
            image,
            conf=LEAST_CONFIDENCE,
            iou=config.iou,
            imgsz=config.imgsz,
            max_det=MOST_DETECTIONS,
            device=device,
            save=False,
            verbose=False,
        )[0]
        boxes = result.boxes.cpu().numpy()
        return boxes.xyxy.astype(np.float64), boxes.conf.astype(np.float64), boxes.cls.astype(np.int64)

    for image_id in data.image_ids:
        image = np.ascontiguousarray(data.dataset.read_image(image_id)[:, :, ::-1])
        if config.tile:
            found = detect_tiled(detect, image, tile=config.tile, overlap=config.tile_overlap, iou=config.iou)
        else:
            found = detect(image)
        yield Prediction(
            image_id=image_id,
            detections=[
                Detection(
                    box_ltwh=(float(x0), float(y0), float(x1 - x0), float(y1 - y0)),
                    score=float(score),
                    category_id=data.dataset.categories[int(number)]["id"],
                )
                for (x0, y0, x1, y1), score, number in list(zip(*found, strict=True))[:MOST_DETECTIONS]
            ],
        )


def export_model(format: str, config: Config, weights: Path, out: Path) -> None:
    """Write the model for other programs; `onnx`: Ultralytics' own export, input 1 x 3 x H x W, float32, RGB, [0, 1].

    H and W are multiples of 32; the class names and the side in training stand in the file's metadata. Output
    1 x (4 + types) x anchors: centre, width and height in pixels of the input, and a confidence for each type, before
    non-maximum suppression.

    Raises:
        OptionError: When the onnx package is missing.
        WeightsError: When the checkpoint cannot be read.
    """
    from finetune import _yolo_world_export

    _yolo_world_export.export_onnx(weights / _CHECKPOINT, config.imgsz, out)


def _open(checkpoint: Path) -> Any:
    from finetune._yolo_world_ultralytics import load

    if not checkpoint.is_file():
        raise WeightsError("has no checkpoint", where=checkpoint.parent, expected=_CHECKPOINT, remedy="train again")
    load(checkpoint)  # safely, and with one line for what is no checkpoint
    from ultralytics import YOLOWorld

    return YOLOWorld(checkpoint)
