"""csc::fista on a GPU: the whole solve in one kernel where it fits on chip, and else two kernels a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import code_size, step_weights
from ..ops.fista import kept_tensors
from . import passes
from .fista_step import StepGradients
from .passes import Geometry
from .solve import plan, solve


class Step(NamedTuple):
    """One step: the point that its residual was taken at (None for zero), the residual, and the new code."""

    point: Tensor | None
    residual: Tensor
    code: Tensor


def steps(
    g: Geometry, lmbda, mu, step_size, z0, n_iter, nonneg, momentum, codes=(), residuals=()
) -> Iterator[Step]:
    """The steps of a solve; codes and residuals are tensors to write the first of each into."""
    codes, residuals = iter(codes), iter(residuals)
    z = y = z0
    for k, beta in enumerate(step_weights(n_iter, momentum), start=1):
        point = z if momentum == "sdnet" else y
        if point is None:
            r = g.x if g.mask is None else g.x * g.mask
        else:
            r = passes.residual(g, point, next(residuals, None))
        weight = beta if beta and k < n_iter else None
        z_next, y_next = passes.step(g, r, y, z, lmbda, mu, step_size, nonneg, weight, next(codes, None))
        yield Step(point, r, z_next)
        z, y = z_next, z_next if y_next is None else y_next


def _shape(x, dictionary, stride, pads) -> tuple[int, ...]:
    return (x.shape[0], dictionary.shape[0], *code_size(x.shape[2:], dictionary.shape[2:], stride, pads))


def _split(stack: Tensor, batch: int) -> tuple[Tensor, ...]:
    return stack.split(batch) if stack.numel() else ()


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    z_shape = _shape(x, dictionary, stride, pads)
    g = Geometry.of(x, dictionary, z_shape, stride, pads, mask)
    kept = kept_tensors(x, z_shape, z0, n_iter, keep)
    region = None if keep else plan(g, z0, n_iter)
    if region is not None:
        return solve(g, region, lmbda, mu, step_size, n_iter, nonneg, momentum), *kept
    parts = (_split(stack, x.shape[0]) for stack in kept)
    for step in steps(g, lmbda, mu, step_size, z0, n_iter, nonneg, momentum, *parts):
        z = step.code
    return z, *kept


def kept_steps(g: Geometry, z0, z, codes, residuals, n_iter, momentum) -> list[Step]:
    """The steps of a solve from what it kept."""
    batch = g.x.shape[0]
    iterates = [z0, *_split(codes, batch), z]
    found = list(_split(residuals, batch))
    if z0 is None:
        found.insert(0, g.x if g.mask is None else g.x * g.mask)
    points = list(iterates[:-1])
    if momentum == "fista":
        for k, beta in enumerate(step_weights(n_iter - 1, momentum), start=1):
            if beta:
                points[k] = torch.lerp(iterates[k - 1], iterates[k], 1 + beta)
    return [Step(*step) for step in zip(points, found, iterates[1:])]


def fista_backward(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    g = Geometry.of(x, dictionary, z.shape, stride, pads, mask)
    kept = (codes.shape[0], residuals.shape[0])
    if x.shape[0] and kept == ((n_iter - 1) * x.shape[0], (n_iter - (z0 is None)) * x.shape[0]):
        done = kept_steps(g, z0, z, codes, residuals, n_iter, momentum)
    else:
        done = list(steps(g, lmbda, mu, step_size, z0, n_iter, nonneg, momentum))
    betas = step_weights(n_iter, momentum)
    sums = StepGradients(g, lmbda, mu, step_size, needs[:5])
    # dL/dz_k is a sum of two: of what step k + 1 passes back, and of the momentum's share of step k + 2.
    current, weight = grad, 1.0
    share = following = (None, 0.0)
    for k in range(n_iter, 0, -1):
        point, r, code = done[k - 1]
        gradient = sums.threshold(current, weight, *share, code)
        last = point is None
        grad_r = None if last and not (needs[0] or needs[4]) else sums.image(gradient, r)
        sums.atoms(r, gradient, grad_r, point)
        if last or (k == 1 and not needs[5]):
            break
        # y = z_(k-1) + beta (z_(k-1) - z_(k-2)) is what step k started from.
        beta = betas[k - 2] if k > 1 else 0.0
        if momentum == "sdnet":
            base, weight = gradient, 1.0
            current = passes.code_gradient(g, grad_r, gradient, 1 + beta)
        else:
            base = current = passes.code_gradient(g, grad_r, gradient, 1.0)
            weight = 1 + beta
        share, following = following, (base, -beta) if beta else (None, 0.0)
    grad_x, *grads = sums.results()
    return grad_x, *grads, current if needs[5] else None, None
