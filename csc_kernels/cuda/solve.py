"""Solves on chip: x is read once and z written once, and the backward needs nothing else."""

from __future__ import annotations

import torch

from ..geometry import step_weights
from ..ops.library import empty
from . import library
from .kernels import code_shape, mask_like
from .plan import Plan


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, plan: Plan):
    z = empty(x, code_shape(x, dictionary, stride, pads))
    torch.ops.csc_cuda.fista(
        x, dictionary, library.number(lmbda, z.shape), library.number(mu, z.shape), library.number(step_size), z0,
        mask_like(x, mask), stride, pads, nonneg, momentum == "sdnet", step_weights(n_iter, momentum),
        library.allows_tf32(x.dtype), list(plan[:3]), z,
    )  # fmt: skip
    return z


def fista_backward(
    grad,
    x,
    dictionary,
    lmbda,
    mu,
    step_size,
    z0,
    mask,
    z,
    n_iter,
    stride,
    pads,
    nonneg,
    momentum,
    needs,
    plan: Plan,
):
    """Gradients in x and z0, and the sums of those in the dictionary (without its factor t), lmbda and mu."""
    grad_x = empty(x, x.shape) if needs[0] else None
    grad_z0 = empty(x, z.shape) if needs[5] else None

    def floats(*shape: int):
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    partials = sums = penalty_partials = penalty = None
    if needs[1]:
        partials, sums = floats(plan.blocks, *dictionary.shape), floats(*dictionary.shape)
    if any(needs[2:4]):
        tiles = -(-z.shape[2] // plan.rows) * -(-z.shape[3] // plan.columns)
        penalty_partials = floats(x.shape[0] * tiles, 2, z.shape[1])
        penalty = floats(x.shape[0], 2, z.shape[1])
    torch.ops.csc_cuda.fista_backward(
        grad, x, dictionary, library.number(lmbda, z.shape), library.number(mu, z.shape), library.number(step_size),
        z0, mask_like(x, mask), stride, pads, nonneg, step_weights(n_iter, momentum), library.allows_tf32(x.dtype),
        list(plan[:3]), z, grad_x, grad_z0, penalty_partials, penalty, partials, sums,
    )  # fmt: skip
    return grad_x, sums, penalty, grad_z0
