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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from maskbridge.errors import MaskbridgeError

LinkMode = Literal["hard", "copy", "symlink"]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: temporary file in the same folder, fsync, rename.

    The temporary file is `.NAME.partial`, locked by its writer: a second writer waits for the first, and what a kill
    has left is removed by the next.

    Yields:
        The file to write into; `path` has its content when the block ends well, and is untouched otherwise.

    Raises:
        OSError: When the disk is full or the folder cannot be written; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; see `whole_file`."""
    with whole_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write strict JSON (no NaN, no Infinity), UTF-8, one indent per level, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write one NumPy array (`.npy`, no pickling) atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        MaskbridgeError: When the file is missing, not UTF-8, not JSON, or nested absurdly deep.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MaskbridgeError("no such file", where=path) from error
    except (ValueError, RecursionError) as error:
        raise MaskbridgeError("not a readable JSON file", where=path, found=str(error) or "endless nesting") from error


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits, read in blocks."""
    with path.open("rb") as file:
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
