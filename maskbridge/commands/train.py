"""Train an approach on one fold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from maskbridge.commands._training import add_training_arguments, training_of
from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    add_training_arguments(parser, words, fold=True)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge import nodes
    from maskbridge.training import train_run

    dataset, config, settings = training_of(arguments)
    if nodes.is_another(config):
        nodes.learn_along(arguments.approach, dataset, config, [settings.fold], settings)
        return 0
    show(train_run(arguments.approach, dataset, arguments.run_path, config, settings).path)
    return 0
