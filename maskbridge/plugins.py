"""The registry: the public modules of `converters/`, `finetune/`, `baselines/` and of the folders `commands/` are it.

A format is a module of `converters/` with `read` (input), `export` (output) or both; an approach is a module of
`finetune/` or `baselines/` (see `maskbridge.approach`); a command is a module of the folder `commands/` of
`maskbridge/`, `finetune/`, `baselines/` or `evaluation/` with `add_arguments(parser, words)` and `run(arguments)`.
Names are module names with `_` as `-`.

    plugins.names("approach")           # ['autoencoder', 'deep-svdd', …]
    plugins.load("approach", "knn")     # the module
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Any, Literal

from maskbridge.errors import OptionError

Kind = Literal["format", "approach", "command"]
PACKAGES: dict[Kind, tuple[str, ...]] = {
    "format": ("converters",),
    "approach": ("finetune", "baselines"),
    "command": ("maskbridge.commands", "finetune.commands", "baselines.commands", "evaluation.commands"),
}


def names(kind: Kind) -> list[str]:
    """Names of all formats, approaches or commands, sorted; nothing is imported."""
    return sorted(_table(kind))


def load(kind: Kind, name: str) -> Any:
    """Import a format, approach or command by name.

    Raises:
        OptionError: When there is none of that name; the nearest one is suggested.
    """
    table = _table(kind)
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        raise OptionError(
            f"no {kind} of this name",
            found=name,
            expected=", ".join(sorted(table)),
            remedy=f"did you mean {near[0]}?" if near else None,
        )
    return importlib.import_module(table[name][0])


def summary(kind: Kind, name: str) -> str:
    """First line of a module's docstring, read without importing it."""
    tree = ast.parse(_table(kind)[name][1].read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n", 1)[0]


def functions(kind: Kind, name: str) -> set[str]:
    """Names of a module's top-level functions, read without importing it."""
    tree = ast.parse(_table(kind)[name][1].read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _table(kind: Kind) -> dict[str, tuple[str, Path]]:
    table: dict[str, tuple[str, Path]] = {}
    for package in PACKAGES[kind]:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            for module in pkgutil.iter_modules([folder]):
                if not module.name.startswith("_") and not module.ispkg:
                    name = module.name.replace("_", "-")
                    table[name] = (f"{package}.{module.name}", Path(folder) / f"{module.name}.py")
    return table
