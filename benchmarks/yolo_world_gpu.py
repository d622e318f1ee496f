"""One line of `yolo_world.py gpu`: images per second and peak memory of one training, in a process of its own.

python benchmarks/yolo_world_gpu.py ours s path/to/data.yaml out
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script beside this one has the name of a package

from finetune import _yolo_world_trainer as ours
from finetune._yolo_world_text import HASHED, hashed, write_features

IMAGE_SIZE, BATCH, EPOCHS = 640, 16, 3


def main(arm: str, scale: str, data: Path, out: Path) -> None:
    import torch
    from ultralytics.models.yolo.world.train import WorldTrainer
    from ultralytics.nn.tasks import WorldModel
    from ultralytics.utils import YAML

    names = list(YAML.load(data)["names"].values())
    write_features(data.with_name(ours.FEATURES), names, np.stack([hashed(name) for name in names]), HASHED)
    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "model": f"yolov8{scale}-worldv2.yaml", "pretrained": False, "data": str(data), "epochs": EPOCHS,
        "imgsz": IMAGE_SIZE, "batch": BATCH, "device": "0", "plots": False, "val": False, "project": str(out),
        "name": "train", "exist_ok": True,
    }  # fmt: skip
    if arm == "ours":
        trainer = ours.Trainer(overrides={**options, "optimizer": "AdamW", "nbs": BATCH, "cache": "ram", "amp": True})
    else:
        rows = {name: torch.from_numpy(hashed(name)) for name in names}
        WorldModel.get_text_pe = lambda self, text, *_, **__: (
            torch.stack([rows[name] for name in text]).unsqueeze(0).cuda()
        )
        trainer = WorldTrainer(overrides=options)
    if arm == "loading":
        trainer._setup_train()
        rates = []
        for _ in range(EPOCHS):
            start, count = time.perf_counter(), 0
            for batch in trainer.train_loader:
                count += len(batch["img"])
            rates.append(count / (time.perf_counter() - start))
        print(json.dumps({"arm": arm, "scale": scale, "images_per_second": max(rates)}))
        return
    times: list[float] = []
    trainer.add_callback("on_train_epoch_start", lambda _: times.append(time.perf_counter()))
    trainer.add_callback("on_train_epoch_end", lambda _: times.append(time.perf_counter()))
    trainer.train()
    count = len(trainer.train_loader.dataset)
    rates = [count / (end - start) for start, end in zip(times[2::2], times[3::2], strict=True)]  # the first warms up
    peak = torch.cuda.max_memory_reserved() / 2**30
    print(json.dumps({"arm": arm, "scale": scale, "images_per_second": max(rates), "peak_gib": round(peak, 2)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
