"""csc::fista_step on a GPU: two kernels, the residual and the step from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.library import gradient_of, unused
from ..reference import unbroadcast
from . import passes
from .launch import number
from .passes import Geometry


def fista_step(x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask):
    g = Geometry.of(x, dictionary, z.shape, stride, pads, mask)
    r = passes.residual(g, z if gradient_at_z else y)
    z_next, y_next = passes.step(g, r, y, z, lmbda, mu, step_size, nonneg, beta)
    return z_next, unused(x) if y_next is None else y_next


class StepGradients:
    """Sums the gradients of the steps of one solve; the formulas are csc_kernels.reference's.

    `needs` is of x, dictionary, lmbda, mu and step_size.
    """

    def __init__(self, g: Geometry, lmbda: Tensor, mu: Tensor, step_size: Tensor, needs: Sequence[bool]) -> None:
        self.g, self.lmbda, self.mu, self.step_size, self.needs = g, lmbda, mu, step_size, needs
        self.x = g.image().zero_() if needs[0] else None
        self.dictionary = torch.zeros(g.dictionary.shape, **g.floats)
        self.grad_lmbda = torch.zeros(lmbda.shape, **g.floats)
        self.grad_mu = torch.zeros(mu.shape, **g.floats)
        self.grad_step_size = torch.zeros(step_size.shape, **g.floats)

    def threshold(self, first, first_scale, second, second_scale, z_next) -> Tensor:
        """G of first_scale first + second_scale second; adds to the gradients of lmbda, mu and step_size."""
        with_sums = any(self.needs[2:5])
        gradient, sums = passes.threshold_gradient(
            self.g, first, first_scale, second, second_scale, z_next, self.mu, self.step_size, with_sums
        )
        if sums is not None:
            for penalty, total, factor, plane in (
                (self.lmbda, self.grad_lmbda, z_next.sign, sums[0]),
                (self.mu, self.grad_mu, lambda: z_next, sums[1]),
            ):
                # A penalty that varies over the code needs the terms; any other one the sums over each plane.
                varies = penalty.dim() > 1 and max(penalty.shape[-2:]) > 1
                terms = factor().float() * gradient.float() if varies else plane[:, :, None, None]
                total -= unbroadcast(self.step_size * terms, penalty.shape)
                if self.needs[4]:
                    self.grad_step_size -= (penalty * terms).sum()
        return gradient

    def image(self, gradient: Tensor, r: Tensor) -> Tensor:
        """t mask A(G), added to the gradient of x, and <A' r, G> to that of step_size."""
        grad_r, product = passes.image_gradient(
            self.g, gradient, self.step_size, self.x, r if self.needs[4] else None
        )
        if product is not None:
            self.grad_step_size += product
        return grad_r

    def atoms(self, r: Tensor, gradient: Tensor, grad_r: Tensor | None, point: Tensor | None) -> None:
        """Adds t corr(r, G) - corr(grad_r, point) to the gradient of the dictionary."""
        if self.needs[1]:
            other = None if point is None or grad_r is None else (grad_r, point)
            self.dictionary += passes.correlation(self.g, r, gradient, number(self.step_size), other)

    def results(self) -> list[Tensor]:
        """In the needed of x, dictionary, lmbda, mu and step_size; the others are unused."""
        found = (
            (self.g.dictionary, self.dictionary),
            (self.lmbda, self.grad_lmbda),
            (self.mu, self.grad_mu),
            (self.step_size, self.grad_step_size),
        )
        grads = [unused(self.g.x) if self.x is None else self.x]
        return grads + [
            gradient_of(target, value) if need else unused(self.g.x)
            for (target, value), need in zip(found, self.needs[1:])
        ]


def fista_step_backward(
    grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads,
    gradient_at_z, mask, needs,
):  # fmt: skip
    g = Geometry.of(x, dictionary, z.shape, stride, pads, mask)
    sums = StepGradients(g, lmbda, mu, step_size, [needs[0], *needs[3:7]])
    point = z if gradient_at_z else y
    second, weight = (None, 0.0) if beta is None else (grad_y_next, 1 + beta)
    gradient = sums.threshold(grad_z_next, 1.0, second, weight, z_next)
    r = passes.residual(g, point) if needs[3] or needs[6] else None
    grad_r = sums.image(gradient, r)
    sums.atoms(r, gradient, grad_r, point)
    grad_x, *grads = sums.results()
    # z enters through the momentum, and through the residual where that is taken at z.
    momentum, weight = (None, 0.0) if beta is None else (grad_y_next, -beta)
    grad_z = grad_y = unused(x)
    if gradient_at_z:
        grad_y = gradient
        if needs[1]:
            grad_z = passes.code_gradient(g, grad_r, momentum, weight)
    else:
        if needs[1]:
            grad_z = g.code()
            if momentum is None:
                grad_z.zero_()
            else:
                torch.mul(momentum, weight, out=grad_z)
        if needs[2]:
            grad_y = passes.code_gradient(g, grad_r, gradient, 1.0)
    return grad_x, grad_z, grad_y if needs[2] else unused(x), *grads, unused(x)
