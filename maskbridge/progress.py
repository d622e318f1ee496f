"""What is told on the terminal: results, one line about what is done, and progress bars (tqdm).

Bars are shown for anything over two seconds, and not where standard error is no terminal. Names of files and whatever
else others wrote never reach the terminal with their control characters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from maskbridge.errors import printable

Item = TypeVar("Item")

#: Set by `--quiet`.
QUIET_VARIABLE = "MASKBRIDGE_QUIET"
_SAID: set[str] = set()


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with a bar named `what`; `total` where `items` has no length."""
    from tqdm import tqdm

    silent = not sys.stderr.isatty() or bool(os.environ.get(QUIET_VARIABLE))
    yield from tqdm(items, desc=printable(what), total=total, delay=2, leave=False, disable=silent, dynamic_ncols=True)


def show(result: str | Path) -> None:
    """Print a result on standard output: a path as one line, or text with lines of its own."""
    lines = [str(result)] if isinstance(result, Path) else result.removesuffix("\n").split("\n")
    print("\n".join(map(printable, lines)))


def counted(count: int, noun: str) -> str:
    """A count with its noun, such as "1 image" and "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def say(line: str) -> None:
    """Print one line about what is being done on standard error, unless `--quiet` was given."""
    if not os.environ.get(QUIET_VARIABLE):
        print(printable(line), file=sys.stderr, flush=True)


def say_once(line: str) -> None:
    """Print a line that this process has not said before, such as one that holds for every fold."""
    if line not in _SAID:
        _SAID.add(line)
        say(line)
