"""Make one self-contained page of runs: leaderboard, curves, every image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evaluation.commands._runs import add_run_arguments, board_of
from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    from evaluation.report import ReportOptions
    from maskbridge.options import add_options

    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs on the same images")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="page to write, such as report.html")
    add_run_arguments(parser)
    add_options(parser, ReportOptions)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from evaluation.report import ReportOptions, refuse_taken, write_report
    from maskbridge.options import from_arguments

    refuse_taken(arguments.out)
    board = board_of(arguments, arguments.runs)
    write_report(board, arguments.out, from_arguments(ReportOptions, arguments))
    show(arguments.out)
    return 0
