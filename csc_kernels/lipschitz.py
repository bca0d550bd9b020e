"""||A||^2 of a convolutional dictionary, the Lipschitz constant that a step size must respect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks, ops
from .geometry import Padding, Stride, normalize_padding, normalize_size, normalize_stride


@torch.no_grad()
def lipschitz(
    dictionary: Tensor,
    *,
    stride: Stride = 1,
    padding: Padding = 0,
    input_size: int | Sequence[int] | None = None,
    method: str = "power",
    tol: float = 1e-6,
    max_iter: int = 200,
) -> Tensor:
    """The largest eigenvalue of A'A, as a constant (no gradient).

    method="power" takes the largest eigenvalue over what the products A'A v of a power iteration span (Lanczos's
    iteration; Golub & Van Loan, Matrix Computations, 10.1), on codes of one image of `input_size`, to a relative
    change of `tol` after at least 12 products, or `max_iter` products: a third of those that the last of them alone
    would need. It approaches from below. It starts from the same vector every time, so that every process of a
    distributed run finds the same value. On a GPU the host looks only every 8 products, so that the stream is not
    stalled by each.

    method="bound" is an upper bound for every input size and padding, without iterations. Why it holds:

    1. On an image without borders, A'A is a convolution of the code grid whose symbol is
       C(w) = B(w) B(w)^H, where B(w) = sum_q D_q exp(-i q.w) is the K x (M sh sw) polyphase matrix of the
       dictionary (row taps q sh + phase, columns alike). A real image is a restriction of that operator:
       it keeps some codes and some pixels. Restriction does not raise a norm, so
       ||A||^2 <= sup_w lambda_max(C(w)).
    2. For a unit vector v, p(w) = v^H C(w) v is a nonnegative trigonometric polynomial of degree
       d = ceil(k / s) - 1 in each variable. On a grid of N > 2 d equal steps its maximum is at most
       1 / cos(pi d / N) times its maximum on the grid (Ehlich & Zeller 1964; near the maximum P the
       polynomial is at least P cos(d (w - w_max)), M. Riesz 1914, and some point of the grid is within
       pi / N). Once per variable, and for the best v: the factors multiply.
    3. On the grid lambda_max(C) <= (trace C^32)^(1/32), C being Hermitian and nonnegative.

    With N = 12 ceil(k / s) the bound is above the supremum by at most 1.036^2 (grid) times n^(1/32) (trace),
    n = min(K, M sh sw): 7 % for 3x3 RGB, 11 % for any. It is computed in float64, whatever
    torch.set_float32_matmul_precision allows. Its cost grows as n^3: for wide layers iterate.

    Args:
        dictionary: (K, M, kH, kW).
        stride, padding: as in `fista`.
        input_size: rows and columns of the image (or one int); needed by "power" alone.
        method: "power" or "bound".
        tol, max_iter: when the iteration stops.

    Returns:
        A scalar tensor with the dictionary's dtype, float32 for half precision, and its device. Of a dictionary
        with NaN it is NaN.

    Raises:
        TypeError: the dictionary is no floating point tensor, or an argument is of the wrong type.
        ValueError: a shape or value does not fit; the message names it.

    >>> d = torch.randn(8, 3, 5, 5)
    >>> exact = lipschitz(d, padding=2, input_size=(20, 20))
    >>> bool(exact <= lipschitz(d, method="bound"))
    True
    """
    checks.check_dictionary(dictionary)
    stride = normalize_stride(stride)
    pads = normalize_padding(padding, dictionary.shape[2:], stride)
    if method == "bound":
        return ops.lipschitz_bound(dictionary, stride)
    if method != "power":
        raise ValueError(f'method must be "power" or "bound", got {method!r}')
    if input_size is None:
        raise ValueError('method="power" needs input_size, the rows and columns of the image')
    size = normalize_size("input_size", input_size)
    checks.check_number("tol", tol)
    checks.check_int("max_iter", max_iter, checks.MOST_STEPS)
    return ops.lipschitz(dictionary, stride, pads, size, tol, max_iter)
