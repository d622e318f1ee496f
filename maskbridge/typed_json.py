"""JSON files of a known type: a hostile one never becomes objects in memory.

    scores = decoded(path, msgspec.json.Decoder(dict[str, float]), "is not a table of scores by image id")

By msgspec (https://jcristharif.com/msgspec).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from maskbridge.errors import RunError


def decoded(path: Path, decoder: msgspec.json.Decoder[Any], what: str) -> Any:
    """Content of a file.

    Args:
        path: The file.
        decoder: Of the type that it shall have; it stops at the first value of another kind.
        what: What is wrong with a file that has another one.

    Raises:
        RunError: When it cannot be read, is no JSON, or has other content; the entry is named.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError("cannot be read", where=path, found=error.strerror) from error
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        told = re.fullmatch(r"(?:Expected (.+?), got )?(.+?)(?: - at `\$(?:\[(\d+)\])?(.*)`)?", str(error))
        assert told is not None, "every part but the second is optional"
        expected, found, entry, place = told.groups()
        where = path if entry is None else f"{path}, entry {entry}"
        raise RunError(what, where=where, found=found + f" at {place}" * bool(place), expected=expected) from error
    except (ValueError, RecursionError) as error:
        at = re.search(r"\(byte (\d+)\)", str(error))
        number = re.match(rb"-?(NaN|Infinity)", data[int(at[1]) :]) if at is not None else None
        if at is not None and number is not None:
            found = f"{number[0].decode()} at byte {at[1]}"
            raise RunError("a number is not finite", where=path, found=found) from error
        raise RunError("not a readable JSON file", where=path, found=str(error)) from error
