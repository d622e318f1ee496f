"""Print the dataset card."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("--json", action="store_true", help="print the card as JSON instead of Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.card import card_text
    from maskbridge.dataset import Dataset

    dataset = Dataset.open(arguments.dataset)
    if arguments.json:
        show(json.dumps(dataset.card, indent=1, ensure_ascii=False))
    else:
        show(card_text(dataset.whole_card))
    return 0
