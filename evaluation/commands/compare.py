"""Compare two runs: the paired difference of every metric."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from evaluation.commands._runs import add_run_arguments, board_of
from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("one", type=Path, metavar="RUN", help="a run")
    parser.add_argument("other", type=Path, metavar="RUN", help="another on the same images")
    add_run_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from evaluation._leaderboard_markdown import Row
    from evaluation.comparison import compare_every_metric, comparison_text

    board = board_of(arguments, [arguments.one, arguments.other])
    one, other = sorted(board.evaluations, key=lambda each: each.run.path != arguments.one.resolve())
    comparisons = compare_every_metric(one, other)
    if arguments.json:
        show(json.dumps([each.to_json() for each in comparisons], indent=1, ensure_ascii=False))
    else:
        show(comparison_text(one, other, comparisons))
        for each in (one, other):
            for _, note in Row.of(each).marks:
                show(f"{each.run.name}: {note}.")
    return 0
