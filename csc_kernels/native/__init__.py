"""The backend "native": C++ kernels for the CPU, float32 and bfloat16.

Few input channels go to the stem kernels (csrc/cpu), which keep a whole solve in cache. More go to oneDNN's
convolutions, with what surrounds them fused into their epilogues.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import paths, stem, wide
from .library import build_info, unavailable, use_isa
from .paths import use_path

__all__ = [
    "build_info",
    "fista",
    "fista_backward",
    "fista_step",
    "fista_step_backward",
    "residual",
    "residual_backward",
    "unavailable",
    "unsupported",
    "use_isa",
    "use_path",
]


def unsupported(op: str, x: Tensor, **facts: Any) -> str | None:
    """Why these kernels cannot serve a call."""
    if x.device.type != "cpu":
        return f"it serves CPU tensors, x is on {x.device}"
    served = [torch.float32, torch.bfloat16]
    if paths.forces_float64() and not stem.serves(facts["dictionary"]):
        served.append(torch.float64)
    if x.dtype not in served:
        return f"it serves float32 and bfloat16, x is {x.dtype}"
    if facts["dictionary"].dtype != x.dtype:
        return f"x is {x.dtype}, the dictionary {facts['dictionary'].dtype}"
    needed: Sequence[bool] = facts.get("needs", ())
    for name, need in zip(("lmbda", "mu"), needed):
        if need and stem.varies_in_space(facts[name]):
            return f"it has no gradient for a {name} that varies over the code, {tuple(facts[name].shape)}"
    if facts.get("keep") and stem.serves(facts["dictionary"]):
        return "its stem kernels compute iterates again and keep none"
    if facts.get("mask_gradient"):
        return "it has no gradient for the mask"
    if facts.get("step_gradient"):
        return "it has no gradient for the step size"
    return None


def _kernels(dictionary: Tensor) -> ModuleType:
    return stem if stem.serves(dictionary) else wide


def residual(x, z, dictionary, *options):
    return _kernels(dictionary).residual(x, z, dictionary, *options)


def residual_backward(grad, x, z, dictionary, *options):
    return _kernels(dictionary).residual_backward(grad, x, z, dictionary, *options)


def fista_step(x, z, y, dictionary, *options):
    return _kernels(dictionary).fista_step(x, z, y, dictionary, *options)


def fista_step_backward(grad_z_next, grad_y_next, z_next, x, z, y, dictionary, *options):
    return _kernels(dictionary).fista_step_backward(grad_z_next, grad_y_next, z_next, x, z, y, dictionary, *options)


def _fills_the_stack(dictionary: Tensor, n_iter: int) -> bool:
    """Whether a stem's solve is too long for its kernels, and is taken step by step instead."""
    return n_iter > stem.STEPS and stem.serves(dictionary)


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, *options):
    arguments = (x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, *options)
    if not _fills_the_stack(dictionary, n_iter):
        return _kernels(dictionary).fista(*arguments)
    return tuple(tensor.to(x.dtype) for tensor in wide.fista(*map(_in_float32, arguments)))


def fista_backward(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, *options
):  # fmt: skip
    arguments = (grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, *options)
    if not _fills_the_stack(dictionary, n_iter):
        return _kernels(dictionary).fista_backward(*arguments)
    found = wide.fista_backward(*map(_in_float32, arguments))
    targets = (x, dictionary, lmbda, mu, step_size, z0, mask)
    return [g if g is None else g.to(target.dtype) for g, target in zip(found, targets)]


def _in_float32(value: Any) -> Any:
    """What a stem's kernels compute in, whatever they read and write."""
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value
