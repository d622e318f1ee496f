"""Turn images and masks into a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge import plugins
from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    from maskbridge.convert import ConvertOptions
    from maskbridge.options import add_options

    layouts = [name for name in plugins.names("format") if "read" in plugins.functions("format", name)]
    parser.add_argument("layout", metavar="LAYOUT", help=f"layout of SOURCE: {', '.join(layouts)}")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of one product, or of several")
    parser.add_argument("out", type=Path, metavar="OUT", help="dataset folder to make (of several: their parent)")
    add_options(parser, ConvertOptions)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.convert import ConvertOptions, convert
    from maskbridge.options import from_arguments

    options = from_arguments(ConvertOptions, arguments)
    for folder in convert(arguments.layout, arguments.source, arguments.out, options):
        show(folder)
    return 0
