"""Command-line options from a dataclass: field names, types and defaults; field docstrings are the help text.

add_options(parser, Config)
config = from_arguments(Config, parser.parse_args(), base={"epochs": 5})
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskbridge.errors import OptionError


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
    """Make the dataclass from parsed arguments, over `base`, over its defaults."""
    return config(**{**(base or {}), **given(config, arguments)})


def given(config: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Those fields that were given on the command line."""
    values = vars(arguments)
    return {field.name: values[field.name] for field in dataclasses.fields(config) if field.name in values}


def from_stored(config: type[Any], stored: Mapping[str, Any], where: Path) -> Any:
    """Make the dataclass from the options of a run.json.

    Raises:
        OptionError: When they are not the options of this version.
    """
    try:
        return config(**stored)
    except TypeError as error:
        raise OptionError("has options of another version", where=where, found=error, remedy="train again") from error


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


def _reader(kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        return type(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return fold_name
    return kind
