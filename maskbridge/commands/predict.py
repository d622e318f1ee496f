"""Predict the images of a part."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge import plugins


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    """The first word that is a run brings the options of its approach along, wherever it stands."""
    from maskbridge.options import add_options
    from maskbridge.predictions import Run

    parser.add_argument("run_path", type=Path, metavar="RUN", help="trained run")
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument(
        "--part", choices=("val", "test"), default="test", help="part of the run's fold (default: test)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    run = next((word for word in words if (Path(word) / "run.json").is_file()), None)
    if run is not None:
        approach = Run.open(run).info["approach"]
        module = plugins.load("approach", approach)
        fields = getattr(module, "PREDICT_OPTIONS", ())
        if fields:
            group = parser.add_argument_group(f"options of {approach}; what is not given stays as it is in the run")
            add_options(group, module.Config, fields)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.options import given
    from maskbridge.predictions import Run
    from maskbridge.training import predict_run

    run = Run.open(arguments.run_path)
    changes = given(plugins.load("approach", run.info["approach"]).Config, arguments)
    predict_run(run, run.dataset(arguments.dataset), arguments.part, device=arguments.device, changes=changes)
    print(run.path / "predictions" / arguments.part)
    return 0
