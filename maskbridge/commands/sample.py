"""Make a small made-up product in MVTec layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge.options import whole_number
from maskbridge.progress import say


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--seed", type=whole_number, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a sample that is there")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.options import require_usable
    from maskbridge.sample import make_sample
    from maskbridge.training import Settings

    require_usable(Settings, {"seed": arguments.seed})
    make_sample(arguments.out, seed=arguments.seed, overwrite=arguments.overwrite)
    say(f"{arguments.out}: a made-up product in MVTec layout")
    return 0
