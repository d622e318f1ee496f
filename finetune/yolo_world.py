"""YOLO-World: detect defects with an open-vocabulary detector, fine-tuned by Ultralytics' own trainer.

    maskbridge train yolo-world datasets/bottle runs/bottle-yolo-world-0 --fold 0 --text-features hashed

The fold is exported as exact YOLO labels, the class prompts become fixed text features, and the best epoch on `val`
is kept as `weights/best.pt`, which plain `YOLOWorld(path)` opens.
Cheng et al., YOLO-World: Real-Time Open-Vocabulary Object Detection, CVPR 2024, https://arxiv.org/abs/2401.17270.
Ultralytics is AGPL-3.0.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune._yolo_world_text import HASHED, text_features
from maskbridge import plugins
from maskbridge.approach import Context, Detection, PredictData, Prediction, TrainData, Trained
from maskbridge.dataset import Dataset, read_image
from maskbridge.errors import DatasetError, OptionError, WeightsError
from maskbridge.export import ExportOptions
from maskbridge.files import read_json, write_bytes
from maskbridge.progress import say
from maskbridge.weights import AUTO, NONE, find_local

SUPERVISED = True
PREDICT_OPTIONS = ("iou",)
#: Detections are kept down to this confidence, so that average precision sees the whole curve.
LEAST_CONFIDENCE = 0.001
MOST_DETECTIONS = 100
MOST_TYPES = 80
_CHECKPOINT = "best.pt"
_OFFICIAL = "yolov8s-worldv2"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of YOLO-World."""

    weights: str = AUTO
    """start weights: a YOLO-World or plain YOLOv8 checkpoint, none (random), an official name (yolov8s-worldv2,
    fetched by Ultralytics), or auto: the first yolov8*-worldv2*.pt, else yolov8*.pt, in MASKBRIDGE_WEIGHTS or the
    cache, else yolov8s-worldv2"""
    text_features: str = ""
    """text features of the classes: an .npz file with names and N x 512 features, or hashed, a stand-in that
    knows no language"""
    scale: str = "n"
    """model scale (n, s, m, l, x) where weights are none"""
    epochs: int = 40
    """passes over the training part at most"""
    imgsz: int = 320
    """side of the square that images are fitted into, in pixels"""
    batch: int = 8
    """images in one step"""
    lr: float = 1e-3
    """learning rate of AdamW at the start"""
    patience: int = 30
    """epochs without a better val score after which training stops"""
    negatives: str = "0.2"
    """good images in training: all, a number, or a ratio to the defective ones"""
    iou: float = 0.6
    """overlap above which non-maximum suppression drops the weaker box"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.epochs < 1 or self.batch < 1 or self.imgsz < 32 or not self.lr > 0 or not 0 < self.iou <= 1:
            raise OptionError(
                "an option of yolo-world is out of range",
                found=f"epochs {self.epochs}, batch {self.batch}, imgsz {self.imgsz}, lr {self.lr}, iou {self.iou}",
                expected="epochs >= 1, batch >= 1, imgsz >= 32, lr > 0, 0 < iou <= 1",
            )
        if self.scale not in ("n", "s", "m", "l", "x"):
            raise OptionError("no such scale", found=self.scale, expected="n, s, m, l or x")


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Fine-tune, and keep the best epoch on `val` as `best.pt`.

    Raises:
        DatasetError: When no training image has a defect, or the types cannot be class names.
        OptionError: When text features are missing.
        WeightsError: When start weights cannot be found or read.
    """
    _check_types(data)
    prompts = default_prompts(data.dataset)
    features = text_features(config.text_features, list(prompts.values()))
    from finetune import _yolo_world_trainer as ultralytics

    start = _start_weights(config)
    scale = config.scale if start is None else ultralytics.scale_of(start)
    exported = context.work / "yolo"
    options = ExportOptions(fold=_number(data.fold), negatives=config.negatives, seed=context.seed, overwrite=True)
    plugins.load("format", "yolo").export(data.dataset, exported, options)
    defective = sum(bool(data.dataset.annotations_by_image[image_id]) for image_id in data.train)
    images = read_json(exported / "export-report.json")["images"]["train"]
    last = context.work / "ultralytics" / "resume.pt"
    resumes = context.resume and last.is_file()
    overrides: dict[str, Any] = {
        "task": "detect",
        "mode": "train",
        "model": str(last) if resumes else f"yolov8{scale}-worldv2.yaml",
        "pretrained": False if start is None else str(start),
        "resume": str(last) if resumes else False,
        "data": str(exported / "data.yaml"),
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "batch": config.batch,
        "optimizer": "AdamW",
        "lr0": config.lr,
        "nbs": config.batch,  # a step for each batch: Ultralytics would gather 64 images, one step an epoch here
        "patience": config.patience,
        "device": ultralytics.device_name(context.device),
        "seed": context.seed,
        "workers": 0,
        "cache": "ram",
        "amp": False,  # its check would fetch another model
        "plots": False,
        "verbose": False,
        "project": str(context.work),
        "name": "ultralytics",
        "exist_ok": True,
    }
    by_class = dict(zip(prompts, features, strict=True))
    with ultralytics.given_text_features(by_class):
        trainer = ultralytics.Trainer(overrides=overrides)
        epochs = iter(context.track(range(config.epochs), "yolo-world epochs"))
        trainer.add_callback("on_train_epoch_start", lambda _: next(epochs, None))
        trainer.train()
        transferred = ultralytics.Trainer.transferred
    write_bytes(weights / _CHECKPOINT, Path(trainer.best).read_bytes())
    shutil.rmtree(exported)
    source = NONE if start is None else start.name
    if transferred is not None and not resumes:
        say(f"yolo-world: {transferred[0]} of {transferred[1]} tensors taken from {source}")
    return Trained(
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        weights_from=source if config.text_features != HASHED else f"{source}, text features {HASHED}",
        trained_on={"good": images - defective, "defective": defective},
        facts={
            "scale": scale,
            "tensors_transferred": None
            if transferred is None or resumes
            else {"fitted": transferred[0], "of": transferred[1]},
            "text_features": HASHED if config.text_features == HASHED else Path(config.text_features).name,
            "prompts": prompts,
            "epochs_trained": trainer.epoch + 1,
        },
    )


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Boxes with defect types; no map.

    Raises:
        WeightsError: When the checkpoint cannot be read.
    """
    from finetune import _yolo_world_trainer as ultralytics

    if not (weights / _CHECKPOINT).is_file():
        raise WeightsError("has no checkpoint", where=weights, expected=_CHECKPOINT, remedy="train again")
    ultralytics.load(weights / _CHECKPOINT)
    from ultralytics import YOLOWorld

    model = YOLOWorld(weights / _CHECKPOINT)
    device = ultralytics.device_name(context.device)
    for image_id in data.image_ids:
        image = read_image(data.dataset.image_path(image_id))[:, :, ::-1].copy()
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
        yield Prediction(
            image_id=image_id,
            detections=[
                Detection(
                    box_ltwh=(float(x0), float(y0), float(x1 - x0), float(y1 - y0)),
                    score=float(score),
                    category_id=data.dataset.categories[int(number)]["id"],
                )
                for (x0, y0, x1, y1), score, number in zip(boxes.xyxy, boxes.conf, boxes.cls, strict=True)
            ],
        )


def default_prompts(dataset: Dataset) -> dict[str, str]:
    """Prompt of each defect type, in class order: product and type, underscores as spaces."""
    return {
        category["name"]: f"{dataset.product} {category['name']}".replace("_", " ") for category in dataset.categories
    }


def _start_weights(config: Config) -> Path | None:
    """Checkpoint to start from; None for random."""
    if config.weights == NONE:
        return None
    if config.weights == AUTO:
        scales = "smlxn"
        names = [f"yolov8{scale}-worldv2" for scale in scales] + [f"yolov8{scale}" for scale in scales]
        found = find_local(names)
        return found if found is not None else _official(_OFFICIAL)
    path = Path(config.weights)
    return path if path.is_file() or path.suffix else _official(config.weights)


def _official(name: str) -> Path:
    """An official checkpoint by Ultralytics' own download."""
    from maskbridge.weights import cache_folder

    target = cache_folder() / f"{name}.pt"
    if target.is_file():
        return target
    from ultralytics.utils.downloads import attempt_download_asset

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = Path(attempt_download_asset(target))
    except Exception as error:  # Ultralytics raises whatever its HTTP client does
        raise _no_weights(target) from error
    if not found.is_file():
        raise _no_weights(target)
    return found


def _no_weights(target: Path) -> WeightsError:
    return WeightsError(
        "start weights cannot be had",
        where=target.name,
        expected=f"{target.name} in MASKBRIDGE_WEIGHTS or {target.parent}",
        remedy="give a YOLOv8 or YOLO-World checkpoint with --weights FILE, or --weights none for a random start",
    )


def _check_types(data: TrainData) -> None:
    names = [category["name"] for category in data.dataset.categories]
    if not any(data.dataset.annotations_by_image[image_id] for image_id in data.train):
        raise DatasetError("no image to train on has a defect", where=data.dataset.path, found=f"fold {data.fold}")
    if len(names) > MOST_TYPES:
        raise DatasetError(
            "too many defect types",
            where=data.dataset.path,
            found=len(names),
            expected=f"at most {MOST_TYPES}",
        )
    for name in names:
        if "/" in name:
            raise DatasetError(
                "a defect type has a slash, where YOLO-World cuts names", where=data.dataset.path, found=name
            )


def _number(fold: int | str) -> int:
    if not isinstance(fold, int):
        raise OptionError("yolo-world is trained on folds", found=fold)
    return fold
