"""SAM: segment defects with Segment Anything, its mask decoder trained to find them without a prompt.

    maskbridge train sam datasets/bottle runs/bottle-sam-0 --fold 0
    maskbridge train sam datasets/bottle runs/tiny --preset tiny       # small, from scratch

The image encoder stays frozen and runs once per image: its output is kept on disk and shared by all folds.
What is trained is the mask decoder and, where the encoder is not SAM's own, a small neck before it. The
sigmoid of the low-resolution logits is the anomaly map.
Kirillov et al., Segment Anything, 2023, https://arxiv.org/abs/2304.02643.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.errors import DatasetError, OptionError, WeightsError
from maskbridge.files import read_json, write_bytes, write_json
from maskbridge.negatives import negative_count
from maskbridge.weights import AUTO, NONE

if TYPE_CHECKING:
    import torch

    from finetune._sam_model import Model

SUPERVISED = True
PREDICT_OPTIONS = ("prompts",)

PRESETS = {
    "tiny": {"arch": "tiny", "weights": NONE, "image_size": 128, "epochs": 10, "lr": 1e-3},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    arch: Literal["auto", "vit_b", "vit_l", "vit_h", "backbone", "tiny"] = "auto"
    """Image encoder: SAM's own (vit_b, vit_l, vit_h), a pretrained torchvision network (backbone), or a small
    random ViT (tiny). auto: vit_b if its checkpoint is at hand, else backbone if its weights are."""

    weights: str = AUTO
    """SAM's weights: a checkpoint, auto (look it up, else download it) or none (random). backbone and tiny
    take the prompt encoder and mask decoder from it."""

    backbone: str = "mobilenet_v2"
    """Torchvision network of the arch backbone."""

    backbone_weights: str = AUTO
    """Weights of the backbone: a file, auto or none (random)."""

    image_size: int = 384
    """Longest side that images are resized to, pixels; the official models always take 1024."""

    epochs: int = 10
    """Passes over the defective images."""

    lr: float = 5e-4
    """Learning rate at its height."""

    weight_decay: float = 1e-2
    """Weight decay of AdamW."""

    batch: int = 8
    """Images in one step."""

    negatives: str = "1x"
    """Good images in an epoch, drawn anew each time: all, a number, or a ratio to the defective ones (1.5x)."""

    patience: int = 8
    """Epochs without a better validation dice after which training stops."""

    prompts: Literal["none"] = "none"
    """What points SAM at defects: none, the decoder finds them by itself."""


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Train the mask decoder, and the neck where there is one.

    Writes `sam.pt`, a plain SAM state dict, and `sam.json`, how to build the model for it.

    Raises:
        DatasetError: When no image of the training part has a defect.
        OptionError: When an option does not fit.
        WeightsError: When weights cannot be found or do not fit.
    """
    import torch

    from finetune._sam_checkpoints import start
    from finetune._sam_embeddings import Embeddings
    from finetune._sam_training import Examples, Schedule, fit

    device = _device(context.device)
    table = data.dataset.annotations_by_image
    defective = [image_id for image_id in data.train if table[image_id]]
    good = [image_id for image_id in data.train if not table[image_id]]
    if not defective:
        raise DatasetError("no image to train on has a defect", where=data.dataset.path, found=f"fold {data.fold}")
    _check(config)
    schedule = Schedule(
        epochs=config.epochs,
        lr=config.lr,
        weight_decay=config.weight_decay,
        batch=config.batch,
        goods=negative_count(config.negatives, good=len(good), defective=len(defective)),
        patience=config.patience,
    )
    torch.manual_seed(context.seed)
    model, weights_from = start(config)
    model.sam.to(device)
    embeddings = Embeddings(model, device)
    started = time.perf_counter()
    for image_id in context.track([*data.train, *data.val], "image embeddings"):
        embeddings.features(data.dataset, image_id)
    embedding_seconds = time.perf_counter() - started
    facts = fit(
        model,
        Examples(data.dataset, model, embeddings),
        good=good,
        defective=defective,
        val=data.val if any(table[image_id] for image_id in data.val) else (),
        schedule=schedule,
        context=context,
    )
    _save(model, config, weights)
    return Trained(
        parameters=sum(parameter.numel() for parameter in model.sam.parameters()),
        weights_from=weights_from,
        facts={
            "arch": model.arch,
            "embedding_seconds": round(embedding_seconds, 2),
            "good_images_per_epoch": schedule.goods,
            **facts,
        },
    )


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Anomaly map of each image, without padding, at the decoder's resolution; its maximum is the score.

    Raises:
        WeightsError: When the checkpoint is not there or does not fit.
    """
    import torch

    from finetune._sam_embeddings import Embeddings, crop_padding

    model = _load(weights)
    device = _device(context.device)
    model.sam.to(device)
    embeddings = Embeddings(model, device)
    for image_id in context.track(data.image_ids, "predicting"):
        with torch.inference_mode():
            features = torch.from_numpy(embeddings.compute(data.dataset, image_id)).to(device).float()
            logits, _ = model.decode(model.neck(features[None]))
            low = torch.sigmoid(logits[0]).cpu()
            size_hw = data.dataset.image_by_id[image_id].size_hw
            anomaly = crop_padding(low, size_hw, model.image_size).numpy()
        yield Prediction(image_id=image_id, score=float(anomaly.max()), map=anomaly)


def _check(config: Config) -> None:
    for name, least in (("epochs", 1), ("batch", 1), ("patience", 0), ("lr", 0.0), ("weight_decay", 0.0)):
        value = getattr(config, name)
        if not least <= value < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise OptionError(f"{option} cannot be used", found=value, expected=f"{least} or more")


def _device(name: str) -> torch.device:
    import torch

    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError("--device cannot be used", found=name, remedy="try --device auto") from error


def _save(model: Model, config: Config, weights: Path) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in model.sam.state_dict().items()}, buffer)
    write_bytes(weights / "sam.pt", buffer.getvalue())
    card = {"arch": model.arch, "backbone": config.backbone, "image_size": model.image_size}
    write_json(weights / "sam.json", card)


def _load(weights: Path) -> Model:
    from finetune import _sam_checkpoints, _sam_model

    card = read_json(weights / "sam.json")
    try:
        model = _sam_model.build(str(card["arch"]), backbone=str(card["backbone"]), image_size=int(card["image_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            "does not say how to build the model", where=weights / "sam.json", found=repr(error)
        ) from error
    _sam_checkpoints.load_sam(model, weights / "sam.pt")
    return model
