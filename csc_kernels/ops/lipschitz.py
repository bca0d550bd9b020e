"""csc::lipschitz and csc::lipschitz_bound: ||A||^2, each inside one call. Constants: they have no gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_dictionary, check_geometry
from ..geometry import code_size
from ..reference import analysis, synthesis
from .library import define

# An eigenvalue that many vectors share hides a larger one of few at first: after k products from a random vector of
# n numbers the error is 0.103 (ln n / (k - 1))^2 of ||A||^2 at most, in the mean over such vectors and for any A
# (Kuczynski & Wozniakowski 1992, SIAM J. Matrix Anal. Appl. 13, theorem 3.1): here about a tenth.
LEAST_PRODUCTS = 12


def check_lipschitz(
    dictionary: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    size: Sequence[int],
    tol: float,
    max_iter: int,
) -> tuple[int, ...]:
    """Returns the shape of a code of one image."""
    check_dictionary(dictionary)
    check_geometry(stride, pads)
    kernel = tuple(dictionary.shape[2:])
    if len(size) != 2 or min(size) < 1 or min(code_size(size, kernel, stride, pads)) < 1:
        raise ValueError(f"kernel {kernel} is larger than the padded input of size {tuple(size)}")
    code = (1, dictionary.shape[0], *code_size(size, kernel, stride, pads))
    if not tol >= 0 or max_iter < 1:
        raise ValueError(f"tol must be at least 0 and max_iter at least 1, got {tol} and {max_iter}")
    return code


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float32 at least: ||A||^2 of a half precision dictionary may be past what its dtype holds."""
    return torch.promote_types(dtype, torch.float32)


def _power_kernel(
    dictionary: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    size: Sequence[int],
    tol: float,
    max_iter: int,
) -> Tensor:
    """Lanczos's iteration (Golub & Van Loan, Matrix Computations, 10.1): from the products A'A v of a power
    iteration the largest eigenvalue over all vectors that they span, and not the last one's alone."""
    code = check_lipschitz(dictionary, stride, pads, size, tol, max_iter)
    wide = dictionary.to(_wide(dictionary.dtype))
    generator = torch.Generator(wide.device).manual_seed(0)
    v = torch.rand(code, dtype=wide.dtype, device=wide.device, generator=generator) - 0.5
    v = v / v.norm()
    before = torch.zeros_like(v)
    # What rounding leaves of a vector that the others span is none of its own.
    rounding, tiny = 100 * torch.finfo(wide.dtype).eps, torch.finfo(wide.dtype).tiny
    diagonal: list[Tensor] = []
    beside = [wide.new_zeros(())]  # beside[k] couples the vectors k - 1 and k.
    # A CPU's answer costs nothing; a GPU is asked every 8 products.
    interval = 1 if wide.device.type == "cpu" else 8
    for i in range(1, max_iter + 1):
        product = analysis(synthesis(v, wide, stride, pads, size), wide, stride, pads)
        diagonal.append((product * v).sum())
        size_of_product = product.norm()
        product = product - diagonal[-1] * v - beside[-1] * before
        rest = product.norm()
        beside.append(torch.where(rest > rounding * size_of_product, rest, 0))
        before, v = v, torch.where(beside[-1] > 0, product / rest.clamp_min(tiny), 0)
        if i % interval == 0 or i == max_iter:
            value = _largest_eigenvalue(diagonal, beside[1:-1])
            if i >= LEAST_PRODUCTS and value - _largest_eigenvalue(diagonal[:-1], beside[1:-2]) <= tol * value:
                break
    return value.to(wide)


def _largest_eigenvalue(diagonal: Sequence[Tensor], beside: Sequence[Tensor]) -> Tensor:
    """Of a symmetric tridiagonal matrix, in float64 on the CPU."""
    matrix = torch.stack(list(diagonal)).double().cpu().diag()
    if beside:
        coupling = torch.stack(list(beside)).double().cpu()
        matrix = matrix + coupling.diag(1) + coupling.diag(-1)
    return torch.linalg.eigvalsh(matrix)[-1] if matrix.isfinite().all() else matrix.new_tensor(math.nan)


_DOUBLINGS = 5  # The moment trace(C^32) = trace(C^(2^5)).
_GRID = 12  # Points of the grid per tap.
_MARGIN = 1e-4  # More than single precision can lose here.


def check_bound(dictionary: Tensor, stride: Sequence[int]) -> None:
    check_dictionary(dictionary)
    check_geometry(stride, (0, 0, 0, 0))


