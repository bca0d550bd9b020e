"""The public functions: arguments are checked here, computed in the ops."""

from __future__ import annotations

from typing import Any, Union

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import checks, ops, reference
from .data_terms import fista_huber, fista_unsquared
from .geometry import Padding, Pads, Stride, normalize_padding, normalize_stride
from .lipschitz import lipschitz

Parameter = Union[float, Tensor]

# Up to this many input channels a solve is cheaper to compute again in the backward than to keep: one more
# synthesis and analysis of few channels against n codes written and read.
STEM_CHANNELS = 4


def residual(
    x: Tensor,
    z: Tensor,
    dictionary: Tensor,
    *,
    stride: Stride = 1,
    padding: Padding = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """What the code leaves unexplained: mask * (x - A z).

    Args:
        x: images, (N, M, H, W) or (M, H, W).
        z: codes, (N, K, H', W') or (K, H', W').
        dictionary: K atoms, (K, M, kH, kW).
        stride: int or pair.
        padding: int, pair, "same" (stride 1) or "valid".
        mask: bool or floating, broadcasts against x.

    Returns:
        The residual, in x's shape.

    Raises:
        TypeError: an argument is no floating point tensor, or dtypes differ.
        ValueError: shapes, devices, stride or padding do not fit.

    >>> x, d = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    >>> residual(x, torch.zeros(1, 4, 8, 8), d, padding=1).equal(x)
    True
    """
    stride, pads = _geometry(x, dictionary, stride, padding, mask)
    dims, plain = x.dim(), in_transform()
    arguments = _batched("x", x, dims), _batched("z", z, dims), dictionary, stride, pads, mask
    if plain or torch.compiler.is_compiling():
        ops.check_residual(*arguments, autocast=True)
    r = reference.residual(*arguments) if plain else ops.residual(*arguments)
    return r if dims == 4 else r.squeeze(0)


def fista_step(
    x: Tensor,
    z: Tensor,
    dictionary: Tensor,
    lmbda: Parameter,
    step_size: Parameter | None = None,
    *,
    y: Tensor | None = None,
    beta: float = 0.0,
    stride: Stride = 1,
    padding: Padding = 0,
    mu: Parameter = 0.0,
    nonneg: bool = True,
    momentum: str = "fista",
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One fused step of a solve, for loops of one's own.

        z+ = prox(y + t A'(mask (x - A y))),   y+ = z+ + beta (z+ - z)

    with prox(v) = shrink(v, t lmbda) / (1 + t mu) (Beck & Teboulle 2009, SIAM J. Imaging Sci. 2(1), FISTA
    with constant step size). The arguments are those of `fista`, and

    Args:
        z: the last code, (N, K, H', W').
        y: the extrapolated point that the step starts from; z when it is None.
        beta: weight of the momentum in y+, at least 0.
        momentum: "fista" takes the gradient at y, "sdnet" at z; "none" takes no y and no beta.

    Returns:
        (z+, y+); with beta = 0 both are the same tensor.

    >>> x, d = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    >>> z, y = fista_step(x, torch.zeros(1, 4, 6, 6), d, lmbda=0.1)
    >>> tuple(z.shape)
    (1, 4, 6, 6)
    """
    stride, pads = _geometry(x, dictionary, stride, padding, mask)
    checks.check_momentum(momentum)
    checks.check_nonneg(nonneg)
    checks.check_number("beta", beta)
    if momentum == "none" and (y is not None or beta != 0):
        raise ValueError('momentum="none" takes neither y nor beta')
    dims, plain = x.dim(), in_transform()
    z = _batched("z", z, dims)
    y = z if y is None else _batched("y", y, dims)
    tensors = _batched("x", x, dims), z, y, dictionary, *_parameters(lmbda, mu, step_size, dictionary, stride)
    if plain or torch.compiler.is_compiling():
        ops.check_fista_step(*tensors, stride, pads, mask, autocast=True)
    if plain:
        checks.check_values(*tensors[4:])
    compute = reference.fista_step if plain else ops.fista_step
    z_next, y_next = compute(*tensors, beta or None, stride, pads, nonneg, momentum == "sdnet", mask)
    if beta == 0:
        y_next = z_next
    if dims == 3:
        z_next, y_next = z_next.squeeze(0), y_next.squeeze(0)
    return z_next, y_next


def fista(
    x: Tensor,
    dictionary: Tensor,
    lmbda: Parameter,
    step_size: Parameter | None = None,
    n_iter: int = 2,
    *,
    stride: Stride = 1,
    padding: Padding = 0,
    mu: Parameter = 0.0,
    nonneg: bool = True,
    momentum: str = "fista",
    z0: Tensor | None = None,
    mask: Tensor | None = None,
    square_noise: bool = True,
    huber: float | None = None,
) -> Tensor:
    """The sparse code of x after n_iter steps of FISTA.

    Minimises over z

        1/2 ||mask (x - A z)||^2 + lmbda ||z||_1 + mu/2 ||z||^2,   z >= 0 where nonneg,

    with A z = conv_transpose2d(z, dictionary) (Beck & Teboulle 2009, SIAM J. Imaging Sci. 2(1); as a layer:
    Dai et al., NeurIPS 2022, arXiv 2210.12945). A mask of zeros and ones weights the pixels; with other
    values the gradient step uses mask (x - A z) itself, that is, weights mask and not mask^2.

    Args:
        x: images, (N, M, H, W) or (M, H, W), float.
        dictionary: K atoms, (K, M, kH, kW), x's dtype and device.
        lmbda: weight of the l1 norm, at least 0: a number, or a tensor that broadcasts against the code, such
            as (1, K, 1, 1) per atom or (N, 1, 1, 1) per sample.
        step_size: t, greater than 0: a number or a tensor of one element. Below 1 / ||A||^2 the solve
            converges. None takes that from `lipschitz(dictionary, method="bound")`, without gradient.
        n_iter: steps, at least 1.
        stride: int or pair.
        padding: int, pair, "same" (stride 1) or "valid".
        mu: weight of the squared l2 norm, like lmbda.
        nonneg: codes are not negative.
        momentum: "fista" (the textbook), "none" (ISTA), or "sdnet": the published layer's, whose gradient is
            taken at the last code and added to the extrapolated point. All agree up to two steps from zero.
        z0: code to start from, zero when it is None.
        mask: bool or floating, broadcasts against x.
        square_noise: False divides each sample's residual by twice its norm (taken as a constant), the
            gradient of 1/2 ||x - A z||: the published layer's option of that name, which leaves the step from
            zero as it is.
        huber: takes the Huber loss of x - A z for its square: linear beyond this number, greater than 0, so that
            outliers (impulse noise) pull no harder than it; the smaller, the closer to the l1 norm. Costs one more
            synthesis a step.

    Returns:
        The code, (N, K, H', W') or (K, H', W'), in x's dtype and layout.

    Raises:
        TypeError: an argument is of the wrong type, or dtypes differ.
        ValueError: shapes, devices or values do not fit; the message names them.

    >>> x, d = torch.randn(2, 3, 32, 32), torch.randn(64, 3, 3, 3)
    >>> z = fista(x, d, lmbda=0.1, n_iter=5, padding=1)
    >>> tuple(z.shape), bool((z >= 0).all())
    ((2, 64, 32, 32), True)
    """
    stride, pads = _geometry(x, dictionary, stride, padding, mask)
    checks.check_n_iter(n_iter)
    checks.check_momentum(momentum)
    checks.check_nonneg(nonneg)
    checks.check_data_term(square_noise, huber)
    dims, plain, compiling = x.dim(), in_transform(), torch.compiler.is_compiling()
    z0 = None if z0 is None else _batched("z0", z0, dims)
    parameters = _parameters(lmbda, mu, step_size, dictionary, stride)
    tensors = (_batched("x", x, dims), dictionary, *parameters, z0, mask)
    options = (n_iter, stride, pads, nonneg, momentum)
    # The op asks the same, but only of what reaches it, and where the compiler cannot show its answer.
    if plain or compiling or not square_noise or huber is not None:
        ops.check_fista(*tensors, n_iter, stride, pads, momentum, autocast=True)
        if not compiling:
            checks.check_values(*parameters)
    if huber is not None:
        z = fista_huber(*tensors, *options, huber, plain)
    elif not square_noise:
        z = fista_unsquared(*tensors, *options, plain)
    elif plain:
        z = reference.fista(*tensors, *options)[0][-1]
    else:
        training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        z = ops.fista(*tensors, *options, training and dictionary.shape[1] > STEM_CHANNELS)[0]
    return z if dims == 4 else z.squeeze(0)


def in_transform() -> bool:
    """Inside torch.func or forward-mode differentiation, which need plain PyTorch: ops know one reverse mode."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _geometry(x: Any, dictionary: Any, stride: Stride, padding: Padding, mask: Any) -> tuple[tuple[int, int], Pads]:
    """The stride and the four pads, once the tensors are known to be tensors."""
    checks.check_tensor("x", x, (3, 4))
    checks.check_dictionary(dictionary)
    if mask is not None:
        checks.check_is_tensor("mask", mask)
    stride = normalize_stride(stride)
    return stride, normalize_padding(padding, dictionary.shape[2:], stride)


def _batched(name: str, tensor: Any, dims: int) -> Tensor:
    """A tensor of an unbatched problem as one of a batch of 1."""
    checks.check_tensor(name, tensor, (dims,))
    return tensor if dims == 4 else tensor.unsqueeze(0)


def _parameters(
    lmbda: Parameter, mu: Parameter, step_size: Parameter | None, dictionary: Tensor, stride: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    if step_size is None:
        step_size = default_step_size(dictionary, stride)
    return (
        checks.parameter("lmbda", lmbda),
        checks.parameter("mu", mu),
        checks.step_size_parameter(step_size),
    )


def default_step_size(dictionary: Tensor, stride: Stride) -> Tensor:
    """A step size that never diverges: 1 / an upper bound of ||A||^2, as a constant."""
    return finite_step(1 / lipschitz(dictionary, stride=stride, method="bound"))


def finite_step(step_size: Tensor) -> Tensor:
    """1 in place of infinity, for a dictionary of zeros, and of NaN, which the code shows by itself."""
    return step_size.nan_to_num(1, 1, 1)
