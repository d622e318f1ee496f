"""Score runs side by side; metrics.json is written into each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from evaluation.commands._runs import add_run_arguments, board_of
from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs on the same images")
    add_run_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for leaderboard.md, .json and .csv (default: none are written)"
    )
    parser.add_argument("--json", action="store_true", help="print the leaderboard as JSON instead of Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    board = board_of(arguments, arguments.runs)
    text = json.dumps(board.to_json(), indent=1, ensure_ascii=False) if arguments.json else board.markdown()
    if arguments.out is not None:
        board.write(arguments.out)
    board.write_metrics()
    show(text)
    return 0
