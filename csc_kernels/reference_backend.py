"""The backend "reference": csc_kernels.reference behind the ops' signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .ops.fista import kept_tensors
from .ops.library import gradient_of, image, unused


def unavailable() -> str | None:
    return None


def unsupported(op: str, x: Tensor, **facts: Any) -> str | None:
    return None


def _plain(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """lmbda, mu and step_size in a dtype that does not promote x's."""
    return [p if p.dim() == 0 else p.to(x.dtype) for p in parameters]


def residual(x, z, dictionary, stride, pads, mask):
    return image(x, reference.residual(x, z, dictionary, stride, pads, mask))


def residual_backward(grad, x, z, dictionary, stride, pads, mask, needs):
    grads = reference.residual_backward(grad, x, z, dictionary, stride, pads, mask)
    grad_x, grad_z, grad_dictionary, grad_mask = grads
    return (
        _own(image(x, grad_x), grad) if needs[0] else unused(x),
        image(x, grad_z) if needs[1] else unused(x),
        gradient_of(dictionary, grad_dictionary) if needs[2] else unused(x),
        gradient_of(mask, grad_mask) if needs[3] else unused(x),
    )


def _own(value: Tensor, argument: Tensor) -> Tensor:
    """An op must not return its own argument."""
    return value.clone() if value.data_ptr() == argument.data_ptr() else value


def fista_step(x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask):
    lmbda, mu, step_size = _plain(x, lmbda, mu, step_size)
    z_next, y_next = reference.fista_step(
        x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask
    )
    return image(x, z_next), y_next if beta is None else image(x, y_next)


def fista_step_backward(
    grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads,
    gradient_at_z, mask, needs,
):  # fmt: skip
    sums, grad_z, grad_y = reference.fista_step_backward(
        grad_z_next, grad_y_next, z_next, x, z, y, dictionary, *_plain(x, lmbda, mu, step_size),
        beta, stride, pads, gradient_at_z, mask,
    )  # fmt: skip
    images = [image(x, g) for g in (sums.x, grad_z, grad_y)]
    rest = _parameter_gradients(sums, dictionary, lmbda, mu, step_size, mask)
    return tuple(g if need else unused(x) for g, need in zip(images + rest, needs))


def _parameter_gradients(sums, dictionary, lmbda, mu, step_size, mask) -> list[Tensor | None]:
    return [
        gradient_of(dictionary, sums.dictionary),
        gradient_of(lmbda, sums.lmbda),
        gradient_of(mu, sums.mu),
        gradient_of(step_size, sums.step_size),
        None if sums.mask is None else gradient_of(mask, sums.mask),
    ]


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    codes, residuals = reference.fista(
        x, dictionary, *_plain(x, lmbda, mu, step_size), z0, mask, n_iter, stride, pads, nonneg,
        momentum,
    )  # fmt: skip
    kept = kept_tensors(x, codes[-1].shape, z0, n_iter, keep)
    values = codes[:-1], residuals[0 if z0 is not None else 1 :]
    return image(x, codes[-1]), *map(_stack, kept, values)


def _stack(out: Tensor, values: Sequence[Tensor]) -> Tensor:
    """The tensors along the batch in `out`, as many as it has room for."""
    return torch.cat(tuple(values), out=out) if out.shape[0] else out


def fista_backward(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    sums, grad_z0 = reference.fista_backward(
        grad, x, dictionary, *_plain(x, lmbda, mu, step_size), z0, mask, n_iter, stride, pads,
        nonneg, momentum,
    )  # fmt: skip
    parameters = _parameter_gradients(sums, dictionary, lmbda, mu, step_size, mask)
    return [
        image(x, sums.x),
        *parameters[:4],
        None if grad_z0 is None else image(x, grad_z0),
        parameters[4],
    ]
