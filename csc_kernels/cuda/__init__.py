"""The backend "cuda": CUDA C++ kernels for NVIDIA devices, float32, float16 and bfloat16.

Up to 4 input channels a whole solve runs on chip (csrc/cuda/fista.cu, fista_backward.cu) where a tile of it fits;
everything else goes step by step (residual.cu, fista_step.cu, correlation.cu). plan.py decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.fista import kept_tensors
from ..ops.library import gradient_of, image, unused
from ..reference import unbroadcast
from . import kernels, library, solve, steps
from .kernels import code_shape
from .library import unavailable
from .plan import plan

__all__ = [
    "fista",
    "fista_backward",
    "fista_step",
    "fista_step_backward",
    "residual",
    "residual_backward",
    "unavailable",
    "unsupported",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def varies_in_space(parameter: Tensor) -> bool:
    return max((1, 1, *parameter.shape)[-2:]) > 1


def unsupported(op: str, x: Tensor, **facts: Any) -> str | None:
    """Why these kernels cannot serve a call."""
    if not library.serves_device(x):
        return f"it serves CUDA tensors, x is on {x.device}"
    if x.dtype not in DTYPES:
        return f"it serves float32, float16 and bfloat16, x is {x.dtype}"
    if facts["dictionary"].dtype != x.dtype:
        return f"x is {x.dtype}, the dictionary {facts['dictionary'].dtype}"
    needed: Sequence[bool] = facts.get("needs", ())
    for name, need in zip(("lmbda", "mu"), needed):
        if need and varies_in_space(facts[name]):
            return f"it has no gradient for a {name} that varies over the code, {tuple(facts[name].shape)}"
    if facts.get("mask_gradient"):
        return "it has no gradient for the mask"
    if facts.get("step_gradient"):
        return "it has no gradient for the step size"
    return None


def residual(x, z, dictionary, stride, pads, mask):
    return kernels.synthesis(z, dictionary, stride, pads, x, x=x, mask=mask)


def residual_backward(grad, x, z, dictionary, stride, pads, mask, needs):
    masked = grad.clone() if mask is None else grad * kernels.mask_like(x, mask)
    minus = torch.full((), -1.0)
    convolution = (dictionary, stride, pads)
    return (
        image(x, masked) if needs[0] else unused(x),
        kernels.analysis(image(x, masked), *convolution, minus) if needs[1] else unused(x),
        gradient_of(dictionary, -kernels.correlation(masked, z, *convolution)) if needs[2] else unused(x),
        unused(x),
    )


def fista_step(x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask):
    r = residual(x, z if gradient_at_z else y, dictionary, stride, pads, mask)
    previous = None if beta is None else z
    z_next, y_next = kernels.step(r, dictionary, stride, pads, step_size, y, lmbda, mu, nonneg, previous, beta)
    return z_next, unused(x) if y_next is None else y_next


def fista_step_backward(
    grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads,
    gradient_at_z, mask, needs,
):  # fmt: skip
    point = z if gradient_at_z else y
    r = residual(x, point, dictionary, stride, pads, mask)
    grad = grad_z_next if beta is None else grad_z_next + (1 + beta) * grad_y_next
    sums = steps.Sums(x, dictionary, lmbda, mu, step_size, mask, stride, pads, [needs[i] for i in (0, 3, 4, 5)])
    grad_y, grad_point = sums.step(grad, z_next, r, point, gradient_at_z)
    grad_z = torch.zeros_like(grad) if beta is None else -beta * grad_y_next
    if grad_point is not None:
        grad_z = grad_z + grad_point
    grad_x, *parameters = _gradients(sums, dictionary, lmbda, mu, step_size)
    grads = (grad_x, grad_z, grad_y, *parameters, None, None)
    targets = (x, z, y, dictionary, lmbda, mu, step_size, mask)
    return tuple(
        unused(x) if not need else image(x, g) if i < 3 else gradient_of(target, g)
        for i, (target, g, need) in enumerate(zip(targets, grads, needs))
    )


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    arguments = (x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum)
    z_shape = code_shape(x, dictionary, stride, pads)
    chosen = None
    if not keep:
        chosen = plan(x, dictionary, z_shape, stride, pads, n_iter, momentum, z0 is not None, False)
    if chosen is None:
        return steps.fista(*arguments, keep)
    return solve.fista(*arguments, chosen), *kept_tensors(x, z_shape, z0, n_iter, False)


def fista_backward(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    targets = (x, dictionary, lmbda, mu, step_size, z0, mask)
    if x.shape[0] == 0:
        return tuple(torch.zeros_like(t) if need else unused(x) for t, need in zip(targets, needs))
    problem = (grad, x, dictionary, lmbda, mu, step_size, z0, mask, z)
    options = (n_iter, stride, pads, nonneg, momentum)
    chosen = plan(x, dictionary, z.shape, stride, pads, n_iter, momentum, z0 is not None, True)
    if chosen is None:
        sums, grad_z0 = steps.fista_backward(*problem, codes, residuals, *options, needs)
        grads = _gradients(sums, dictionary, lmbda, mu, step_size)
    else:
        grad_x, scaled, penalty, grad_z0 = solve.fista_backward(*problem, *options, needs, chosen)
        grads = [grad_x, None if scaled is None else step_size * scaled]
        grads += [None, None] if penalty is None else penalty_gradients(penalty, step_size, lmbda, mu)
    everything = (*grads, None, grad_z0, None)
    return tuple(
        unused(x) if not need else image(x, g) if i in (0, 5) else gradient_of(target, g)
        for i, (target, g, need) in enumerate(zip(targets, everything, needs))
    )


def _gradients(sums: steps.Sums, dictionary, lmbda, mu, step_size) -> list[Tensor | None]:
    """In x, the dictionary, lmbda and mu."""
    grads: list[Tensor | None] = [None] * 4
    if sums.needs[0]:
        grads[0] = -step_size * sums.image
    if sums.needs[1]:
        grads[1] = step_size * sums.dictionary
    if sums.penalty is not None:
        grads[2:] = penalty_gradients(sums.penalty, step_size, lmbda, mu)
    return grads


def penalty_gradients(sums: Tensor, step_size: Tensor, *penalties: Tensor) -> list[Tensor | None]:
    """Gradients in lmbda and mu from (N, 2, K), the sums of sign(z) G and z G."""
    scaled = -step_size * sums.unsqueeze(-1).unsqueeze(-1)
    return [None if varies_in_space(p) else unbroadcast(s, p.shape) for s, p in zip(scaled.unbind(1), penalties)]
