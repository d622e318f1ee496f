r"""Groups that somebody names: the source's own, a pattern on the file name, or a file.

named_groups(source, group_by=r"lot(\d+)", groups=None)     # [0, 0, 1, None, …]
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from maskbridge.decoding import read_regular
from maskbridge.errors import OptionError
from maskbridge.source import Source


def named_groups(source: Source, group_by: str | None, groups: Path | None) -> list[int | None]:
    """Group number of each image; None where nothing names one.

    Args:
        source: The source; its own groups count where neither of the others is given.
        group_by: Regular expression searched in `<part>/<type>/<name>`; its groups, if it has any, else the whole
            match, name the group.
        groups: CSV file with the columns file_name and group.

    Raises:
        OptionError: When both are given, or one cannot be used.
    """
    if group_by is not None and groups is not None:
        raise OptionError("--group-by and --groups exclude each other")
    if group_by is not None:
        names = _by_pattern(source, group_by)
    elif groups is not None:
        names = _by_file(source, groups)
    else:
        names = [item.group for item in source.images]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [None if name is None else numbers[name] for name in names]


def _by_pattern(source: Source, group_by: str) -> list[str | None]:
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise OptionError("--group-by is no regular expression", found=f"{group_by!r}: {error}") from error
    matches = [pattern.search(item.file_name) for item in source.images]
    if not any(matches):
        raise OptionError(
            "--group-by matches no file name", found=group_by, expected=f"a match in {source.images[0].file_name}"
        )
    return [None if m is None else "\0".join(map(str, m.groups() or [m.group(0)])) for m in matches]


def _by_file(source: Source, groups: Path) -> list[str | None]:
    table = _read(groups)
    unknown = sorted(set(table) - {item.file_name for item in source.images})
    if unknown:
        raise OptionError(
            "names images that the source does not have",
            where=groups,
            found=f"{len(unknown)}, the first {unknown[0]}",
            expected=f"<part>/<type>/<name> as in {source.images[0].file_name}",
        )
    return [table.get(item.file_name) for item in source.images]


def _read(path: Path) -> dict[str, str]:
    try:
        with io.StringIO(read_regular(path, error=OptionError).decode("utf-8-sig"), newline="") as file:
            reader = csv.DictReader(file)
            if not {"file_name", "group"} <= set(reader.fieldnames or ()):
                raise OptionError(
                    "has no header of a groups file",
                    where=path,
                    found=reader.fieldnames,
                    expected="file_name,group",
                )
            table: dict[str, str] = {}
            for row in reader:
                name, group = row["file_name"], row["group"]
                if not name or not group or table.setdefault(name, group) != group:
                    raise OptionError(
                        "cannot be used as a group",
                        where=f"{path}, line {reader.line_num}",
                        found=f"file_name {name!r}, group {group!r}",
                        expected="a file name and a group, and no other group for this name",
                    )
            return table
    except (UnicodeDecodeError, csv.Error) as error:
        raise OptionError("cannot be read", where=path, found=error) from error
