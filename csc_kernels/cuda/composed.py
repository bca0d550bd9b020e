"""The ops, composed of four passes: the module kernels here, cudnn.passes with a library's convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..ops.library import gradient_of, image, unused
from ..reference import unbroadcast
from . import library, steps
from .kernels import mask_like

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unsupported(op: str, x: Tensor, **facts: Any) -> str | None:
    """Why the passes cannot serve a call."""
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


class Composed:
    """A backend's functions, any of which may be replaced by a faster one."""

    def __init__(self, passes: ModuleType) -> None:
        self.passes = passes

    def residual(self, x, z, dictionary, stride, pads, mask):
        return image(x, self.passes.synthesis(z, dictionary, stride, pads, x, x=x, mask=mask))

    def residual_backward(self, grad, x, z, dictionary, stride, pads, mask, needs):
        masked = grad.clone() if mask is None else grad * mask_like(x, mask)
        minus = torch.full((), -1.0, dtype=torch.float32)
        convolution = (dictionary, stride, pads)
        return (
            image(x, masked) if needs[0] else unused(x),
            image(x, self.passes.analysis(image(x, masked), *convolution, minus)) if needs[1] else unused(x),
            gradient_of(dictionary, self.passes.correlation(masked, z, *convolution, minus))
            if needs[2]
            else unused(x),
            unused(x),
        )

    def fista_step(
        self, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask
    ):
        r = self.residual(x, z if gradient_at_z else y, dictionary, stride, pads, mask)
        previous = None if beta is None else z
        z_next, y_next = self.passes.step(
            r, dictionary, stride, pads, step_size, y, lmbda, mu, nonneg, previous, beta
        )
        return image(x, z_next), unused(x) if y_next is None else image(x, y_next)

    def fista_step_backward(
        self, grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads,
        gradient_at_z, mask, needs,
    ):  # fmt: skip
        point = z if gradient_at_z else y
        r = self.residual(x, point, dictionary, stride, pads, mask)
        grad = grad_z_next if beta is None else grad_z_next + (1 + beta) * grad_y_next
        wanted = [needs[i] for i in (0, 3, 4, 5)]
        sums = steps.Sums(self.passes, x, dictionary, lmbda, mu, step_size, mask, stride, pads, wanted)
        grad_y, grad_point = sums.step(grad, z_next, r, point, gradient_at_z)
        grad_z = torch.zeros_like(grad) if beta is None else -beta * grad_y_next
        if grad_point is not None:
            grad_z = grad_z + grad_point
        grad_x, *parameters = gradients(sums, dictionary, lmbda, mu, step_size)
        grads = (grad_x, grad_z, grad_y, *parameters, None, None)
        targets = (x, z, y, dictionary, lmbda, mu, step_size, mask)
        return tuple(
            unused(x) if not need else image(x, g) if i < 3 else gradient_of(target, g)
            for i, (target, g, need) in enumerate(zip(targets, grads, needs))
        )

    def fista(self, *arguments):
        return steps.fista(self.passes, *arguments)

    def fista_backward(
        self, grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
        nonneg, momentum, needs,
    ):  # fmt: skip
        targets = (x, dictionary, lmbda, mu, step_size, z0, mask)
        if x.shape[0] == 0:
            return [torch.zeros_like(t) if need else None for t, need in zip(targets, needs)]
        sums, grad_z0 = steps.fista_backward(
            self.passes, grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride,
            pads, nonneg, momentum, needs,
        )  # fmt: skip
        grads = gradients(sums, dictionary, lmbda, mu, step_size)
        return as_asked(targets, (*grads, None, grad_z0, None), needs)


def as_asked(targets, grads, needs) -> list[Tensor | None]:
    """The gradients of a solve in (x, dictionary, lmbda, mu, step_size, z0, mask), those that are needed."""
    x = targets[0]
    return [
        None if not need else image(x, g) if i in (0, 5) else gradient_of(target, g)
        for i, (target, g, need) in enumerate(zip(targets, grads, needs))
    ]


def gradients(sums: steps.Sums, dictionary, lmbda, mu, step_size) -> list[Tensor | None]:
    """In x, the dictionary, lmbda and mu."""
    grads: list[Tensor | None] = [None] * 4
    if sums.needs[0]:
        grads[0] = -step_size * sums.image
    if sums.needs[1]:
        grads[1] = sums.dictionary
    if sums.penalty is not None:
        grads[2:] = penalty_gradients(sums.penalty, step_size, lmbda, mu)
    return grads


def penalty_gradients(sums: Tensor, step_size: Tensor, *penalties: Tensor) -> list[Tensor | None]:
    """Gradients in lmbda and mu from (N, 2, K), the sums of sign(z) G and z G."""
    scaled = -step_size * sums.unsqueeze(-1).unsqueeze(-1)
    return [None if varies_in_space(p) else unbroadcast(s, p.shape) for s, p in zip(scaled.unbind(1), penalties)]


def varies_in_space(parameter: Tensor) -> bool:
    return max((1, 1, *parameter.shape)[-2:]) > 1
