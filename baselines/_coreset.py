"""Greedy k-center: as few points as wanted, so that no other point is far from all of them.

    chosen = k_center(points, 8000, seed=0)             # points N x D, float32 -> 8000 row numbers

The same points as one at a time (Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set
Approach, ICLR 2018, https://arxiv.org/abs/1708.00489), but many in one pass: distances to the chosen ones only ever
shrink, so among the farthest few points the next ones can be chosen as long as they stay farther than all the others
were. One matrix product then brings the distances of all points up to date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

#: Dimensions of the random projection that distances are measured in.
PROJECTED = 64
#: Farthest points that are looked at together, and rows whose distances are computed at once.
_FARTHEST, _ROWS = 512, 1 << 16


def k_center(points: torch.Tensor, count: int, *, seed: int) -> torch.Tensor:
    """Choose points far from each other, beginning with one at random.

    Args:
        points: N x D, float32 or float64.
        count: How many, at least 1; all of them where there are not more.
        seed: Decides the first one.

    Returns:
        Row numbers, int64, in the order of choice.
    """
    import torch

    if count >= len(points):
        return torch.arange(len(points))
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    squares = points.square().sum(dim=1)
    nearest = torch.full_like(squares, float("inf"))
    _shrink(nearest, points, squares, chosen)
    while len(chosen) < count:
        wanted = min(_FARTHEST, len(points) - 1)
        values, rows = nearest.topk(wanted + 1)
        limit, rows = float(values[-1]), rows[:-1]
        some = points[rows]
        between = torch.cdist(some, some).square().cpu().numpy()
        distances = values[:-1].cpu().numpy().copy()
        picks: list[int] = []
        while len(chosen) + len(picks) < count:
            pick = int(distances.argmax())
            if picks and distances[pick] < limit:
                break
            picks.append(pick)
            distances = np.minimum(distances, between[pick])
            distances[pick] = -1
        new = rows[picks].tolist()
        _shrink(nearest, points, squares, new)
        chosen += new
    return torch.tensor(chosen)


def project(points: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Points in fewer dimensions, their distances nearly kept (Johnson and Lindenstrauss): N x D -> N x at most 64."""
    import torch

    if points.shape[1] <= PROJECTED:
        return points.float()
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(points.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
    matrix = matrix.to(points.device)
    pieces = [points[start : start + _ROWS].float() @ matrix for start in range(0, len(points), _ROWS)]
    return torch.cat(pieces)


def _shrink(nearest: torch.Tensor, points: torch.Tensor, squares: torch.Tensor, new: list[int]) -> None:
    """Bring squared distances to the nearest chosen point up to date, N, in place; -1 for the chosen ones."""
    centres, lengths = points[new], squares[new]
    for start in range(0, len(points), _ROWS):
        rows = slice(start, start + _ROWS)
        between = (lengths - 2 * (points[rows] @ centres.T)).min(dim=1).values + squares[rows]
        nearest[rows] = nearest[rows].minimum(between)
    nearest[new] = -1
