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
from finetune._sam_examples import Examples
from finetune._sam_lora import adapter_state, add_adapters, merge_adapters
from finetune._sam_model import Model, state_hash
from finetune._sam_training import fit
from maskbridge.approach import Context, TrainData, Trained, count_images
from maskbridge.files import write_bytes
from maskbridge.negatives import negative_count
from maskbridge.progress import say

if TYPE_CHECKING:
    from finetune.sam import Config


def finetune(fabric: Fabric, data: TrainData, weights: Path, config: Config, context: Context) -> Trained:
    """Train in this process and write the checkpoint in the first one; see `finetune.sam.train`."""
    table, unknown = data.dataset.annotations_by_image, data.dataset.without_mask
    defective = [image_id for image_id in data.train if table[image_id]]
    good = [image_id for image_id in data.train if not table[image_id] and image_id not in unknown]
    val = tuple(image_id for image_id in data.val if image_id not in unknown)
    if unknown & {*data.train, *data.val} and fabric.is_global_zero:
        say(f"sam: {len(unknown & {*data.train, *data.val})} defect images without a mask are left out")
    goods = negative_count(config.negatives, good=len(good), defective=len(defective))
    torch.manual_seed(context.seed)
    model, weights_from = start(config)
    parameters = sum(parameter.numel() for parameter in model.sam.parameters())
    origin = f"{model.arch}, {weights_from}, {state_hash(model.sam.state_dict(), '')[:8]}"
    model.train_only("full" if config.train == "full" else "decoder")
    if config.train == "lora":
        add_adapters(model.sam, config.lora_rank, config.lora_targets)
    model.sam.to(fabric.device)
    started = time.perf_counter()
    embeddings = _embeddings(fabric, model, config)
    if embeddings is not None:
        pairs = [(i, view) for i in sorted(good + defective) for view in range(config.views)] + [(i, 0) for i in val]
        mine = pairs[fabric.global_rank :: fabric.world_size]
        for image_id, view in context.track(mine, "image embeddings") if fabric.is_global_zero else mine:
            embeddings.features(data.dataset, image_id, view)
        fabric.barrier()
    embedding_seconds = time.perf_counter() - started
    facts = fit(
        fabric,
        model,
        Examples(data.dataset, model, embeddings, config, data.train, seed=context.seed),
        good=good,
        defective=defective,
        val=val if any(table[image_id] for image_id in val) else (),
        goods=goods,
        origin=origin,
        config=config,
        context=context,
    )
    trained = sum(parameter.numel() for parameter in model.trained())
    if fabric.is_global_zero:
        if config.train == "lora":
            _write_adapters(model, weights / "lora.pt")
        merge_adapters(model.sam)
        save_run(replace(model, trained_prompts=config.trained_prompts), config.backbone, weights)
    fabric.barrier()
    return Trained(
        parameters=parameters,
        weights_from=weights_from,
        trained_on=count_images(data.dataset, good + defective),
        facts={
            "arch": model.arch,
            "trained_parameters": trained,
            "embedding_seconds": round(embedding_seconds, 2),
            "good_images_per_epoch": goods,
            **facts,
        },
    )


def _embeddings(fabric: Fabric, model: Model, config: Config) -> Embeddings | None:
    """The cache, where the encoder stays as it is and sees the same images again."""
    if config.train != "decoder":
        if config.cache == "fp32":
            say(f"--train {config.train}: what the encoder says changes, nothing is cached")
        return None
    if config.augment and config.cache != "off":
        say("--augment shows every image anew: the encoder runs for each of them, nothing is cached")
    if config.augment or config.cache == "off":
        return None
    kind = fabric.device.type
    with fabric.autocast():
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
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
