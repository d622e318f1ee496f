"""Text features of class prompts for YOLO-World: from a file, or the stand-in that knows no language.

A file is a NumPy `.npz` with `names` (N strings) and `features` (N x 512, float), CLIP ViT-B/32 text features;
rows need not be of unit length.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskbridge.errors import OptionError, WeightsError

#: Length of a CLIP ViT-B/32 text feature.
DIMENSIONS = 512
HASHED = "hashed"

Features = npt.NDArray[np.float32]


def text_features(option: str, prompts: Sequence[str]) -> Features:
    """Features of prompts, N x 512, float32, unit length.

    Args:
        option: `hashed`, or the path of a `.npz` file.
        prompts: Texts, in class order.

    Raises:
        OptionError: When no source is named; both ways out are.
        WeightsError: When the file cannot be read or lacks a prompt.
    """
    if option == HASHED:
        return np.stack([hashed(prompt) for prompt in prompts])
    if not option:
        raise OptionError(
            "no text features",
            expected="--text-features FILE (an .npz with names and N x 512 CLIP ViT-B/32 features)",
            remedy="or --text-features hashed, a stand-in that knows no language and marks the run",
        )
    table = _read(Path(option))
    missing = [prompt for prompt in prompts if prompt not in table]
    if missing:
        raise WeightsError(
            "lacks features of a prompt",
            where=option,
            found=", ".join(sorted(table)[:6]),
            expected=", ".join(missing),
        )
    return np.stack([table[prompt] for prompt in prompts])


def hashed(prompt: str) -> Features:
    """A fixed random direction for a text: it tells classes apart, and means nothing."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode("utf-8")).digest()[:8], "big")
    return _unit(np.random.default_rng(seed).normal(size=DIMENSIONS))


def _read(path: Path) -> Mapping[str, Features]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = [str(name) for name in archive["names"]]
            features = np.asarray(archive["features"], dtype=np.float64)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise WeightsError(
            "cannot be read as text features",
            where=path,
            found=error,
            expected="an .npz with names and features",
        ) from error
    if features.shape != (len(names), DIMENSIONS):
        raise WeightsError(
            "has features of the wrong shape",
            where=path,
            found=features.shape,
            expected=(len(names), DIMENSIONS),
        )
    lengths = np.linalg.norm(features, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise WeightsError("has a feature that is zero or not finite", where=path)
    return {name: _unit(row) for name, row in zip(names, features, strict=True)}


def _unit(vector: npt.NDArray[np.floating]) -> Features:
    return (vector / np.linalg.norm(vector)).astype(np.float32)
