"""`run.json` as it is read: what is relied on has the right kind, or one line says what has not.

info = read_run_info(Path("runs/bottle-knn-0"))
info["thresholds"]["0"]["image"]["value"]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict

import msgspec

from maskbridge.errors import RunError
from maskbridge.files import read_json


def read_run_info(folder: Path) -> dict[str, Any]:
    """Content of a run's `run.json`, all of it.

    Raises:
        RunError: When there is none, a key is missing, or a value is of another kind.
    """
    if not (folder / "run.json").is_file():
        raise RunError(
            "is not a finished run",
            where=folder,
            expected="run.json inside",
            remedy="train it, or continue it with --resume",
        )
    info = read_json(folder / "run.json")
    if not isinstance(info, dict):
        raise RunError("is not what maskbridge writes", where=folder / "run.json")
    missing = [key for key in ("approach", "dataset", "fold", "options") if key not in info]
    if missing:
        raise RunError("is incomplete", where=folder / "run.json", found=f"no {', '.join(missing)}")
    try:
        json.dumps(info, allow_nan=False, ensure_ascii=False).encode()
        msgspec.convert(info, _RunInfo)
    except ValueError as error:  # NaN, infinity, half a character, or (msgspec.ValidationError) another kind of value
        raise RunError("is not what maskbridge writes", where=folder / "run.json", found=str(error)) from error
    return dict(info)


#: A sum or mean over folds of what is counted or measured is a number as well.
_Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]


class _Threshold(TypedDict, total=False):
    value: float | None
    rule: str
    why: str


class _RunDataset(TypedDict, total=False):
    path: Required[str]
    name: str
    annotations_sha256: Required[str]
    splits_sha256: Required[str]


class _RunInfo(TypedDict, total=False):
    """What is relied on in run.json; it may hold more."""

    approach: Required[str]
    dataset: Required[_RunDataset]
    fold: Required[int | Literal["official", "all"]]
    options: Required[dict[str, Any]]
    bit_depth: Literal[8, 10, 12, 14, 16]
    trained_options: dict[str, Any]
    truth_given: Annotated[str, msgspec.Meta(min_length=1)] | None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None
    folds: list[Annotated[str, msgspec.Meta(pattern=r"^fold\d+$")]] | None
    device: str | None
    weights_from: str | None
    start_weights: list[dict[str, str]]
    seen: list[dict[str, Any]]
    parameters: _Amount | None
    predict_ms_per_image: _Amount | None
    seconds: dict[str, _Amount | None] | None
    peak_memory_mb: dict[str, _Amount | None] | None
    trained_on: dict[str, _Amount | None] | None
    thresholds: dict[str, dict[str, _Threshold]] | None
    versions: dict[str, str | None] | None
    facts: dict[str, Any] | None
