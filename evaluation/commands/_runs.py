"""What `evaluate`, `compare` and `report` share: runs, their part, their dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_MOST_SAMPLES = 100_000
_MOST_DETECTIONS = 10_000


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the runs are judged."""
    parser.add_argument(
        "--part", choices=("val", "test", "crossval"), help="default: crossval where present, else test"
    )
    parser.add_argument(
        "--dataset", type=Path, metavar="DIR", help="where the dataset lies now (default: as in run.json)"
    )
    parser.add_argument(
        "--samples", type=_samples, default=1000, help="bootstrap samples of an interval (default: 1000)"
    )
    parser.add_argument(
        "--max-detections",
        type=_detections,
        default=100,
        metavar="N",
        help="detections of an image that COCO figures look at, the surest first (default: 100, as COCO)",
    )


def board_of(arguments: argparse.Namespace, runs: list[Path]) -> Any:
    """Evaluate runs side by side."""
    from evaluation.leaderboard import evaluate_runs

    return evaluate_runs(
        runs,
        part=arguments.part,
        dataset=arguments.dataset,
        samples=arguments.samples,
        max_detections=arguments.max_detections,
    )


def _samples(text: str) -> int:
    return _count(text, "samples", _MOST_SAMPLES)


def _detections(text: str) -> int:
    return _count(text, "detections", _MOST_DETECTIONS)


def _count(text: str, what: str, most: int) -> int:
    number = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not 1 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text} is no number of {what} from 1 to {most}")
    return number
