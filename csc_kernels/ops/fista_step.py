"""csc::fista_step: residual, gradient step, threshold and momentum in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import choose
from ..checks import check_code, check_mask, check_number, check_parameters, check_problem, check_same, check_values
from .library import (
    define,
    differentiable_backward,
    empty,
    only,
    register_autograd,
    unused,
)


def check_fista_step(
    x: Tensor,
    z: Tensor,
    y: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    mask: Tensor | None,
    autocast: bool = False,
) -> None:
    code = check_problem(x, dictionary, stride, pads, autocast)
    check_code("z", z, x, code, autocast)
    if y is not z:
        check_code("y", y, x, code, autocast)
    check_parameters(lmbda, mu, step_size, x, code)
    check_mask(mask, x, autocast)


def _kernel(
    x: Tensor,
    z: Tensor,
    y: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    beta: float | None,
    stride: Sequence[int],
    pads: Sequence[int],
    nonneg: bool,
    gradient_at_z: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    check_fista_step(x, z, y, dictionary, lmbda, mu, step_size, stride, pads, mask)
    check_values(lmbda, mu, step_size)
    if beta is not None:
        check_number("beta", beta)
    backend = choose("fista_step", x, dictionary=dictionary)
    return backend.fista_step(
        x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask
    )


def _fake(x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask):
    check_fista_step(x, z, y, dictionary, lmbda, mu, step_size, stride, pads, mask)
    return empty(x, z.shape), unused(x) if beta is None else empty(x, z.shape)


def _backward_kernel(
    grad_z_next: Tensor,
    grad_y_next: Tensor,
    z_next: Tensor,
    x: Tensor,
    z: Tensor,
    y: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    beta: float | None,
    stride: Sequence[int],
    pads: Sequence[int],
    gradient_at_z: bool,
    mask: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    check_fista_step(x, z, y, dictionary, lmbda, mu, step_size, stride, pads, mask)
    check_same("z_next", z_next, z)
    check_same("grad_z_next", grad_z_next, z)
    if beta is not None:
        check_same("grad_y_next", grad_y_next, z)
    backend = choose(
        "fista_step_backward",
        x,
        dictionary=dictionary,
        lmbda=lmbda,
        mu=mu,
        needs=needs[4:6],
        mask_gradient=needs[7],
        step_gradient=needs[6],
    )
    return backend.fista_step_backward(
        grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride,
        pads, gradient_at_z, mask, needs,
    )  # fmt: skip


def _backward_fake(
    grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads,
    gradient_at_z, mask, needs,
):  # fmt: skip
    images = [empty(x, t.shape) for t in (x, z, y)]
    rest = [t if t is None else t.new_empty(t.shape) for t in (dictionary, lmbda, mu, step_size, mask)]
    return tuple(t if need else unused(x) for t, need in zip(images + rest, needs))


fista_step = define(
    "fista_step(Tensor x, Tensor z, Tensor y, Tensor dictionary, Tensor lmbda, Tensor mu, "
    "Tensor step_size, float? beta, int[2] stride, int[4] pads, bool nonneg, bool gradient_at_z, "
    "Tensor? mask) -> (Tensor, Tensor)",
    _kernel,
    _fake,
)
fista_step_backward = define(
    "fista_step_backward(Tensor grad_z_next, Tensor grad_y_next, Tensor z_next, Tensor x, Tensor z, "
    "Tensor y, Tensor dictionary, Tensor lmbda, Tensor mu, Tensor step_size, float? beta, "
    "int[2] stride, int[4] pads, bool gradient_at_z, Tensor? mask, bool[8] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)

_TENSORS = (0, 1, 2, 3, 4, 5, 6, 12)  # x, z, y, dictionary, lmbda, mu, step_size, mask


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.beta, ctx.stride, ctx.pads, ctx.nonneg, ctx.gradient_at_z = inputs[7:12]
    ctx.save_for_backward(output[0], *(inputs[i] for i in _TENSORS))


def _backward(ctx: Any, grad_z_next: Tensor, grad_y_next: Tensor) -> tuple:
    z_next, *tensors = ctx.saved_tensors
    *rest, mask = tensors
    needs = [ctx.needs_input_grad[i] for i in _TENSORS]
    if torch.is_grad_enabled():

        def forward(*inputs: Any) -> tuple[Tensor, ...]:
            options = ctx.beta, ctx.stride, ctx.pads, ctx.nonneg, ctx.gradient_at_z
            arguments: list[Any] = [*inputs[:7], *options, inputs[7]]
            outputs = reference.fista_step(*arguments)
            return outputs[: 1 if ctx.beta is None else 2]

        grad_outputs = (grad_z_next, grad_y_next)[: 1 if ctx.beta is None else 2]
        grads = differentiable_backward(forward, tensors, needs, grad_outputs)
    else:
        grads = only(
            needs,
            fista_step_backward(
                grad_z_next, grad_y_next, z_next, *rest, ctx.beta, ctx.stride, ctx.pads,
                ctx.gradient_at_z, mask, needs,
            ),
        )  # fmt: skip
    return *grads[:7], None, None, None, None, None, grads[7]


register_autograd(fista_step, _backward, _setup_context)
