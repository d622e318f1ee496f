"""The commands that make a report again, from what datasets and runs say of themselves.

    convert_command(dataset)          # "maskbridge convert mvtec bottle datasets/bottle"

Only what differs from the defaults is named. Paths are shown relative to the current folder where they lie below it,
else as the last part alone: a report must not tell where on whose machine it was made.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.instance_metrics import MOST_DETECTIONS
from evaluation.metrics import SAMPLES, Evaluation
from maskbridge import plugins
from maskbridge.convert import ConvertOptions
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError

#: Options of `convert` that do not change what is made.
_NO_DIFFERENCE = ("overwrite", "workers")

Command = list[str]


def shown_path(path: str | Path) -> str:
    """A path below the current folder relative to it; of any other the last part."""
    absolute = Path(os.path.abspath(path))
    try:
        return absolute.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return absolute.name


def shown_value(value: Any) -> Any:
    """An option as it is shown: absolute paths as `shown_path` has them, anything else as it is."""
    if isinstance(value, str | Path) and Path(value).is_absolute():
        return shown_path(value)
    return str(value) if isinstance(value, Path) else value


def convert_command(dataset: Dataset) -> str | None:
    """The command that made a dataset; None where its card does not say."""
    try:
        source, options = dataset.whole_card["source"], dataset.whole_card["options"]
    except DatasetError:
        return None
    words = ["convert", source["layout"], shown_path(source["path"]), shown_path(dataset.path)]
    kept = {name: value for name, value in options.items() if name not in _NO_DIFFERENCE}
    return _line([*words, *option_words(kept, defaults_of(ConvertOptions))])


def run_commands(evaluation: Evaluation) -> list[str]:
    """The commands that train a run and predict the part."""
    run, info = evaluation.run, evaluation.run.info
    approach, fold = str(info["approach"]), info["fold"]
    dataset, path = shown_path(evaluation.dataset.path), shown_path(run.path)
    device = option_words({"device": info.get("device", "auto")}, {"device": "auto"})
    shared = option_words({"seed": info.get("seed", 0)}, {"seed": 0}) + device
    options = option_words(info["options"], approach_defaults(approach))
    if fold == "all":
        return [_line(["crossval", approach, dataset, path, *options, *shared])]
    part = option_words({"part": evaluation.part}, {"part": "test"})
    return [
        _line(["train", approach, dataset, path, "--fold", str(fold), *options, *shared]),
        _line(["predict", path, dataset, *part, *device]),
    ]


def report_command(
    evaluations: tuple[Evaluation, ...], out: Path, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> str:
    """The command that makes the page."""
    parts = {evaluation.part for evaluation in evaluations}
    usual = all(evaluation.part == evaluation.run.default_part() for evaluation in evaluations)
    part = [] if usual or len(parts) > 1 else ["--part", *parts]
    paths = [shown_path(evaluation.run.path) for evaluation in evaluations]
    metrics = evaluations[0].metrics
    judged = {"samples": metrics["intervals"]["samples"], "max_detections": metrics["detections"]["most_per_image"]}
    words = option_words(judged, {"samples": SAMPLES, "max_detections": MOST_DETECTIONS})
    return _line(["report", *paths, "--out", shown_path(out), *part, *words, *option_words(options, defaults)])


def approach_defaults(name: str) -> dict[str, Any]:
    """Defaults of an approach's options; none where the approach is not known here."""
    if name not in plugins.names("approach"):
        return {}
    return defaults_of(plugins.load("approach", name).Config)


def defaults_of(config: type[Any]) -> dict[str, Any]:
    """Default of each field of a dataclass that has one, as run.json would hold it."""
    fields = [field for field in dataclasses.fields(config) if field.default is not dataclasses.MISSING]
    return {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields}


def option_words(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Command:
    """Options that differ from their defaults, as words of a command line; None cannot be written and is left out."""
    words: Command = []
    for name, value in options.items():
        if value is None or (name in defaults and defaults[name] == value):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
            continue
        for one in value if isinstance(value, list) else [value]:  # a list is an option that is given again and again
            text = str(shown_value(one))
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return words


def _line(words: Command) -> str:
    return shlex.join(["maskbridge", *words])
