"""Solves and gradients composed of four passes, one step after the other: any shape, any number of steps.

The formulas are csc_kernels.reference's. `passes` has synthesis, step, analysis and correlation: the module
kernels, or cudnn.passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import step_weights
from ..ops.fista import kept_tensors
from ..ops.library import image


def fista(passes, x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    """The code, and the codes and residuals of the steps where they are to be kept."""
    codes: list[Tensor] = []
    residuals: list[Tensor] = []
    z = y = z0
    for k, beta in enumerate(step_weights(n_iter, momentum)):
        if z is None:
            r = x if mask is None else x * mask
        else:
            r = passes.synthesis(z if momentum == "sdnet" else y, dictionary, stride, pads, x, x=x, mask=mask)
            if keep:
                residuals.append(r)
        extrapolates = bool(beta) and k + 1 < n_iter
        z, point = passes.step(
            r, dictionary, stride, pads, step_size, y, lmbda, mu, nonneg, z if extrapolates else None,
            beta if extrapolates else None,
        )  # fmt: skip
        y = point if extrapolates else z
        if keep and k + 1 < n_iter:
            codes.append(z)
    kept = kept_tensors(x, z.shape, z0, n_iter, keep)
    return image(x, z), *map(_stack, kept, (codes, residuals))


def _stack(out: Tensor, values: list[Tensor]) -> Tensor:
    """The values along the batch in `out`, as many as it has room for."""
    return torch.cat(values, out=out) if out.shape[0] else out


class Sums:
    """The gradients that the steps of one solve add to, and what they have in common."""

    def __init__(self, passes, x, dictionary, lmbda, mu, step_size, mask, stride, pads, needs) -> None:
        self.passes = passes
        self.x, self.mask = x, mask
        self.convolution = (dictionary, stride, pads)
        self.lmbda, self.mu, self.step_size = lmbda, mu, step_size
        self.needs = needs  # x, dictionary, lmbda, mu
        self.image: Tensor | None = None
        self.dictionary: Tensor | None = None
        self.penalty: Tensor | None = None

    def step(self, grad: Tensor, z_next: Tensor, r: Tensor, point: Tensor | None, separate: bool):
        """The gradients in the base and in the point of one step, or their sum and None."""
        gradient = torch.where(z_next != 0, grad, 0) / (1 + self.step_size * self.mu).to(grad.dtype)
        if any(self.needs[2:4]):
            self.penalty = _plus(self.penalty, penalty_sums(gradient, z_next))
        if self.needs[1]:
            self.dictionary = _plus(self.dictionary, self._correlation(r, gradient))
        if point is None and not self.needs[0]:
            return gradient, None
        picture = self.passes.synthesis(gradient, *self.convolution, self.x, scale=-1.0, mask=self.mask)
        if self.needs[0]:
            self.image = _plus(self.image, picture.float())
        if point is None:
            return gradient, None
        if self.needs[1]:
            self.dictionary = _plus(self.dictionary, self._correlation(picture, point))
        base = None if separate else gradient
        moved = self.passes.analysis(picture, *self.convolution, self.step_size, base)
        return (gradient, moved) if separate else (moved, None)

    def _correlation(self, r: Tensor, code: Tensor) -> Tensor:
        return self.passes.correlation(r, code, *self.convolution, self.step_size)


def _plus(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value


def penalty_sums(gradient: Tensor, z: Tensor) -> Tensor:
    """(N, 2, K): sums over the code of sign(z) G and z G."""
    g, z = gradient.float(), z.float()
    return torch.stack([(factor * g).sum((2, 3)) for factor in (z.sign(), z)], 1)


def fista_backward(
    passes, grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    """The sums over the steps, and the gradient in z0."""
    batch = x.shape[0]
    if codes.shape[0] != (n_iter - 1) * batch or (z0 is not None and residuals.shape[0] != n_iter * batch):
        _, codes, residuals = fista(
            passes, x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, True
        )
    betas = step_weights(n_iter, momentum)
    iterates = [z0, *(codes.split(batch) if codes.shape[0] else ()), z]
    steps = list(residuals.split(batch)) if residuals.shape[0] else []
    if z0 is None:
        steps.insert(0, x if mask is None else x * mask)

    def extrapolated(k: int) -> Tensor | None:
        if k == 0 or betas[k - 1] == 0 or iterates[k - 1] is None:
            return iterates[k]
        return torch.lerp(iterates[k - 1], iterates[k], 1 + betas[k - 1])

    sums = Sums(passes, x, dictionary, lmbda, mu, step_size, mask, stride, pads, needs)
    current, before = grad, None
    for k in range(n_iter, 0, -1):
        point = iterates[k - 1] if momentum == "sdnet" else extrapolated(k - 1)
        beta = betas[k - 2] if k >= 2 else 0.0
        separate = momentum == "sdnet" and beta != 0
        base, moved = sums.step(current, iterates[k], steps[k - 1], point, separate)
        if point is None:
            break
        share = (1 + beta) * base if beta else base
        for term in (moved, before):
            if term is not None:
                share = share + term
        before = -beta * base if beta else None
        current = share
    return sums, current
