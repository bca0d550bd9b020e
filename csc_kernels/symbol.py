"""The symbol of A'A at points of a grid, from which `lipschitz` makes its certified bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .backends import runs_natively

# The compiled kernel keeps a few matrices of n x n vectors in cache; for larger ones libraries are faster.
_NATIVE_SIZE = 32
_NUMBERS_AT_ONCE = 1 << 21  # Of the symbol: that of a wide dictionary is not held whole.


def largest_moment(taps: Tensor, grid: Sequence[int]) -> Tensor:
    """The largest trace(C(w)^32) over a grid of frequencies w.

    C(w) = B(w)^H B(w) and B(w) = sum_q B_q exp(-i q.w).

    Args:
        taps: B, (K, rows, columns, n), float64, contiguous. No eigenvalue of C may be above 1.
        grid: points per turn of both frequencies.

    >>> float(largest_moment(torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), (1, 1))) == 0.25**32
    True
    """
    if taps.shape[3] <= _NATIVE_SIZE and runs_natively(taps):
        moment = taps.new_empty(())
        torch.ops.csc_native.largest_moment(taps, grid, moment)
        return moment
    largest = taps.new_zeros(())
    for power in _symbol(taps, grid):
        # trace(C^32) is the squared Frobenius norm of C^16.
        for _ in range(4):
            power = power @ power
        largest = torch.maximum(largest, torch.view_as_real(power).square().sum((1, 2, 3)).amax())
    return largest


def _symbol(taps: Tensor, grid: Sequence[int]) -> Iterator[Tensor]:
    """C at the points of the grid, (points, n, n), some at a time.

    The taps are real, so that C(-w) is the conjugate of C(w): half of the grid has all eigenvalues.
    """
    _, rows, columns, n = taps.shape
    flat = taps.flatten(1)
    products = (flat.mT @ flat).reshape(rows, columns, n, rows, columns, n).permute(0, 3, 1, 4, 2, 5)
    pairs = products.reshape(rows * rows, columns * columns, n * n).to(torch.complex128)
    down, across = _waves(rows, grid[0], grid[0], taps), _waves(columns, grid[1], grid[1] // 2 + 1, taps)
    summed = (across @ pairs).flatten(1)  # (pairs of rows, half a grid x n n)
    for some in down.split(max(1, _NUMBERS_AT_ONCE // summed.shape[1])):
        yield (some @ summed).reshape(-1, n, n)


def _waves(taps: int, points: int, count: int, like: Tensor) -> Tensor:
    """exp(-i w (p - q)) for the first `count` frequencies w and every two taps p, q: (count, taps taps)."""
    tap = torch.arange(taps, dtype=torch.float64, device=like.device)
    lag = (tap - tap[:, None]).flatten()
    frequency = torch.arange(count, dtype=torch.float64, device=like.device) * (2 * math.pi / points)
    angle = frequency[:, None] * lag
    return torch.polar(torch.ones_like(angle), angle)
