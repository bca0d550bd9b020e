"""cuda/kernels.py's passes with torch's convolutions: what follows one is done in place of its result."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..cuda import library
from ..cuda.kernels import mask_like


def synthesis(z, dictionary, stride, pads, like, scale=1.0, x=None, mask=None) -> Tensor:
    """mask (x - A z), or mask scale A z without x."""
    result = reference.synthesis(z, dictionary, stride, pads, like.shape[2:])
    torch.ops.csc_cuda.residual_tail(scale, x, mask_like(like, mask), result)
    return result


def step(r, dictionary, stride, pads, scale, base, lmbda, mu, nonneg, previous=None, beta=None):
    """prox(base + scale A' r), and with beta the point extrapolated from it; without lmbda no prox."""
    code = reference.analysis(r, dictionary, stride, pads)
    point = None if beta is None else torch.empty_like(code)
    penalties = [None if p is None else library.number(p, code.shape) for p in (lmbda, mu)]
    torch.ops.csc_cuda.step_tail(
        library.number(scale), base, *penalties, nonneg, previous, beta or 0.0, code, point
    )
    return code, point


def analysis(r, dictionary, stride, pads, scale, base=None) -> Tensor:
    """base + scale A' r."""
    return step(r, dictionary, stride, pads, scale, base, None, None, True)[0]


def correlation(r, code, dictionary, stride, pads) -> Tensor:
    """The gradient of <A' r, code> with respect to the dictionary, float32."""
    return reference.correlation(r, code, dictionary, stride, pads).float()
