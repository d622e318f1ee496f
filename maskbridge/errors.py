"""Every error a user can cause, in one tree.

Each one is told in a single line: where, what was found, what was expected, what to do. The command line prints
that line on stderr and exits with 1; anything that is not a `MaskbridgeError` is a bug of ours and keeps its
traceback.

    raise SourceError("mask has another size", where=path, found="70x50", expected="64x48", remedy="re-export it")
"""

from __future__ import annotations

import os
import re

#: Control characters, marks that turn the direction of writing, other line ends, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that does nothing to a terminal but be shown: a control character stands there by its number, as in JSON."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class MaskbridgeError(Exception):
    """Something the user gave cannot be used.

    Args:
        what: The problem in a few words.
        where: File, line or index it was found at.
        found: What was there.
        expected: What should have been there.
        remedy: What to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | os.PathLike[str] | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        """Compose the one line; newlines in the parts are folded into spaces, other controls are escaped."""
        line = f"{os.fspath(where)}: {what}" if where is not None else what
        if found is not None:
            line += f"; found {found}"
        if expected is not None:
            line += f"; expected {expected}"
        if remedy is not None:
            line += f"; {remedy}"
        super().__init__(printable(" ".join(line.split())))


class SourceError(MaskbridgeError):
    """A source folder, image or mask cannot be converted."""


class DatasetError(MaskbridgeError):
    """A dataset folder is missing, damaged or does not fit."""


class RunError(MaskbridgeError):
    """A run folder is missing, damaged or does not fit its dataset."""


class WeightsError(MaskbridgeError):
    """Weights cannot be found, read or fitted to the model."""


class OptionError(MaskbridgeError):
    """An option has a value that cannot work."""
