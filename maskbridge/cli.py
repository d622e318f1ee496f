"""The command line: `maskbridge COMMAND …`.

Exit 0: done. 1: something the user gave cannot be used, told in one line on standard error. 2: usage.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskbridge import __version__, plugins
from maskbridge.errors import MaskbridgeError, OptionError
from maskbridge.progress import QUIET_VARIABLE, say

Command = Callable[[argparse.Namespace], int]
_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see the module's docstring for the exit codes."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    try:
        arguments = _parser(words).parse_args(words)
        if arguments.quiet:
            os.environ[QUIET_VARIABLE] = "1"
        run: Command = arguments.run
        return run(arguments)
    except MaskbridgeError as error:
        print(f"maskbridge: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("maskbridge: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (*_FULL, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        remedy = "free some space" if error.errno in _FULL else "choose a place that can be written"
        print(f"maskbridge: {error.filename or 'a file'}: {error.strerror}; {remedy}", file=sys.stderr)
    return 1


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maskbridge",
        description="From pixel masks to a fine-tuned detector and segmenter, and one comparison.",
    )
    parser.add_argument("--version", action="version", version=f"maskbridge {__version__}")
    parser.set_defaults(quiet=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command, *words = [word for word in argv if not word.startswith("-")] or [""]
    for name, (text, build) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--quiet", action="store_true", help="print results and errors only")
        if name == command:
            build(sub, words)
    return parser


def _build_sample(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a sample that is there")
    parser.set_defaults(run=_sample)


def _sample(arguments: argparse.Namespace) -> int:
    from maskbridge.sample import make_sample

    make_sample(arguments.out, seed=arguments.seed, overwrite=arguments.overwrite)
    say(f"{arguments.out}: a made-up product in MVTec layout")
    return 0


def _build_convert(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from maskbridge.convert import ConvertOptions
    from maskbridge.options import add_options

    layouts = [name for name in plugins.names("format") if "read" in plugins.functions("format", name)]
    parser.add_argument("layout", metavar="LAYOUT", help=f"layout of SOURCE: {', '.join(layouts)}")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of one product, or of several")
    parser.add_argument("out", type=Path, metavar="OUT", help="dataset folder to make (of several: their parent)")
    add_options(parser, ConvertOptions)
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from maskbridge.convert import ConvertOptions, convert
    from maskbridge.options import from_arguments

    options = from_arguments(ConvertOptions, arguments)
    for folder in convert(arguments.layout, arguments.source, arguments.out, options):
        print(folder)
    return 0


def _build_check(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from maskbridge.check import check

    problems = check(arguments.dataset)
    for problem in problems:
        print(problem)
    print(f"{arguments.dataset}: {len(problems)} problems" if problems else f"{arguments.dataset}: whole")
    return 1 if problems else 0


def _build_card(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("--json", action="store_true", help="print the card as JSON instead of Markdown")
    parser.set_defaults(run=_card)


def _card(arguments: argparse.Namespace) -> int:
    from maskbridge.card import card_text
    from maskbridge.dataset import Dataset

    card = Dataset.open(arguments.dataset).card
    if arguments.json:
        print(json.dumps(card, indent=1, ensure_ascii=False))
    else:
        print(card_text(card), end="")
    return 0


def _build_export(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from maskbridge.export import ExportOptions
    from maskbridge.options import add_options

    formats = [name for name in plugins.names("format") if "export" in plugins.functions("format", name)]
    parser.add_argument("format", metavar="FORMAT", help=f"format to write: {', '.join(formats)}")
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    add_options(parser, ExportOptions)
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from maskbridge.dataset import Dataset
    from maskbridge.export import ExportOptions
    from maskbridge.files import read_json
    from maskbridge.options import from_arguments

    module = plugins.load("format", arguments.format)
    if not hasattr(module, "export"):
        raise OptionError("this format is for reading only", found=arguments.format)
    module.export(Dataset.open(arguments.dataset), arguments.out, from_arguments(ExportOptions, arguments))
    counts = read_json(arguments.out / "export-report.json")["instances"]
    say(f"{arguments.out}: instances " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(arguments.out)
    return 0


def _build_train(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    _build_training(parser, words, fold=True)
    parser.set_defaults(run=_train)


def _build_crossval(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    _build_training(parser, words, fold=False)
    parser.set_defaults(run=_crossval)


def _build_training(parser: argparse.ArgumentParser, words: Sequence[str], *, fold: bool) -> None:
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
            parser.add_argument("--preset", choices=sorted(presets), help="named set of options")
        add_options(parser.add_argument_group(f"options of {approach}"), module.Config)


def _known_approach(name: str) -> str:
    """Raises: OptionError, which names the nearest one; before argparse complains of options it does not know."""
    plugins.load("approach", name)
    return name


def _training_of(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    from maskbridge.dataset import Dataset
    from maskbridge.options import from_arguments
    from maskbridge.training import Settings

    module = plugins.load("approach", arguments.approach)
    preset = getattr(arguments, "preset", None)
    base = module.PRESETS[preset] if preset else {}
    config = from_arguments(module.Config, arguments, base)
    return Dataset.open(arguments.dataset), config, from_arguments(Settings, arguments)


def _train(arguments: argparse.Namespace) -> int:
    from maskbridge.training import train_run

    dataset, config, settings = _training_of(arguments)
    print(train_run(arguments.approach, dataset, arguments.run_path, config, settings).path)
    return 0


def _crossval(arguments: argparse.Namespace) -> int:
    from maskbridge.crossval import crossval

    dataset, config, settings = _training_of(arguments)
    print(crossval(arguments.approach, dataset, arguments.run_path, config, settings).path)
    return 0


def _build_predict(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The first word that is a run brings the options of its approach along, wherever it stands."""
    from maskbridge.options import add_options
    from maskbridge.predictions import Run

    parser.add_argument("run_path", type=Path, metavar="RUN", help="trained run")
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument(
        "--part", choices=("val", "test"), default="test", help="part of the run's fold (default: test)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.set_defaults(run=_predict)
    run = next((word for word in words if (Path(word) / "run.json").is_file()), None)
    if run is not None:
        approach = Run.open(run).info["approach"]
        module = plugins.load("approach", approach)
        fields = getattr(module, "PREDICT_OPTIONS", ())
        if fields:
            group = parser.add_argument_group(f"options of {approach}; what is not given stays as it was trained")
            add_options(group, module.Config, fields)


def _predict(arguments: argparse.Namespace) -> int:
    from maskbridge.options import given
    from maskbridge.predictions import Run
    from maskbridge.training import predict_run

    run = Run.open(arguments.run_path)
    changes = given(plugins.load("approach", run.info["approach"]).Config, arguments)
    predict_run(run, run.dataset(arguments.dataset), arguments.part, device=arguments.device, changes=changes)
    print(run.path / "predictions" / arguments.part)
    return 0


def _build_evaluate(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs on the same images")
    parser.add_argument(
        "--part", choices=("val", "test", "crossval"), help="default: crossval where present, else test"
    )
    parser.add_argument(
        "--dataset", type=Path, metavar="DIR", help="where the dataset lies now (default: as in run.json)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for leaderboard.md and leaderboard.json")
    parser.add_argument("--json", action="store_true", help="print the leaderboard as JSON instead of Markdown")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    import importlib

    board = importlib.import_module("evaluation.leaderboard").evaluate_runs(
        arguments.runs, part=arguments.part, dataset=arguments.dataset, out=arguments.out
    )
    print(json.dumps(board.to_json(), indent=1, ensure_ascii=False) if arguments.json else board.markdown())
    return 0


def _build_list(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument("what", choices=("formats", "approaches"), help="what to list")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    kind: plugins.Kind = "format" if arguments.what == "formats" else "approach"
    rows = {name: plugins.summary(kind, name) for name in plugins.names(kind)}
    print(
        json.dumps(rows, indent=1) if arguments.json else "\n".join(f"{name:14} {text}" for name, text in rows.items())
    )
    return 0


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser, Sequence[str]], None]]] = {
    "sample": ("make a small made-up product in MVTec layout", _build_sample),
    "convert": ("turn images and masks into a dataset", _build_convert),
    "check": ("list every problem of a dataset", _build_check),
    "card": ("print the dataset card", _build_card),
    "export": ("write a dataset in the format of another tool", _build_export),
    "train": ("train an approach on one fold", _build_train),
    "predict": ("predict the images of a part", _build_predict),
    "crossval": ("train and predict every fold, and merge them", _build_crossval),
    "evaluate": ("score runs side by side", _build_evaluate),
    "list": ("list formats or approaches", _build_list),
}
