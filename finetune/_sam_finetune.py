"""One process of a SAM training: model, cached embeddings, training, checkpoint.

launch(finetune, config, context, data, weights)
"""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric

from finetune._sam_checkpoints import save_run, start
from finetune._sam_embeddings import Embeddings
from finetune._sam_examples import Examples, Prompting
from finetune._sam_lora import adapter_state, add_adapters, merge_adapters
from finetune._sam_model import Model
from finetune._sam_training import Schedule, fit
from maskbridge.approach import Context, TrainData, Trained
from maskbridge.files import write_bytes
from maskbridge.negatives import negative_count
from maskbridge.progress import say
from maskbridge.weights import AUTO

if TYPE_CHECKING:
    from finetune.sam import Config


def finetune(fabric: Fabric, data: TrainData, weights: Path, config: Config, context: Context) -> Trained:
    """Train in this process and write the checkpoint in the first one; see `finetune.sam.train`."""
    table = data.dataset.annotations_by_image
    defective = [image_id for image_id in data.train if table[image_id]]
    good = [image_id for image_id in data.train if not table[image_id]]
    schedule = Schedule(
        epochs=config.epochs,
        lr=config.lr,
        neck_lr=config.neck_lr,
        weight_decay=config.weight_decay,
        focal_weight=config.focal_weight,
        batch=config.batch,
        accumulate=config.accumulate,
        chunk=config.chunk,
        goods=negative_count(config.negatives, good=len(good), defective=len(defective)),
        patience=config.patience,
    )
    torch.manual_seed(context.seed)
    model, weights_from = start(config)
    model = replace(model, box_mask=config.box_mask == "yes" or (config.box_mask == AUTO and bool(model.own_neck())))
    parameters = sum(parameter.numel() for parameter in model.sam.parameters())
    model.train_only("full" if config.train == "full" else "decoder")
    if config.train == "lora":
        add_adapters(model.sam, config.lora_rank, config.lora_targets)
    model.sam.to(fabric.device)
    started = time.perf_counter()
    embeddings = _embeddings(fabric, model, config)
    if embeddings is not None:
        pairs = [(i, view) for i in data.train for view in range(config.views)] + [(i, 0) for i in data.val]
        mine = pairs[fabric.global_rank :: fabric.world_size]
        for image_id, view in context.track(mine, "image embeddings") if fabric.is_global_zero else mine:
            embeddings.features(data.dataset, image_id, view)
        fabric.barrier()
    embedding_seconds = time.perf_counter() - started
    prompting = Prompting(
        kinds=config.trained_prompts,
        instances=config.instances,
        jitter=config.jitter,
        views=config.views,
        augment=config.augment,
        seed=context.seed,
    )
    facts = fit(
        fabric,
        model,
        Examples(data.dataset, model, embeddings, prompting, data.train),
        good=good,
        defective=defective,
        val=data.val if any(table[image_id] for image_id in data.val) else (),
        schedule=schedule,
        context=context,
    )
    trained = sum(parameter.numel() for parameter in model.trained())
    if fabric.is_global_zero:
        if config.train == "lora":
            _write_adapters(model, weights / "lora.pt")
        merge_adapters(model.sam)
        save_run(model, config.backbone, weights)
    fabric.barrier()
    return Trained(
        parameters=parameters,
        weights_from=weights_from,
        facts={
            "arch": model.arch,
            "trained_parameters": trained,
            "embedding_seconds": round(embedding_seconds, 2),
            "good_images_per_epoch": schedule.goods,
            **facts,
        },
    )


def _embeddings(fabric: Fabric, model: Model, config: Config) -> Embeddings | None:
    """The cache, where the encoder stays as it is and sees the same images again."""
    if config.train != "decoder":
        return None
    if config.augment and config.cache != "off":
        say("--augment shows every image anew: the encoder runs for each of them, nothing is cached")
    if config.augment or config.cache == "off":
        return None
    autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(fabric._precision.precision))
    return Embeddings(model, fabric.device, precision=config.cache, autocast=autocast)


def _write_adapters(model: Model, path: Path) -> None:
    """Adapters and everything else that was trained; laid over the start weights they give `sam.pt`."""
    trained = {name for name, parameter in model.sam.named_parameters() if parameter.requires_grad}
    state: dict[str, Any] = {
        name: tensor.cpu() for name, tensor in model.sam.state_dict().items() if name in trained
    } | adapter_state(model.sam)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())
