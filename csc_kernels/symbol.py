"""The symbol of A'A at points of a grid, from which `lipschitz` makes its certified bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import runs_natively

# The compiled kernel keeps a few matrices of n x n vectors in cache, and the products of all taps with each other,
# at most 18 MB; for more libraries are faster.
_NATIVE_SIZE, _NATIVE_TAPS = 32, 1500
_NUMBERS_AT_ONCE = 1 << 21  # Of the symbol: that of a wide dictionary is not held whole.


def has_kernel(dictionary: Tensor, stride: Sequence[int]) -> bool:
    """Whether the compiled kernel finds the bound of a dictionary, with a stride no longer than its kernel."""
    atoms, channels, *kernel = dictionary.shape
    rows, columns = (-(-k // s) for k, s in zip(kernel, stride))
    size = min(atoms, channels * stride[0] * stride[1])
    return size <= _NATIVE_SIZE and rows * columns * size <= _NATIVE_TAPS and runs_natively(dictionary)


def scaled_taps(dictionary: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The taps of the polyphase filter, (K, rows, columns, M sh sw), divided so that powers of their symbol fit.

    Where M sh sw is above K, those of B(w)^H, whose products have B(w)'s eigenvalues and fewer of the zeros.

    Returns:
        The taps, float64, contiguous; what no eigenvalue was above before they were divided by its root, if it was
        above 1; and the largest number of the dictionary, by which they had been divided before. On a GPU both stay
        there, so that its stream is not stalled.
    """
    atoms, channels, *kernel = dictionary.shape
    rows, columns = (math.ceil(k / s) for k, s in zip(kernel, stride))
    # Products of float64 torch.set_float32_matmul_precision leaves alone: a bound has no room for fewer bits.
    wide = dictionary.detach().to(torch.float64)
    width = channels * stride[0] * stride[1]
    below, beside = rows * stride[0] - kernel[0], columns * stride[1] - kernel[1]
    phases = F.pad(wide, (0, beside, 0, below)).reshape(atoms, channels, rows, stride[0], columns, stride[1])
    taps = phases.permute(0, 2, 4, 1, 3, 5).reshape(atoms, rows, columns, width)
    if width > atoms:
        taps = taps.permute(3, 1, 2, 0)
    scale = taps.abs().amax()
    taps = taps / scale.clamp_min(torch.finfo(torch.float64).tiny)
    # No eigenvalue is larger than the squares of all entries times the taps; divided by that their powers fit.
    largest = taps.square().sum() * (rows * columns)
    return (taps / largest.clamp_min(1).sqrt()).contiguous(), largest, scale


def largest_moment(taps: Tensor, grid: Sequence[int]) -> Tensor:
    """The largest trace(C(w)^32) over a grid of frequencies w.

    C(w) = B(w)^H B(w) and B(w) = sum_q B_q exp(-i q.w).

    Args:
        taps: B, (K, rows, columns, n), float64, contiguous. No eigenvalue of C may be above 1.
        grid: points per turn of both frequencies.

    >>> float(largest_moment(torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), (1, 1))) == 0.25**32
    True
    """
    _, rows, columns, n = taps.shape
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
    lags = _autocorrelation(taps).to(torch.complex128)
    down, across = _waves(rows, grid[0], grid[0], taps), _waves(columns, grid[1], grid[1] // 2 + 1, taps)
    summed = (across @ lags).flatten(1)  # (2 rows - 1, half a grid x n n)
    for some in down.split(max(1, _NUMBERS_AT_ONCE // summed.shape[1])):
        yield (some @ summed).reshape(-1, n, n)


def _autocorrelation(taps: Tensor) -> Tensor:
    """(K, rows, columns, n) -> (2 rows - 1, 2 columns - 1, n n): sum over q of B_(q + lag)^T B_q."""
    _, rows, columns, n = taps.shape
    by_row = taps.transpose(0, 1).flatten(2)
    lags = []
    for lag in range(1 - rows, rows):
        later = by_row[max(lag, 0) : rows + min(lag, 0)].flatten(0, 1)
        earlier = by_row[max(-lag, 0) : rows + min(-lag, 0)].flatten(0, 1)
        products = (later.mT @ earlier).reshape(columns, n, columns, n).transpose(1, 2)
        lags.append(_sums_over_lags(products.flatten(2)))
    return torch.stack(lags)


def _sums_over_lags(products: Tensor) -> Tensor:
    """(size, size, m) -> (2 size - 1, m): sums of [i, j] over each i - j."""
    size = products.shape[0]
    # Row i, from its last entry to its first, begins i entries further to the right.
    wide = torch.cat((products.flip(1), torch.zeros_like(products)), 1)
    return wide.flatten(0, 1)[:-size].reshape(size, 2 * size - 1, -1).sum(0)


def _waves(taps: int, points: int, count: int, like: Tensor) -> Tensor:
    """exp(i w lag) for the first `count` frequencies w and the lags 1 - taps to taps - 1."""
    lag = torch.arange(1 - taps, taps, dtype=torch.float64, device=like.device)
    frequency = torch.arange(count, dtype=torch.float64, device=like.device) * (2 * math.pi / points)
    angle = frequency[:, None] * lag
    return torch.polar(torch.ones_like(angle), angle)
