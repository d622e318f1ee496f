"""Progress bars (tqdm): on anything over two seconds, silent when standard error is not a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

#: Set by `--quiet`.
QUIET_VARIABLE = "MASKBRIDGE_QUIET"
_SAID: set[str] = set()


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with a bar named `what`; `total` where `items` has no length."""
    from tqdm import tqdm

    silent = not sys.stderr.isatty() or bool(os.environ.get(QUIET_VARIABLE))
    yield from tqdm(items, desc=what, total=total, delay=2, leave=False, disable=silent, dynamic_ncols=True)


def say(line: str) -> None:
    """Print one line about what is being done on standard error, unless `--quiet` was given."""
    if not os.environ.get(QUIET_VARIABLE):
        print(line, file=sys.stderr, flush=True)


def say_once(line: str) -> None:
    """Print a line that this process has not said before, such as one that holds for every fold."""
    if line not in _SAID:
        _SAID.add(line)
        say(line)
