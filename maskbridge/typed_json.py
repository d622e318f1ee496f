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
from maskbridge.files import read_regular

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_NUMBER = re.compile(rb"-?(NaN|Infinity)")


def decoded(path: Path, decoder: msgspec.json.Decoder[Any], what: str) -> Any:
    """Content of a file.

    Args:
        path: The file.
        decoder: Of the type that it shall have; it stops at the first value of another kind.
        what: What is wrong with a file that has another one.

    Raises:
        RunError: When it cannot be read, is no JSON, or has other content; the entry is named.
    """
    data = read_regular(path, error=RunError)
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        place, found, expected = _told(error)
        entry = re.match(r"\[(\d+)\]", place)
        where = path if entry is None else f"{path}, entry {entry[1]}"
        place = place if entry is None else place[entry.end() :]
        raise RunError(what, where=where, found=found + f" at {place}" * bool(place), expected=expected) from error
    except (ValueError, RecursionError) as error:
        found = malformed(data, error)
        what = "a number is not finite" if found.startswith(_NOT_FINITE) else "not a readable JSON file"
        raise RunError(what, where=path, found=found) from error


def fault(error: msgspec.ValidationError) -> str:
    """What is wrong with a value, to be put behind its name: `.width: found `str`, expected `int``."""
    place, found, expected = _told(error)
    return f"{place}: found {found}, expected {expected}" if expected else f"{place}: {found[0].lower()}{found[1:]}"


def malformed(data: bytes, error: Exception) -> str:
    """What is wrong with data that is no JSON."""
    at = re.search(r"\(byte (\d+)\)", str(error))
    number = _NUMBER.match(data, int(at[1])) if at is not None else None
    return f"{number[0].decode()} at byte {number.start()}" if number is not None else str(error)


def _told(error: msgspec.ValidationError) -> tuple[str, str, str | None]:
    """Place, what was found there, what was expected if that is said."""
    told = re.fullmatch(r"(?:Expected (.+?), got )?(.+?)(?: - at `(?:key in )?\$(.*?)`)?", str(error), re.DOTALL)
    assert told is not None, "every part but the second is optional"
    expected, found, place = told.groups()
    return place or "", found, expected