def _bound_kernel(dictionary: Tensor, stride: Sequence[int]) -> Tensor:
    check_bound(dictionary, stride)
    atoms, channels, *kernel = dictionary.shape
    taps = [math.ceil(k / s) for k, s in zip(kernel, stride)]
    missing = [t * s - k for t, s, k in zip(taps, stride, kernel)]
    # (K, M, kH, kW) -> one K x (M sh sw) matrix per tap of the polyphase filter.
    padded = F.pad(dictionary.to(torch.float32), (0, missing[1], 0, missing[0]))
    phases = padded.reshape(atoms, channels, taps[0], stride[0], taps[1], stride[1])
    matrix = phases.permute(2, 4, 0, 1, 3, 5).reshape(*taps, atoms, -1)
    if matrix.shape[3] > atoms:
        matrix = matrix.mT
    # B(w)^H B(w) has B(w) B(w)^H's eigenvalues, and fewer of the zeros. Its coefficients are autocorrelations.
    scale = matrix.abs().amax()
    lags = _autocorrelation(matrix / scale.clamp_min(torch.finfo(torch.float32).tiny))
    grid = [_GRID * t if t > 1 else 1 for t in taps]
    gram = _symbol(lags, taps, grid)
    trace = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    # Divided by the trace the eigenvalues are at most 1, so that powers cannot overflow; where the symbol has a
    # zero the trace is rounding, of either sign, and a larger divisor serves as well.
    trace = trace.clamp_min(1e-6 * trace.amax().clamp_min(1e-30))
    gram = gram / trace[:, None, None]
    # trace(C^(2j)) is the squared Frobenius norm of C^j: the last product need not be formed.
    for _ in range(_DOUBLINGS - 1):
        gram = gram @ gram
    moment = torch.view_as_real(gram).square().sum((1, 2, 3)).to(torch.float64)
    largest = (moment.pow(2.0**-_DOUBLINGS) * trace).amax() * scale.to(torch.float64).square()
    for t, n in zip(taps, grid):
        largest = largest / math.cos(math.pi * (t - 1) / n)
    largest = largest * (1 + max(_MARGIN, 2 * torch.finfo(dictionary.dtype).eps))
    # What rounds to zero is still no upper bound of what is not.
    dtype = _wide(dictionary.dtype)
    return torch.where(scale == 0, largest, largest.clamp_min(torch.finfo(dtype).tiny)).to(dtype)


def _autocorrelation(matrix: Tensor) -> Tensor:
    """(rows, columns, K, n) -> (2 rows - 1, 2 columns - 1, n, n): sum over q of B_(q + lag)^T B_q."""
    rows, columns, _, n = matrix.shape
    taps = matrix.transpose(1, 2).reshape(rows, -1, columns * n)  # Of each row: K x (columns n).
    lags = []
    for lag in range(1 - rows, rows):
        a = taps[max(lag, 0) : rows + min(lag, 0)].flatten(0, 1)
        b = taps[max(-lag, 0) : rows + min(-lag, 0)].flatten(0, 1)
        lags.append(_sums_over_lags((a.mT @ b).reshape(columns, n, columns, n).transpose(1, 2)))
    return torch.stack(lags)


def _sums_over_lags(products: Tensor) -> Tensor:
    """(size, size, ...) -> (2 size - 1, ...): sums of [i, j] over each i - j."""
    size, _, *rest = products.shape
    # Row i, from its last entry to its first, begins i entries further to the right.
    wide = torch.cat((products.flip(1), products.new_zeros(products.shape)), 1)
    return wide.flatten(0, 1)[:-size].reshape(size, 2 * size - 1, *rest).sum(0)


def _symbol(lags: Tensor, taps: Sequence[int], grid: Sequence[int]) -> Tensor:
    """The trigonometric polynomial at the points of the grid, (points, n, n) complex.

    The dictionary is real, so that C(-w) is the conjugate of C(w): half of the grid has all eigenvalues.
    """

    def waves(taps: int, points: int, count: int) -> Tensor:
        lag = torch.arange(1 - taps, taps, dtype=torch.float64, device=lags.device)
        frequency = torch.arange(count, dtype=torch.float64, device=lags.device) * (2 * math.pi / points)
        angle = -frequency[:, None] * lag
        return torch.complex(angle.cos(), angle.sin()).to(torch.complex64)

    n = lags.shape[-1]
    down, across = waves(taps[0], grid[0], grid[0]), waves(taps[1], grid[1], grid[1] // 2 + 1)
    columns = across @ lags.to(torch.complex64).flatten(2)  # (2 rows - 1, half a grid, n n)
    return (down @ columns.flatten(1)).reshape(-1, n, n)


def _power_fake(dictionary, stride, pads, size, tol, max_iter):
    check_lipschitz(dictionary, stride, pads, size, tol, max_iter)
    return dictionary.new_empty((), dtype=_wide(dictionary.dtype))


def _bound_fake(dictionary, stride):
    check_bound(dictionary, stride)
    return dictionary.new_empty((), dtype=_wide(dictionary.dtype))


lipschitz = define(
    "lipschitz(Tensor dictionary, int[2] stride, int[4] pads, SymInt[2] size, float tol, int max_iter) -> Tensor",
    _power_kernel,
    _power_fake,
)
lipschitz_bound = define(
    "lipschitz_bound(Tensor dictionary, int[2] stride) -> Tensor",
    _bound_kernel,
    _bound_fake,
)
