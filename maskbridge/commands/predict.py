"""Predict the images of a part."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from maskbridge import plugins
from maskbridge.progress import show

#: Options without a value.
_FLAGS = ("--overwrite", "--quiet")


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments; the first word that is no option and no option's value is the run, whose approach has more.

    Raises:
        RunError: When it is none.
    """
    from maskbridge.options import add_options
    from maskbridge.predictions import Run

    parser.add_argument("run_path", type=Path, metavar="RUN", help="trained run")
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument(
        "--part",
        choices=("val", "test"),
        default="test",
        help="part of the run's fold; a run over all folds predicts test of each (default: test)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="run to make for it, of the same weights; without, RUN gets the part and other options are refused "
        "(default: none)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there (default: no)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    positional = [word for before, word in itertools.pairwise(["", *words]) if _is_positional(word, before)]
    if len(positional) > 1 or (positional and (Path(positional[0]) / "run.json").is_file()):
        approach = Run.open(positional[0]).info["approach"]
        module = plugins.load("approach", approach)
        fields = getattr(module, "PREDICT_OPTIONS", ())
        if fields:
            group = parser.add_argument_group(f"options of {approach}, with --out; what is not given is as in the run")
            add_options(group, module.Config, fields)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from maskbridge.crossval import PART, predict_folds
    from maskbridge.errors import RunError
    from maskbridge.options import given, require_usable
    from maskbridge.predicting import predict_run
    from maskbridge.predictions import Run
    from maskbridge.training import Settings

    require_usable(Settings, {"device": arguments.device})
    run = Run.open(arguments.run_path)
    changes = given(plugins.load("approach", run.info["approach"]).Config, arguments)
    dataset, part = run.dataset(arguments.dataset), arguments.part
    how = {"device": arguments.device, "changes": changes, "out": arguments.out, "overwrite": arguments.overwrite}
    if run.info["fold"] == "all":
        if part != "test":
            remedy = f"predict one fold: {run.path}/fold0"
            raise RunError("is a merged cross-validation", where=run.path, found=f"--part {part}", remedy=remedy)
        run, part = predict_folds(run, dataset, **how), PART
    else:
        run = predict_run(run, dataset, part, **how)
    show(run.path / "predictions" / part)
    return 0


def _is_positional(word: str, before: str) -> bool:
    """Whether a word is neither an option nor the value of one, such as `--prompts`."""
    takes_value = before.startswith("--") and "=" not in before and before not in _FLAGS
    return not takes_value and not word.startswith("-")
