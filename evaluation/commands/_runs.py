"""What `evaluate`, `compare` and `report` share: runs, their part, their dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_MOST_SAMPLES = 100_000


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the runs are judged."""
    parser.add_argument(
        "--part", choices=("val", "test", "crossval"), help="default: crossval where present, else test"
    )
    parser.add_argument(
        "--dataset", type=Path, metavar="DIR", help="where the dataset lies now (default: as in run.json)"
    )
    parser.add_argument("--samples", type=_count, default=1000, help="bootstrap samples of an interval (default: 1000)")


def board_of(arguments: argparse.Namespace, runs: list[Path]) -> Any:
    """Evaluate runs side by side."""
    from evaluation.leaderboard import evaluate_runs

    return evaluate_runs(runs, part=arguments.part, dataset=arguments.dataset, samples=arguments.samples)


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= _MOST_SAMPLES:
        raise argparse.ArgumentTypeError(f"{text} is no number of samples from 1 to {_MOST_SAMPLES}")
    return number
