"""Make a dataset whose training parts have synthetic defects with masks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    from baselines._synthesis import SynthesisOptions
    from maskbridge.options import add_options

    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="dataset folder to make")
    add_options(parser, SynthesisOptions)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from baselines._synthesis import SynthesisOptions, synthesize
    from maskbridge.dataset import Dataset
    from maskbridge.options import from_arguments

    synthesize(Dataset.open(arguments.dataset), arguments.out, from_arguments(SynthesisOptions, arguments))
    show(arguments.out)
    return 0
