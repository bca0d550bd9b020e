"""The launches, in terms of tensors: every result is allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import code_size
from ..ops.library import empty
from . import library
from .plan import direct, splits


def mask_like(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask as a view with x's shape and dtype."""
    return None if mask is None else mask.to(x.dtype).expand(x.shape)


def code_shape(x: Tensor, dictionary: Tensor, stride, pads) -> tuple[int, int, int, int]:
    size = code_size(x.shape[2:], dictionary.shape[2:], stride, pads)
    return (x.shape[0], dictionary.shape[0], *size)


def synthesis(z, dictionary, stride, pads, like, scale=1.0, x=None, mask=None) -> Tensor:
    """mask (x - A z), or mask scale A z without x, in the layout of `like`."""
    result = empty(like, like.shape)
    tf32 = library.allows_tf32(z.dtype)
    plan = direct(True, result, z, dictionary, stride, pads, tf32)
    torch.ops.csc_cuda.synthesis(z, dictionary, stride, pads, scale, x, mask_like(like, mask), tf32, plan, result)
    return result


def step(r, dictionary, stride, pads, scale, base, lmbda, mu, nonneg, previous=None, beta=None):
    """prox(base + scale A' r), and with beta the point extrapolated from it; without lmbda no prox."""
    shape = code_shape(r, dictionary, stride, pads)
    code = empty(r, shape)
    point = None if beta is None else empty(r, shape)
    penalties = [None if p is None else library.number(p, shape) for p in (lmbda, mu)]
    tf32 = library.allows_tf32(r.dtype)
    plan = direct(False, r, code, dictionary, stride, pads, tf32)
    torch.ops.csc_cuda.analysis(
        r, dictionary, stride, pads, library.number(scale), base, *penalties, nonneg, previous, beta or 0.0,
        tf32, plan, code, point,
    )  # fmt: skip
    return code, point


def analysis(r, dictionary, stride, pads, scale, base=None) -> Tensor:
    """base + scale A' r."""
    return step(r, dictionary, stride, pads, scale, base, None, None, True)[0]


def correlation(r, code, dictionary, stride, pads, scale) -> Tensor:
    """scale times the gradient of <A' r, code> with respect to the dictionary, float32."""
    result = torch.empty(dictionary.shape, dtype=torch.float32, device=r.device)
    positions = code.shape[0] * code.shape[2] * code.shape[3]
    partials = result.new_empty(splits(positions), *dictionary.shape)
    torch.ops.csc_cuda.correlation(r, code, stride, pads, library.allows_tf32(r.dtype), partials, result)
    return scale * result
