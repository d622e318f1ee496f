"""Print the dataset card."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("--json", action="store_true", help="print the card as JSON instead of Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.card import card_text
    from maskbridge.dataset import Dataset

    card = Dataset.open(arguments.dataset).card
    if arguments.json:
        print(json.dumps(card, indent=1, ensure_ascii=False))
    else:
        print(card_text(card), end="")
    return 0
