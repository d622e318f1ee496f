"""Files that are whole or absent: atomic writes, hashes, links.

write_json(folder / "dataset.json", card)      # the old file or the new one, whatever comes between
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from maskbridge.errors import MaskbridgeError

LinkMode = Literal["hard", "copy", "symlink"]


#: What a file that is read as a whole may hold; the largest are annotations and detections.
MOST_BYTES = 2**30
#: Where the marks of our own files stand.
_MARKED_BYTES = 1 << 12
#: What the name of a temporary file or folder ends with; nobody else's does.
PARTIAL = ".maskbridge.partial"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

#: What NumPy raises for files that are no arrays: a header may claim any size, nest, or end anywhere.
NO_ARRAY: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    EOFError,
    OSError,
    MemoryError,
    OverflowError,
    RecursionError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: temporary file in the same folder, fsync, rename.

    The temporary file is `.NAME.maskbridge.partial`, locked by its writer: a second writer waits for the first, and
    what a kill has left is removed by the next.

    Yields:
        The file to write into; `path` has its content when the block ends well, and is untouched otherwise.

    Raises:
        MaskbridgeError: When something else is in the place of the file: a device, a pipe, a folder.
        OSError: When the disk is full or the folder cannot be written; it names `path`.
    """
    if path.exists() and not path.is_file():
        found = _KINDS.get(stat.S_IFMT(path.stat().st_mode), "something else")
        raise MaskbridgeError("is in the way", where=path, found=found, expected="a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    handle = _made_alone(partial)
    made = os.fstat(handle)
    try:
        file = os.fdopen(handle, "wb")
    except BaseException:
        os.unlink(partial)
        os.close(handle)
        raise
    with file:
        try:
            yield file
            file.flush()
            os.fsync(handle)
            os.replace(partial, path)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):  # still locked: if it is this file, it is ours
                if os.path.samestat(os.lstat(partial), made):
                    os.unlink(partial)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)
            raise


def refuse_foreign(path: Path, *marks: bytes, kind: str) -> None:
    """Refuse to write over a file that maskbridge did not make; one of ours may be replaced.

    Args:
        path: The file to write; nothing is said of an empty one, or where there is none.
        marks: Words that all stand at the beginning of each file of the kind.
        kind: What it is, as "a report".

    Raises:
        MaskbridgeError: When there is a file with other content.
    """
    if not path.is_file():
        return
    with open_regular(path) as file:
        head = file.read(_MARKED_BYTES)
    if head and not all(mark in head for mark in marks):
        raise MaskbridgeError(
            f"is not {kind} made by maskbridge and is left alone",
            where=path,
            remedy="name another file, or remove this one yourself",
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; see `whole_file`."""
    with whole_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Raises:
        MaskbridgeError: When it cannot be UTF-8, as a name of a file that is none.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = ascii(text[max(0, error.start - 40) : error.end + 20])
        raise MaskbridgeError(
            "would hold a name that is not UTF-8", where=path, found=found, remedy="rename that file or folder"
        ) from error
    write_bytes(path, data)


def write_json(path: Path, value: object) -> None:
    """Write strict JSON (no NaN, no Infinity), UTF-8, one indent per level, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write one NumPy array (`.npy`, no pickling) atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; links are followed, and nothing else is ever waited for or read.

    Raises:
        MaskbridgeError: When it is a device, a pipe, a socket or a folder.
        OSError: When it is missing or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise MaskbridgeError("is not a regular file", where=path, found=_KINDS.get(kind, "something else"))
    return os.fdopen(handle, "rb")


def read_regular(path: Path, *, most_bytes: int = MOST_BYTES, error: type[MaskbridgeError] = MaskbridgeError) -> bytes:
    """Content of a regular file of bounded size.

    Args:
        path: The file.
        most_bytes: What it may hold.
        error: What is raised.

    Raises:
        MaskbridgeError: When it is missing, of another kind, larger, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= most_bytes else b""
    except FileNotFoundError as cause:
        raise error("no such file", where=path) from cause
    except (OSError, ValueError) as cause:  # a name with a null character is a ValueError
        raise error("cannot be read", where=path, found=getattr(cause, "strerror", None) or cause) from cause
    except MaskbridgeError as cause:
        raise error(str(cause)) from cause
    if size > most_bytes:
        raise error("is too large", where=path, found=f"{size} bytes", expected=f"at most {most_bytes}")
    if len(data) != size:
        raise error("changed while it was read", where=path)
    return data


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        MaskbridgeError: When the file is missing, no regular file, not UTF-8, not JSON, or nested absurdly deep.
    """
    data = read_regular(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MaskbridgeError("not a readable JSON file", where=path, found=str(error) or "endless nesting") from error


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits, read in blocks."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_file(source: Path, target: Path, mode: LinkMode) -> LinkMode:
    """Put `source` at `target` and say how it was done.

    A hard link that the file system refuses (another device, no such feature) becomes a copy.

    Returns:
        The way that worked: `hard`, `copy` or `symlink`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "symlink":
        target.symlink_to(source.resolve())
        return "symlink"
    if mode == "hard":
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOENT):
                raise
        else:
            return "hard"
    shutil.copyfile(source, target)
    return "copy"


def _made_alone(partial: Path) -> int:
    """A new temporary file, open and locked; another writer is waited for, what a dead one has left is removed."""
    while True:
        try:
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            new = True
        except FileExistsError:
            if not stat.S_ISREG(os.lstat(partial).st_mode):
                os.unlink(partial)
                continue
            try:
                handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            new = False
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.lstat(partial)):
                if new:
                    return handle
                os.unlink(partial)
        os.close(handle)
