"""List formats or approaches."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from maskbridge import plugins
from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("what", choices=("formats", "approaches"), help="what to list")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    kind: plugins.Kind = "format" if arguments.what == "formats" else "approach"
    rows = {name: plugins.summary(kind, name) for name in plugins.names(kind)}
    width = max(map(len, rows))
    lines = (f"{name:{width}}  {text}" for name, text in rows.items())
    show(json.dumps(rows, indent=1) if arguments.json else "\n".join(lines))
    return 0
