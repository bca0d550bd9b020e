"""Solves whose data term is not 1/2 ||mask (x - A z)||^2, composed of the ops: any backend, any gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops, reference
from .geometry import Pads, step_weights


def fista_huber(
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    z0: Tensor | None,
    mask: Tensor | None,
    n_iter: int,
    stride: tuple[int, int],
    pads: Pads,
    nonneg: bool,
    momentum: str,
    huber: float,
    plain: bool,
) -> Tensor:
    """FISTA for sum mask huber(x - A z), with huber'(r) = clamp(r, -huber, huber) (Huber 1964).

    The Lipschitz constant of its gradient is ||A||^2 too. The op `fista_step` in its published form adds the
    gradient at one code to another: at zero its residual is the image, for which the clamped residual stands here.
    """
    residual = reference.residual if plain else ops.residual
    fista_step = reference.fista_step if plain else ops.fista_step
    parameters, geometry = (lmbda, mu, step_size), (stride, pads)
    z: Any = z0
    y: Any = z0
    for beta in step_weights(n_iter, momentum):
        point = z if momentum == "sdnet" else y
        if point is None:
            first = (x.clamp(-huber, huber), dictionary, *parameters, None, mask, 1, *geometry, nonneg, "none")
            z = y = reference.fista(*first)[0][-1] if plain else ops.fista(*first, False)[0]
            continue
        r = residual(x, point, dictionary, *geometry, None).clamp(-huber, huber)
        zero = torch.zeros_like(y)
        z_next = fista_step(r, zero, y, dictionary, *parameters, None, *geometry, nonneg, True, mask)[0]
        y = z_next + beta * (z_next - z) if beta else z_next
        z = z_next
    return z


def fista_unsquared(
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    z0: Tensor | None,
    mask: Tensor | None,
    n_iter: int,
    stride: tuple[int, int],
    pads: Pads,
    nonneg: bool,
    momentum: str,
    plain: bool,
) -> Tensor:
    """The solve whose residual is divided by twice its norm.

    The step from zero takes x as it is, as the published layer does.
    """
    residual = reference.residual if plain else ops.residual
    z: Any = z0
    y: Any = z0
    for beta in step_weights(n_iter, momentum):
        point = z if momentum == "sdnet" else y
        if point is None:
            r = x if mask is None else x * mask
        else:
            r = residual(x, point, dictionary, stride, pads, mask)
            norm = torch.linalg.vector_norm(r.detach(), dim=(1, 2, 3), keepdim=True)
            r = r / (2 * norm.clamp_min(1e-12))
        v = step_size * reference.analysis(r, dictionary, stride, pads)
        z_next = reference.prox(v if y is None else y + v, lmbda, mu, step_size, nonneg)
        y = z_next + beta * (z_next - z) if beta else z_next
        z = z_next
    return z
