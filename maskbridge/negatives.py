"""How many good images go along with the defective ones: `--negatives all|N|ratio`.

chosen = choose_negatives("0.5", good=ids, defective=40, seed=0)     # 20 of them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskbridge.errors import OptionError


def negative_count(negatives: str, *, good: int, defective: int) -> int:
    """Number of good images asked for, at most `good`.

    Args:
        negatives: `all`, a whole number, or a ratio to the defective images (`0.5`, `2.0`, `2x`).
        good: Good images there are.
        defective: Defective images there are.

    Raises:
        OptionError: When it is none of these.
    """
    if negatives == "all":
        return good
    text = negatives.removesuffix("x")
    try:
        wanted = int(text) if text == negatives and "." not in text else round(float(text) * defective)
    except (ValueError, OverflowError):
        wanted = -1
    if wanted < 0:
        raise OptionError(
            "--negatives is not understood",
            found=negatives,
            expected="all, a number (20), or a ratio to the defective images (0.5 or 0.5x)",
        )
    return min(wanted, good)


def choose_negatives(negatives: str, *, good: Sequence[int], defective: int, seed: int) -> list[int]:
    """A seeded choice of good image ids, ascending."""
    count = negative_count(negatives, good=len(good), defective=defective)
    return sorted(int(i) for i in np.random.default_rng(seed).permutation(np.asarray(good, dtype=np.int64))[:count])
