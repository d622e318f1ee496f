"""A run's model as a file for other programs, in what its approach offers.

export_run(Path("runs/bottle-yolo-world-0"), Path("defects.onnx"), "onnx")
"""

from __future__ import annotations

from pathlib import Path

from maskbridge import plugins
from maskbridge.errors import OptionError, RunError
from maskbridge.files import write_bytes
from maskbridge.folders import held, scratch_folder
from maskbridge.options import from_stored
from maskbridge.predictions import Run
from maskbridge.start_weights import mark, seen_of_run


def export_run(path: Path, out: Path | None, format: str, *, overwrite: bool = False) -> Path:
    """Write a run's model in a format that its approach offers.

    Args:
        path: A run of one fold.
        out: File to write; by default one beside the run's checkpoint, named by approach and format.
        format: One of the approach's `MODEL_FORMATS`.
        overwrite: Replace a file that is there.

    Returns:
        The file.

    Raises:
        RunError: When the run is a merged cross-validation, or `out` is taken.
        OptionError: When the approach does not offer the format.
    """
    run = Run.open(path)
    name = run.info["approach"]
    approach = plugins.load("approach", name)
    formats: dict[str, str] = getattr(approach, "MODEL_FORMATS", {})
    if format not in formats:
        raise OptionError(
            f"{name} is not exported in this format",
            found=format,
            expected=", ".join(formats) or "none: it offers no format",
        )
    if run.info["fold"] == "all":
        raise RunError("is a merged cross-validation", where=run.path, remedy=f"export one fold: {run.path}/fold0")
    out = out or run.weights / f"{name}.{formats[format]}"
    if out.is_dir():
        raise RunError("is a folder", where=out, expected="a file to write")
    if out.exists() and not overwrite:
        raise RunError("is in the way", where=out, remedy="name another file, or add --overwrite")
    config = from_stored(approach.Config, run.info["options"], run.path / "run.json")
    with scratch_folder("export") as folder:
        approach.export_model(format, config, run.weights, folder / out.name)
        mark(folder / out.name, seen_of_run(run.path))
        with held(run.path, shared=True):
            write_bytes(out, (folder / out.name).read_bytes())
    return out
