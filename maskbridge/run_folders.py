"""Whose a run folder is: a folder that maskbridge did not make is never touched.

    finished = claim(path, info, resume=False, overwrite=False)

A run in the making has `work/started.json`, what it was started with; a finished one has `run.json`.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from maskbridge.errors import MaskbridgeError, RunError
from maskbridge.files import read_json, write_json
from maskbridge.predictions import Run

#: What decides whether two trainings are the same one.
_DECIDING = ("approach", "options", "dataset", "fold", "seed")


def claim(
    path: Path, info: Mapping[str, Any], *, resume: bool, overwrite: bool, free: Collection[str] = ()
) -> Run | None:
    """Make the run folder ours.

    Args:
        path: The run folder.
        info: What run.json will say of approach, options, dataset, fold and seed.
        resume: Go on with what an interrupted run left.
        overwrite: Replace a run, finished or not.
        free: Options that may differ from those of the run that is gone on with.

    Returns:
        The run, if it is finished and `resume` was given.

    Raises:
        RunError: When the folder is taken, or the run in it was started with something else.
    """
    started = path / "work" / "started.json"
    finished = (path / "run.json").is_file()
    if path.exists() and not path.is_dir():
        raise RunError("is in the way", where=path, found="a file", expected="a new folder")
    if path.is_dir() and any(path.iterdir()) and not finished and not started.is_file():
        raise RunError("is not empty and no run", where=path, remedy="name another folder")
    if overwrite:
        if path.is_dir():
            shutil.rmtree(path)
    elif finished:
        if not resume:
            raise RunError("is a finished run", where=path, remedy="name another, or add --overwrite")
        run = Run.open(path)
        trained = run.info.get("trained_options", run.info["options"])  # `predict` may have changed some since
        _refuse_other(path, {**run.info, "options": trained}, info, free)
        return run
    elif started.is_file():
        if not resume:
            raise RunError("is an unfinished run", where=path, remedy="--resume goes on, --overwrite starts anew")
        _refuse_other(path, read_json(started), info, free)
    write_json(started, {key: info[key] for key in _DECIDING})
    return None


@contextlib.contextmanager
def forgotten_if_fruitless(path: Path) -> Iterator[None]:
    """Remove a run folder when the block raises before anything but the claim was written into it."""
    try:
        yield
    except BaseException:
        if [file for file in path.rglob("*") if file.is_file()] == [path / "work" / "started.json"]:
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
