"""Write a dataset in the format of another tool."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge import plugins
from maskbridge.errors import OptionError
from maskbridge.progress import say, show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    from maskbridge.export import ExportOptions
    from maskbridge.options import add_options

    formats = [name for name in plugins.names("format") if "export" in plugins.functions("format", name)]
    parser.add_argument("format", metavar="FORMAT", help=f"format to write: {', '.join(formats)}")
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    add_options(parser, ExportOptions)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.dataset import Dataset
    from maskbridge.export import ExportOptions
    from maskbridge.files import read_json
    from maskbridge.options import from_arguments

    module = plugins.load("format", arguments.format)
    if not hasattr(module, "export"):
        remedy = f"`maskbridge convert {arguments.format}` reads it"
        raise OptionError("this format is for reading only", found=arguments.format, remedy=remedy)
    module.export(Dataset.open(arguments.dataset), arguments.out, from_arguments(ExportOptions, arguments))
    report = read_json(arguments.out / "export-report.json")
    counts = ", ".join(f"{name} {count}" for name, count in report["instances"].items())
    say("; ".join([f"{arguments.out}: instances {counts}", *map(_told, report["polygons"].items())]))
    show(arguments.out)
    return 0


def _told(polygons: tuple[str, dict[str, float]]) -> str:
    reader, ious = polygons
    means = {"ultralytics": "through Ultralytics' loader", "area": "filled as areas"}
    return f"polygons {means[reader]}: {ious['exact']} of {ious['count']} exact, smallest IoU {ious['smallest']}"
