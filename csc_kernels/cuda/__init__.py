"""The backend "cuda": CUDA C++ kernels for NVIDIA devices, float32, float16 and bfloat16.

Up to 4 input channels a whole solve runs on chip (csrc/cuda/fista.cu, fista_backward.cu) where a tile of it fits;
everything else goes step by step (residual.cu, fista_step.cu, correlation.cu). plan.py decides.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ops.fista import kept_tensors
from . import composed, kernels, solve
from .composed import Composed, as_asked, penalty_gradients
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
    "runs_on_chip",
    "unavailable",
    "unsupported",
]

WIDEST = 900  # A row of any such kernel fits in shared memory, at any stride.
LONGEST = 2**31 // 64 - 1  # Dimensions that a plan's sums have room for.
_steps = Composed(kernels)
residual, residual_backward = _steps.residual, _steps.residual_backward
fista_step, fista_step_backward = _steps.fista_step, _steps.fista_step_backward


def unsupported(op: str, x: Tensor, **facts: Any) -> str | None:
    """Why these kernels cannot serve a call."""
    width = facts["dictionary"].shape[3]
    if width > WIDEST:
        return f"it serves kernels of up to {WIDEST} columns, the dictionary has {width}"
    if max(*x.shape, *facts["dictionary"].shape) >= LONGEST:
        return f"it serves dimensions below {LONGEST}, x is {tuple(x.shape)}"
    return composed.unsupported(op, x, **facts)


def _plan(x, dictionary, stride, pads, n_iter, momentum, from_code: bool, backward: bool):
    z_shape = code_shape(x, dictionary, stride, pads)
    return plan(x, dictionary, z_shape, stride, pads, n_iter, momentum, from_code, backward)


def runs_on_chip(
    op: str, x: Tensor, dictionary: Tensor, stride, pads, n_iter: int, momentum: str, from_code: bool
) -> bool:
    """Whether a tile of a solve that keeps nothing, or of its backward, fits."""
    backward = op == "fista_backward"
    return _plan(x, dictionary, stride, pads, n_iter, momentum, from_code, backward) is not None


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    arguments = (x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum)
    chosen = None if keep else _plan(x, dictionary, stride, pads, n_iter, momentum, z0 is not None, False)
    if chosen is None:
        return _steps.fista(*arguments, keep)
    z = solve.fista(*arguments, chosen)
    return z, *kept_tensors(x, z.shape, z0, n_iter, False)


def fista_backward(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    problem = (grad, x, dictionary, lmbda, mu, step_size, z0, mask, z)
    options = (n_iter, stride, pads, nonneg, momentum)
    chosen = None
    if x.shape[0]:
        chosen = _plan(x, dictionary, stride, pads, n_iter, momentum, z0 is not None, True)
    if chosen is None:
        return _steps.fista_backward(*problem, codes, residuals, *options, needs)
    grad_x, scaled, penalty, grad_z0 = solve.fista_backward(*problem, *options, needs, chosen)
    grads = [grad_x, None if scaled is None else step_size * scaled]
    grads += [None, None] if penalty is None else penalty_gradients(penalty, step_size, lmbda, mu)
    targets = (x, dictionary, lmbda, mu, step_size, z0, mask)
    return as_asked(targets, (*grads, None, grad_z0, None), needs)
