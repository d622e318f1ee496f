"""Whose a run folder is: a folder that maskbridge did not make is never touched, a finished run is never lost.

    with claimed(path, info, resume=False, overwrite=False) as claim:
        claim.folder        # where to train: the run folder itself, or beside a run that is to be replaced

A run in the making has `work/started.json`, what it was started with; a finished one has `run.json`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskbridge.errors import MaskbridgeError, RunError
from maskbridge.files import PARTIAL, read_json, write_json
from maskbridge.folders import beside, held, is_ours, move_in, recover, refuse_working_folder
from maskbridge.predictions import Run

#: What decides whether two trainings are the same one.
_DECIDING = ("approach", "options", "dataset", "fold", "seed")
_STARTED = Path("work", "started.json")


@dataclass(frozen=True)
class Claim:
    """A run folder that is ours.

    Attributes:
        folder: Where the run is made.
        finished: The run, if it is finished and `resume` was given.
    """

    folder: Path
    finished: Run | None = None


@contextlib.contextmanager
def claimed(
    path: Path, info: Mapping[str, Any], *, resume: bool, overwrite: bool, free: Collection[str] = ()
) -> Iterator[Claim]:
    """Make the run folder ours, and keep other commands from it.

    A new run is made in its place. One that replaces another is made beside it, and exchanged with it when the block
    ends well; until then, and whenever it does not, the old one stays as it is. A folder into which nothing but the
    claim was written is removed when the block raises.

    Args:
        path: The run folder, an absolute path.
        info: What run.json will say of approach, options, dataset, fold and seed.
        resume: Go on with what an interrupted run left; with `overwrite`, with what an interrupted replacement left.
        overwrite: Replace a run, finished or not.
        free: Options that may differ from those of the run that is gone on with.

    Raises:
        RunError: When the folder is taken, or the run in it was started with something else.
        MaskbridgeError: When another command works on it.
        OSError: When the disk is full or the place cannot be written; it names a file, or the run.
    """
    recover(path)
    if os.path.lexists(path) and (not path.is_dir() or path.is_symlink()):
        raise RunError("is in the way", where=path, found="a file or link", expected="a new folder")
    taken = path.is_dir() and any(path.iterdir())
    finished = taken and (path / "run.json").is_file()
    started = taken and (path / _STARTED).is_file()
    if taken and not is_ours(path, "run" if finished else "unfinished run"):
        raise RunError("is not empty and no run", where=path, remedy="name another folder")
    if path.is_dir():
        refuse_working_folder(path)
    if taken and overwrite:
        claim = _beside_another(path, info, resume=resume, free=free)
    elif finished and not resume:
        raise RunError("is a finished run", where=path, remedy="name another, or add --overwrite")
    elif started and not finished and not resume:
        raise RunError("is an unfinished run", where=path, remedy="--resume goes on, --overwrite starts anew")
    elif taken:
        claim = _gone_on_with(path, info, free)
    else:
        claim = _new(path, info)
    try:
        with claim as mine:
            yield mine
    except OSError as error:  # a library that does not say which file the disk was too full for
        error.filename = error.filename or str(path)
        raise


def clear(folder: Path) -> None:
    """Remove what killed commands have left in a finished run that is held."""
    shutil.rmtree(folder / "work", ignore_errors=True)
    for left in (folder / "predictions").glob(f".*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _new(path: Path, info: Mapping[str, Any]) -> Iterator[Claim]:
    """The folder appears with the claim in it, so that a kill at any moment leaves nothing or an unfinished run."""
    with beside(path) as folder:
        _start(folder, info)
        move_in(folder, path, replace=False)
        with _forgotten_if_fruitless(path):
            yield Claim(path)


@contextlib.contextmanager
def _gone_on_with(path: Path, info: Mapping[str, Any], free: Collection[str]) -> Iterator[Claim]:
    with held(path):
        if not (path / "run.json").is_file():
            _refuse_other(path, read_json(path / _STARTED), info, free)
            yield Claim(path)
            return
        run = Run.open(path)
        trained = run.info.get("trained_options", run.info["options"])  # those of a second run are of its prediction
        _refuse_other(path, {**run.info, "options": trained}, info, free)
        clear(path)
        yield Claim(path, run)


@contextlib.contextmanager
def _beside_another(path: Path, info: Mapping[str, Any], *, resume: bool, free: Collection[str]) -> Iterator[Claim]:
    with held(path), beside(path, lasting=resume) as folder:
        if (folder / _STARTED).is_file():
            _refuse_other(path, read_json(folder / _STARTED), info, free)
        else:
            for left in folder.iterdir():  # of a kill before anything was made
                shutil.rmtree(left)
            _start(folder, info)
        with _forgotten_if_fruitless(folder):
            yield Claim(folder)
        move_in(folder, path, replace=True)


def _start(folder: Path, info: Mapping[str, Any]) -> None:
    write_json(folder / _STARTED, {key: info[key] for key in _DECIDING})


@contextlib.contextmanager
def _forgotten_if_fruitless(path: Path) -> Iterator[None]:
    """Remove a run folder when the block raises before anything but the claim was written into it."""
    try:
        yield
    except BaseException:
        if [file for file in path.rglob("*") if file.is_file()] == [path / _STARTED]:
            shutil.rmtree(path)
        raise


@contextlib.contextmanager
def gone_on_with(path: Path) -> Iterator[None]:
    """Whatever a damaged scratch file brings up in the libraries that read it is told in one line.

    Raises:
        RunError: When the block raises anything of its own.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MaskbridgeError:
        raise
    except Exception as error:
        raise RunError(
            "what the interrupted training left cannot be read",
            where=path,
            found=(str(error) or type(error).__name__).split("\n", 1)[0][:120],
            remedy="start anew with --overwrite",
        ) from error


def _refuse_other(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], free: Collection[str]) -> None:
    for key in _DECIDING:
        found, expected = stored.get(key), wanted[key]
        if key == "options" and isinstance(found, dict):
            found, expected = ({k: v for k, v in options.items() if k not in free} for options in (found, expected))
        if found != expected and not (key == "dataset" and _same_content(found, expected)):
            if isinstance(found, dict) and isinstance(expected, dict):  # what differs alone
                names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
                found, expected = ({n: each[n] for n in names if n in each} for each in (found, expected))
            raise RunError(
                f"was started with other {key}",
                where=path,
                found=found,
                expected=expected,
                remedy="give the same ones, or add --overwrite",
            )


def _same_content(stored: Any, wanted: Mapping[str, Any]) -> bool:
    return all(stored.get(key) == wanted[key] for key in ("annotations_sha256", "splits_sha256"))
