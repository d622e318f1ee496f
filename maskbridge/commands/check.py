"""List every problem of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge.progress import counted, show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.check import check_and_remark

    problems, remarks = check_and_remark(arguments.dataset)
    for problem in problems:
        show(problem)
    for remark in remarks:
        show(f"to look at: {remark}")
    show(f"{arguments.dataset}: {counted(len(problems), 'problem')}" if problems else f"{arguments.dataset}: whole")
    return 1 if problems else 0
