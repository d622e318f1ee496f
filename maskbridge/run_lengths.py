"""The runs of a compressed RLE, read without decoding: pycocotools fills what a short one leaves out with garbage.

    run_lengths("0?")          # array([0, 15])

Source: `rleFrString` of https://github.com/cocodataset/cocoapi: six bits a character from `0` on, five of them value,
low ones first, one for more to come; signed; from the fourth run on the difference to the last but one before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def run_lengths(counts: str) -> npt.NDArray[np.int64]:
    """Lengths of the runs, background first, int64.

    Raises:
        ValueError: When `counts` is none that can be read, or a run has a negative length.
    """
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any() or (len(codes) and codes[-1] & 32):
        raise ValueError("not a compressed run-length encoding")
    lasts = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], lasts + 1])[:-1]
    lengths = lasts - starts + 1
    if (lengths > 12).any():
        raise ValueError("a run of more than 60 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts) if len(codes) else codes
    runs -= np.where(codes[lasts] & 16, np.int64(1) << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if (runs < 0).any():
        raise ValueError("a run of negative length")
    return runs


def whole_runs(counts: str, pixels: int) -> npt.NDArray[np.int64]:
    """Lengths of the runs of a mask of so many pixels; nothing of its size is allocated.

    Raises:
        ValueError: When they are not exactly the mask.
    """
    try:
        runs = run_lengths(counts)
    except ValueError as error:
        raise ValueError(f"no runs that can be read ({error})") from error
    longest = int(runs.max(initial=0))  # sums of longer ones can overflow to anything
    total = longest if longest > pixels else int(runs.sum())
    if total != pixels:
        raise ValueError(f"runs of {total} pixels, the mask has {pixels}")
    return runs
