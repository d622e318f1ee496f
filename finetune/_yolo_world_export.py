"""A YOLO-World checkpoint for other runtimes.

export_onnx(Path("runs/bottle-yolo-world-0/weights/best.pt"), 320, Path("defects.onnx"))
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

from finetune._yolo_world_ultralytics import load
from maskbridge.errors import OptionError
from maskbridge.files import write_bytes
from maskbridge.folders import scratch_folder


def export_onnx(checkpoint: Path, imgsz: int, out: Path) -> None:
    """Write an ONNX file by Ultralytics' own exporter, with free batch, height and width.

    Raises:
        OptionError: When the onnx package is missing; Ultralytics would install it.
        WeightsError: When the checkpoint cannot be read.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            "ONNX needs a package that is not here",
            found=f"no {', '.join(missing)}",
            remedy=f"pip install {' '.join(missing)}",
        )
    load(checkpoint)
    from ultralytics import YOLOWorld

    with scratch_folder("onnx") as folder:
        copy = folder / "model.pt"  # Ultralytics writes beside the checkpoint
        copy.write_bytes(checkpoint.read_bytes())
        with warnings.catch_warnings():  # of torch's exporter, about itself
            warnings.simplefilter("ignore")
            made = YOLOWorld(copy).export(format="onnx", imgsz=imgsz, dynamic=True, simplify=False, device="cpu")
        write_bytes(out, Path(made).read_bytes())
