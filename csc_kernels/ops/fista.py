"""csc::fista: a whole solve in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import choose
from ..checks import (
    check_code,
    check_mask,
    check_momentum,
    check_n_iter,
    check_parameters,
    check_problem,
    check_same,
    check_same_kind,
    check_values,
    shape,
)
from .library import (
    define,
    differentiable_backward,
    empty,
    is_plain,
    only,
    register_autograd,
    unused,
)


def check_fista(
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    z0: Tensor | None,
    mask: Tensor | None,
    n_iter: int,
    stride: Sequence[int],
    pads: Sequence[int],
    momentum: str,
    autocast: bool = False,
) -> tuple[int, ...]:
    """Returns the shape of the code."""
    check_n_iter(n_iter)
    check_momentum(momentum)
    code = check_problem(x, dictionary, stride, pads, autocast)
    check_parameters(lmbda, mu, step_size, x, code)
    if z0 is not None:
        check_code("z0", z0, x, code, autocast)
    check_mask(mask, x, autocast)
    return code


def _kernel(
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    z0: Tensor | None,
    mask: Tensor | None,
    n_iter: int,
    stride: Sequence[int],
    pads: Sequence[int],
    nonneg: bool,
    momentum: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, momentum)
    check_values(lmbda, mu, step_size)
    solve = None if keep else (stride, pads, n_iter, momentum, z0 is not None)
    backend = choose("fista", x, dictionary=dictionary, keep=keep, solve=solve)
    return backend.fista(
        x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep
    )


def kept_counts(n_iter: int, z0: Tensor | None) -> tuple[int, int]:
    """Codes and residuals of a sample that a solve keeps for its backward, where it keeps any."""
    return n_iter - 1, n_iter - 1 if z0 is None else n_iter


def kept_tensors(
    x: Tensor, z_shape: Sequence[int], z0: Tensor | None, n_iter: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """What a solve keeps for its backward: z_1 .. z_(n-1), and the residual of every step, uninitialised.

    They are stacked along the batch, in channels_last. The first step from zero has no residual beside x itself.
    """
    if not keep:
        return x.new_empty((0, *z_shape[1:])), x.new_empty((0, *x.shape[1:]))
    codes, residuals = kept_counts(n_iter, z0)
    shapes = [codes * x.shape[0], *z_shape[1:]], [residuals * x.shape[0], *x.shape[1:]]
    kept = [
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last) for shape in shapes
    ]
    return kept[0], kept[1]


def _fake(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    z_shape = check_fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, momentum)
    return empty(x, z_shape), *kept_tensors(x, z_shape, z0, n_iter, keep)


def _gradients(
    grad: Tensor,
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    z0: Tensor | None,
    mask: Tensor | None,
    z: Tensor,
    codes: Tensor,
    residuals: Tensor,
    n_iter: int,
    stride: Sequence[int],
    pads: Sequence[int],
    nonneg: bool,
    momentum: str,
    needs: Sequence[bool],
) -> Sequence[Any]:
    """Of x, the dictionary, lmbda, mu, step_size, z0 and mask; what is not needed may be None, or anything."""
    code = check_fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, momentum)
    check_code("z", z, x, code)
    check_same("grad", grad, z)
    for name, kept, sample in (("codes", codes, z), ("residuals", residuals, x)):
        check_same_kind(name, kept, x)
        if kept.shape[0] and kept.shape[1:] != sample.shape[1:]:
            raise ValueError(f"{name} of shape {shape(kept)} are none of x {shape(x)} and z {shape(z)}")
    counts = tuple(count * x.shape[0] for count in kept_counts(n_iter, z0))
    if (codes.shape[0], residuals.shape[0]) not in ((0, 0), counts):
        raise ValueError(
            f"{n_iter} steps keep {counts[0]} codes and {counts[1]} residuals, or none; "
            f"got codes {shape(codes)} and residuals {shape(residuals)}"
        )
    for name, value, need in (("z0", z0, needs[5]), ("mask", mask, needs[6])):
        if need and value is None:
            raise ValueError(f"needs asks for the gradient of {name}, which is None")
    backend = choose(
        "fista_backward",
        x,
        dictionary=dictionary,
        lmbda=lmbda,
        mu=mu,
        needs=needs[2:4],
        solve=None if codes.shape[0] else (stride, pads, n_iter, momentum, z0 is not None),
        mask_gradient=needs[6],
        step_gradient=needs[4],
    )
    return backend.fista_backward(
        grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride,
        pads, nonneg, momentum, needs,
    )  # fmt: skip


def _backward_kernel(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The gradients, with empty ones for those not needed.

    A list of the needed ones would do, but not for is_grads_batched=True: its vmap knows single tensors alone.
    """
    needs = rest[-1]
    gradients = _gradients(grad, x, *rest)
    return tuple(gradient if need else unused(x) for gradient, need in zip(gradients, needs))


def _backward_fake(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    def gradient(t: Tensor, image: bool) -> Tensor:
        return empty(x, t.shape) if image else t.new_empty(t.shape)

    inputs = (x, dictionary, lmbda, mu, step_size, z0, mask)
    return tuple(gradient(t, i in (0, 5)) if need else unused(x) for i, (t, need) in enumerate(zip(inputs, needs)))


fista = define(
    "fista(Tensor x, Tensor dictionary, Tensor lmbda, Tensor mu, Tensor step_size, Tensor? z0, "
    "Tensor? mask, int n_iter, int[2] stride, int[4] pads, bool nonneg, str momentum, bool keep) "
    "-> (Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
fista_backward = define(
    "fista_backward(Tensor grad, Tensor x, Tensor dictionary, Tensor lmbda, Tensor mu, "
    "Tensor step_size, Tensor? z0, Tensor? mask, Tensor z, Tensor codes, Tensor residuals, int n_iter, "
    "int[2] stride, int[4] pads, bool nonneg, str momentum, bool[7] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.options = inputs[7:12]  # n_iter, stride, pads, nonneg, momentum
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:7], *output)


def _backward(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple:
    saved = ctx.saved_tensors  # Once: under checkpointing it can be asked for only once.
    inputs = saved[:7]
    needs = list(ctx.needs_input_grad[:7])
    if torch.is_grad_enabled():
        grads = differentiable_backward(
            lambda *tensors: (reference.fista(*tensors, *ctx.options)[0][-1],), inputs, needs, (grad,)
        )
    else:
        # Past the dispatcher where it would come to the same.
        direct = not torch.compiler.is_compiling() and is_plain(grad, *saved)
        compute: Any = _gradients if direct else fista_backward
        grads = only(needs, compute(grad, *saved, *ctx.options, needs))
    return *grads, None, None, None, None, None, None


register_autograd(fista, _backward, _setup_context)
