"""Ultralytics' own YOLO-World trainer with given text features, atomic checkpoints and no surprises.

Text features are ours and lie beside `data.yaml`; everything else (losses, augmentation, optimiser, validation,
several GPUs) is Ultralytics'. Importing this module imports torch and ultralytics. Ultralytics is AGPL-3.0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from finetune._yolo_world_text import read_features
from finetune._yolo_world_ultralytics import read  # before Ultralytics itself
from maskbridge.errors import DatasetError
from maskbridge.files import write_bytes, write_json
from maskbridge.memory import keep_freed_memory

import numpy as np  # isort: skip
import torch  # isort: skip
from ultralytics.models.yolo.world.train import WorldTrainer  # isort: skip
from ultralytics.nn.tasks import WorldModel  # isort: skip
from ultralytics.utils import RANK, dist  # isort: skip

#: What a training leaves in its folder for the next start: checkpoints that are never half-written.
RESUME, KEPT_BEST = "resume.pt", "kept-best.pt"
#: There too, once the last epoch is over, whatever ended training.
FINISHED = "finished"
#: Beside `data.yaml`: text features by class name.
FEATURES = "text-features.npz"
#: There too: the epochs that were asked for, of which a time budget may allow fewer.
MOST_EPOCHS = "most-epochs.txt"
#: In the folder above: how many tensors of the start weights fitted.
TRANSFERRED = "transferred.json"

keep_freed_memory()


class TooLittleMemory(Exception):
    """A batch does not fit into memory."""


class Trainer(WorldTrainer):  # type: ignore[misc]
    """`WorldTrainer` with given text features, atomic checkpoints, and no silent halving of the batch."""

    def train(self) -> None:
        """Train; what processes on several GPUs tell each other through files lies with everything else of the run."""
        dist.USER_CONFIG_DIR = Path(self.save_dir)
        os.environ["YOLO_CONFIG_DIR"] = str(self.save_dir)
        super().train()

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the model, load the start weights, and note how many tensors fitted."""
        yaml_file = cfg["yaml_file"] if isinstance(cfg, dict) else cfg
        model = WorldModel(yaml_file, ch=self.data["channels"], nc=min(self.data["nc"], 80), verbose=False)
        if weights is not None:
            model.load(weights, verbose=False)
            if not self.resume and RANK in {-1, 0}:
                have, want = weights.state_dict(), model.state_dict()
                fitted = sum(name in have and have[name].shape == tensor.shape for name, tensor in want.items())
                write_json(Path(self.args.project) / TRANSFERRED, {"fitted": fitted, "of": len(want)})
        if _set_class_features not in self.callbacks["on_pretrain_routine_end"]:
            self.add_callback("on_pretrain_routine_end", _set_class_features)
        return model

    def set_text_embeddings(self, datasets: list[Any], batch: int | None) -> None:
        """Features by class name; nothing is cached beside the images."""
        table = read_features(Path(self.args.data).with_name(FEATURES))
        names = {name for dataset in datasets for name in dataset.category_names}
        self.text_embeddings = {name: torch.from_numpy(table[name]).to(self.device) for name in names}

    def save_model(self) -> Any:
        """Save as Ultralytics does, then keep copies that are never half-written, the best one first."""
        done = super().save_model()
        if self.best_fitness == self.fitness:
            write_bytes(Path(self.save_dir) / KEPT_BEST, self.best.read_bytes())
        write_bytes(Path(self.save_dir) / RESUME, self.last.read_bytes())
        if self.stop:
            write_bytes(Path(self.save_dir) / FINISHED, b"")
        return done

    def final_eval(self) -> None:
        """Ultralytics' own, of checkpoints that can be read: it passes over others without a word.

        Raises:
            WeightsError: When one cannot, such as one that was replaced while training went on.
        """
        if RANK in {-1, 0}:
            for checkpoint in (self.last, self.best):
                read(checkpoint)
        super().final_eval()

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> Any:
        """Build it, and see that Ultralytics has left no image out, which it does in silence.

        Raises:
            DatasetError: When it has.
        """
        built = super().build_dataset(img_path, mode, batch)
        folders = [Path(path) for path in (img_path if isinstance(img_path, list) else [img_path])]
        given = {str(file) for folder in folders if folder.is_dir() for file in folder.iterdir()}
        missing = sorted(given - {str(Path(file)) for file in built.im_files}) if given else []
        if missing:
            raise DatasetError(
                "Ultralytics cannot read images",
                where=missing[0],
                found=f"{len(missing)} of {len(given)}",
                expected="sides of 10 px or more, in a format that Pillow opens",
            )
        return built

    def _build_train_pipeline(self) -> None:
        """Ultralytics builds it anew after halving a batch that did not fit: another training than was asked for.

        Raises:
            TooLittleMemory: Then.
        """
        if self.optimizer is not None:
            raise TooLittleMemory
        super()._build_train_pipeline()

    def _setup_scheduler(self) -> None:
        """With a time budget Ultralytics sets the epochs that fit; never more than were asked for."""
        epochs: int = self.epochs  # type: ignore[has-type]
        most = Path(self.args.data).with_name(MOST_EPOCHS)
        if self.args.time and most.is_file():
            self.epochs = self.args.epochs = min(epochs, int(most.read_text(encoding="utf-8")))
        super()._setup_scheduler()


def _set_class_features(trainer: Any) -> None:
    """Give the averaged model, which is validated and kept, the features of all classes in their order."""
    table = read_features(Path(trainer.args.data).with_name(FEATURES))
    set_features(trainer.ema.ema, np.stack([table[name] for name in trainer.data["names"].values()]))


def set_features(model: Any, features: Any) -> None:
    """What `WorldModel.set_classes` does, with features (N x 512, float32) instead of texts."""
    model.txt_feats = torch.as_tensor(features).unsqueeze(0).to(next(model.parameters()).device)
    model.model[-1].nc = len(features)
