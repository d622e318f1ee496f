"""Command-line options from a dataclass: field names, types and defaults; field docstrings are the help text.

add_options(parser, Config)
config = from_arguments(Config, parser.parse_args(), base={"epochs": 5})

What an option can be at all is refused here, by its type and by the table of limits, for the command line, run.json and
callers in Python alike; what is sensible for an approach its `Config` says.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskbridge.errors import OptionError

#: Least and largest value of options by their names, which are one vocabulary over all approaches: beyond it nothing
#: could work, or the machine would be brought to a standstill. `0` as least where the approach itself asks for more.
_LIMITS: dict[str, tuple[float, float]] = {
    "accumulate": (0, 2**16),
    "anomaly_weight": (0, 1e6),
    "batch": (0, 2**16),
    "batch_size": (0, 2**16),
    "blur": (0, 1000),
    "bottleneck": (0, 2**14),
    "channels": (0, 2**12),
    "chunk": (0, 2**16),
    "colour": (0, 1),
    "context": (0, 100),
    "count": (0, 10**6),
    "devices": (0, 64),
    "dimensions": (0, 2**16),
    "embedding": (0, 2**14),
    "epochs": (0, 10**6),
    "focal_weight": (0, 1e6),
    "folds": (0, 1000),
    "grid": (0, 256),
    "image_size": (0, 2**13),
    "imgsz": (0, 2**13),
    "instances": (0, 2**16),
    "iterations": (0, 1000),
    "jitter": (0, 1),
    "learning_rate": (0, 1e3),
    "lora_rank": (0, 2**12),
    "lr": (0, 1e3),
    "max_prompts": (0, 10**6),
    "min_area": (0, 2**30),
    "neck_lr": (0, 1e3),
    "neighbours": (0, 10**6),
    "nodes": (0, 2**10),
    "penalty": (0, 1e9),
    "rotation": (0, 180),
    "seed": (0, 2**32 - 1),
    "side": (0, 2**13),
    "stages": (0, 2**10),
    "tile": (0, 2**20),
    "time_budget": (0, 1e6),
    "weight_decay": (0, 1e3),
    "workers": (0, 256),
}
#: Of options that have no limits of their own.
_NUMBERS = (-(2.0**31), 2.0**31 - 1)
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,4}(,\d{1,4})*)?|\d{1,4}(,\d{1,4})*", re.ASCII)


def add_options(parser: argparse._ActionsContainer, config: type[Any], only: Iterable[str] | None = None) -> None:
    """Add an option for each field of a dataclass; one that is not given leaves no trace, so that a preset can set it.

    Args:
        parser: Parser or argument group.
        config: The dataclass; its fields have defaults and docstrings.
        only: Names of the fields to take; all by default.
    """
    hints = typing.get_type_hints(config)
    texts = field_docs(config)
    for field in dataclasses.fields(config):
        if only is not None and field.name not in only:
            continue
        flag = "--" + field.name.replace("_", "-")
        text = f"{texts[field.name].rstrip('.')} (default: {_shown(field.default)})".replace("%", "%%")
        kind = _plain(hints[field.name])
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
            continue
        if kind == tuple[str, ...]:
            metavar = field.name.upper()
            parser.add_argument(flag, action="append", default=argparse.SUPPRESS, metavar=metavar, help=text)
            continue
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else None
        parser.add_argument(
            flag,
            type=_reader(kind),
            choices=choices,
            default=argparse.SUPPRESS,
            metavar=None if choices else field.name.rsplit("_", 1)[-1].upper(),
            help=text,
        )


def from_arguments(config: type[Any], arguments: argparse.Namespace, base: Mapping[str, Any] | None = None) -> Any:
    """Make the dataclass from parsed arguments, over `base`, over its defaults.

    Raises:
        OptionError: As `require_usable`.
    """
    values = {**(base or {}), **given(config, arguments)}
    require_usable(config, values)
    return config(**values)


def given(config: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Those fields that were given on the command line."""
    values = vars(arguments)
    return {field.name: values[field.name] for field in dataclasses.fields(config) if field.name in values}


def from_stored(config: type[Any], stored: Mapping[str, Any], where: Path) -> Any:
    """Make the dataclass from the options of a run.json.

    Raises:
        OptionError: When they are not the options of this version, or of another kind.
    """
    try:
        require_usable(config, stored)
    except OptionError as error:
        raise OptionError(str(error), where=where) from error
    try:
        return config(**stored)
    except TypeError as error:
        raise OptionError("has options of another version", where=where, found=error, remedy="train again") from error


def require_usable(config: type[Any], values: Mapping[str, Any]) -> None:
    """Refuse values of another kind than their field's, numbers beyond the limits, and text that is no UTF-8.

    Args:
        config: The dataclass.
        values: By names of fields; others are passed over.

    Raises:
        OptionError: Names the option as it is written on the command line.
    """
    hints = typing.get_type_hints(config)
    for name, value in values.items():
        expected = _misfit(name, hints[name], value) if name in hints else None
        if expected is not None:
            found = ascii(value) if isinstance(value, str | Path | tuple | list) else value
            raise OptionError(f"--{name.replace('_', '-')} cannot be used", found=str(found)[:200], expected=expected)


def _misfit(name: str, hint: Any, value: Any) -> str | None:
    """What is expected instead of a value; None where it can be used."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = typing.get_args(hint)
        misfits = [_misfit(name, kind, value) for kind in kinds]
        return None if None in misfits else " or ".join(misfit for misfit in misfits if misfit)
    if hint is type(None):
        return None if value is None else "nothing"
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        flat = [each for kind in choices for each in (typing.get_args(kind) or (kind,))]
        return None if any(value == each and type(value) is type(each) for each in flat) else ", ".join(map(str, flat))
    if hint is bool:
        return None if isinstance(value, bool) else "yes or no"
    if hint in (int, float):
        least, most = _LIMITS.get(name, _NUMBERS)
        kind: Any = int if hint is int else int | float
        fits = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most  # NaN never is
        return None if fits else f"{'a whole number' if hint is int else 'a number'} from {least:.10g} to {most:.10g}"
    if typing.get_origin(hint) is tuple:
        fits = isinstance(value, tuple | list) and not any(_misfit(name, str, each) for each in value)
        return None if fits else "texts"
    if hint is str or (isinstance(hint, type) and issubclass(hint, Path)):
        if not isinstance(value, hint):
            return "a text"
        if name == "device" and _DEVICE.fullmatch(str(value)) is None:
            return "auto, cpu, cuda, cuda:N, N or 0,1"
        return None if _is_text(str(value)) else "text in UTF-8"
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def field_docs(config: type[Any]) -> dict[str, str]:
    """The string literal below each field, inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_field_docs(base)
    return docs


def _own_field_docs(config: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(config)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs: dict[str, str] = {}
    for node, following in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[node.target.id] = " ".join(str(following.value.value).split())
    return docs


def fold_name(text: str) -> int | str:
    """Read `--fold`: a number, or `official`."""
    if text == "official":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a fold number nor official") from None


def _shown(default: Any) -> Any:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        default = ", ".join(default)
    return "none" if default in (None, "") else default


def _plain(hint: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def whole_number(text: str) -> int:
    """Read a number as it is written: no digits of other scripts, no underscores."""
    if re.fullmatch(r"[+-]?[0-9]{1,40}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _reader(kind: Any) -> Any:
    if kind is int:
        return whole_number
    if typing.get_origin(kind) is typing.Literal:
        return type(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return fold_name
    return kind
