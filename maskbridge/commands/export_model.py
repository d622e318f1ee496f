"""Write a run's model for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="trained run of one fold")
    parser.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="file to write (default: RUN/weights/APPROACH.FORMAT)"
    )
    parser.add_argument(
        "--format", required=True, metavar="F", help="what the run's approach offers: onnx (yolo-world), …"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there (default: no)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.model_export import export_run

    show(export_run(arguments.run_path, arguments.out, arguments.format, overwrite=arguments.overwrite))
    return 0
