"""csc::lipschitz and csc::lipschitz_bound: ||A||^2, each inside one call. Constants: they have no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backends import runs_natively
from ..checks import check_dictionary, check_geometry
from ..geometry import code_size
from ..reference import analysis, synthesis
from ..symbol import has_kernel, largest_moment, scaled_taps
from .library import define, register_autocast

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
    # The squares of products have to fit: of entries up to 1 they do.
    scale = wide.abs().amax()
    wide = wide / scale.clamp_min(torch.finfo(wide.dtype).tiny)
    generator = torch.Generator(wide.device).manual_seed(0)
    v = torch.rand(code, dtype=wide.dtype, device=wide.device, generator=generator) - 0.5
    v = v / v.norm()
    before = torch.zeros_like(v)
    # What rounding, also that of sums over the atoms, leaves of a vector that the others span is none of its own.
    eps, tiny = torch.finfo(wide.dtype).eps, torch.finfo(wide.dtype).tiny
    rounding = max(100, code[1]) * eps
    diagonal: list[Tensor] = []
    beside = [wide.new_zeros(())]  # beside[k] couples the vectors k - 1 and k.
    # A CPU's answer costs nothing; a GPU is asked every 8 products.
    interval = 1 if wide.device.type == "cpu" else 8
    multiply = _gram(wide, stride, pads, size)
    for i in range(1, max_iter + 1):
        product = multiply(v)
        diagonal.append((product * v).sum())
        size_of_product = product.norm()
        product = product - diagonal[-1] * v - beside[-1] * before
        rest = product.norm()
        beside.append(torch.where(rest > rounding * size_of_product, rest, 0))
        before, v = v, torch.where(beside[-1] > 0, product / rest.clamp_min(tiny), 0)
        if i == max_iter or i >= LEAST_PRODUCTS and i % interval == 0:
            value = _largest_eigenvalue(diagonal, beside[1:-1])
            if i < max_iter and value - _largest_eigenvalue(diagonal[:-1], beside[1:-2]) <= tol * value:
                break
    return (value.to(scale.device) * scale.double().square()).to(wide.dtype)


def _gram(
    dictionary: Tensor, stride: Sequence[int], pads: Sequence[int], size: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """v -> A'A v for codes of one image. Nobody may change the dictionary meanwhile."""
    if dictionary.dtype is torch.float32 and runs_natively(dictionary):
        from ..native import stem, wide  # Which build on the ops.

        if not stem.serves(dictionary):
            return wide.gram(dictionary, stride, pads, size)
    return lambda v: analysis(synthesis(v, dictionary, stride, pads, size), dictionary, stride, pads)


def _largest_eigenvalue(diagonal: Sequence[Tensor], beside: Sequence[Tensor]) -> Tensor:
    """Of a symmetric tridiagonal matrix, in float64 on the CPU."""
    matrix = torch.stack(list(diagonal)).double().cpu().diag()
    if beside:
        coupling = torch.stack(list(beside)).double().cpu()
        matrix = matrix + coupling.diag(1) + coupling.diag(-1)
    return torch.linalg.eigvalsh(matrix)[-1] if matrix.isfinite().all() else matrix.new_tensor(math.nan)


_GRID = 12  # Points of the grid per tap.
_ROUNDING = 1e-7  # More than is lost in float64.


def check_bound(dictionary: Tensor, stride: Sequence[int]) -> None:
    check_dictionary(dictionary)
    check_geometry(stride, (0, 0, 0, 0))


def _bound_kernel(dictionary: Tensor, stride: Sequence[int]) -> Tensor:
    check_bound(dictionary, stride)
    # Where strides are longer than the kernel, what they pass over is zero.
    stride = [min(s, k) for s, k in zip(stride, dictionary.shape[2:])]
    dtype = _wide(dictionary.dtype)
    # What rounds to zero is still no upper bound of what is not.
    tiny = torch.finfo(dtype).tiny
    # The step that is made of it may be rounded to the dictionary's dtype.
    rounding = max(_ROUNDING, 2 * torch.finfo(dictionary.dtype).eps)
    if has_kernel(dictionary, stride):
        wide = dictionary.detach().to(torch.float64).contiguous()
        return torch.tensor(torch.ops.csc_native.lipschitz_bound(wide, stride, _GRID, rounding, tiny), dtype=dtype)
    taps, largest, scale = scaled_taps(dictionary, stride)
    lengths = taps.shape[1:3]
    grid = [_GRID * t if t > 1 else 1 for t in lengths]
    bound = largest * largest_moment(taps, grid) ** (1 / 32)
    for t, n in zip(lengths, grid):
        bound = bound / math.cos(math.pi * (t - 1) / n)
    bound = bound * (1 + rounding) * scale * scale
    return torch.where(scale == 0, bound, bound.clamp_min(tiny)).to(dtype)


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

# What a step size comes from is as precise under autocast as without.
register_autocast(lipschitz, ())
register_autocast(lipschitz_bound, ())
