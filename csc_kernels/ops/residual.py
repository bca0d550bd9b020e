"""csc::residual: r = mask * (x - A z)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import choose
from ..checks import check_code, check_mask, check_problem, check_same
from .library import (
    define,
    differentiable_backward,
    empty,
    only,
    register_autograd,
    unused,
)


def check_residual(
    x: Tensor,
    z: Tensor,
    dictionary: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    mask: Tensor | None,
    autocast: bool = False,
) -> None:
    code = check_problem(x, dictionary, stride, pads, autocast)
    check_code("z", z, x, code, autocast)
    check_mask(mask, x, autocast)


def _kernel(
    x: Tensor,
    z: Tensor,
    dictionary: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    mask: Tensor | None,
) -> Tensor:
    check_residual(x, z, dictionary, stride, pads, mask)
    backend = choose("residual", x, dictionary=dictionary)
    return backend.residual(x, z, dictionary, stride, pads, mask)


def _fake(x, z, dictionary, stride, pads, mask):
    check_residual(x, z, dictionary, stride, pads, mask)
    return empty(x, x.shape)


def _backward_kernel(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    dictionary: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    mask: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_residual(x, z, dictionary, stride, pads, mask)
    check_same("grad", grad, x)
    backend = choose("residual_backward", x, dictionary=dictionary, mask_gradient=needs[3])
    return backend.residual_backward(grad, x, z, dictionary, stride, pads, mask, needs)


def _backward_fake(grad, x, z, dictionary, stride, pads, mask, needs):
    return (
        empty(x, x.shape) if needs[0] else unused(x),
        empty(x, z.shape) if needs[1] else unused(x),
        dictionary.new_empty(dictionary.shape) if needs[2] else unused(x),
        mask.new_empty(mask.shape) if needs[3] else unused(x),
    )


residual = define(
    "residual(Tensor x, Tensor z, Tensor dictionary, int[2] stride, int[4] pads, Tensor? mask) -> Tensor",
    _kernel,
    _fake,
)
residual_backward = define(
    "residual_backward(Tensor grad, Tensor x, Tensor z, Tensor dictionary, int[2] stride, int[4] pads, "
    "Tensor? mask, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, z, dictionary, ctx.stride, ctx.pads, mask = inputs
    ctx.save_for_backward(x, z, dictionary, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, z, dictionary, mask = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 2, 5)]
    if torch.is_grad_enabled():
        grads = differentiable_backward(
            lambda x, z, dictionary, mask: (reference.residual(x, z, dictionary, ctx.stride, ctx.pads, mask),),
            (x, z, dictionary, mask),
            needs,
            (grad,),
        )
    else:
        grads = only(needs, residual_backward(grad, x, z, dictionary, ctx.stride, ctx.pads, mask, needs))
    return *grads[:3], None, None, grads[3]


register_autograd(residual, _backward, _setup_context)
