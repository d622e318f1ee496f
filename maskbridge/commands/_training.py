"""What `train` and `crossval` share: an approach, a dataset, a run, and the options of the approach."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maskbridge import plugins


def add_training_arguments(parser: argparse.ArgumentParser, words: Sequence[str], *, fold: bool) -> None:
    """The first word that is an approach brings its options along, wherever it stands."""
    from maskbridge.options import add_options
    from maskbridge.training import Settings

    known = plugins.names("approach")
    approach = next((word for word in words if word in known), None)
    parser.add_argument(
        "approach",
        type=_known_approach,
        metavar=approach or f"{{{','.join(known)}}}",
        help="the approach; its options are listed when it is named",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("run_path", type=Path, metavar="RUN", help="run folder to make")
    add_options(parser, Settings, None if fold else ("device", "seed", "resume", "overwrite"))
    if approach is not None:
        module = plugins.load("approach", approach)
        presets = getattr(module, "PRESETS", {})
        if presets:
            names = f"{{{','.join(sorted(presets))}}}"
            parser.add_argument(
                "--preset", type=partial(_known_preset, presets), metavar=names, help="named set of options"
            )
        add_options(parser.add_argument_group(f"options of {approach}"), module.Config)


def training_of(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    from maskbridge.dataset import Dataset
    from maskbridge.options import from_arguments
    from maskbridge.training import Settings

    module = plugins.load("approach", arguments.approach)
    preset = getattr(arguments, "preset", None)
    base = module.PRESETS[preset] if preset else {}
    config = from_arguments(module.Config, arguments, base)
    return Dataset.open(arguments.dataset), config, from_arguments(Settings, arguments)


def _known_preset(presets: Mapping[str, Any], name: str) -> str:
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentTypeError(f"no preset {name!r} (choose from {', '.join(sorted(presets))}){hint}")
    return name


def _known_approach(name: str) -> str:
    """Raises: OptionError, which names the nearest one; before argparse complains of options it does not know."""
    plugins.load("approach", name)
    return name
