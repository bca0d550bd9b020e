"""cuda/kernels.py's passes with torch's convolutions: what follows one is done in place of its result."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..cuda import library
from ..cuda.kernels import mask_like


def synthesis(z, dictionary, stride, pads, like, scale=1.0, x=None, mask=None) -> Tensor:
    """mask (x - A z), or mask scale A z without x."""
    with _own_dtype(z):
        result = reference.synthesis(z, dictionary, stride, pads, like.shape[2:])
    torch.ops.csc_cuda.residual_tail(scale, x, mask_like(like, mask), result)
    return result


def step(r, dictionary, stride, pads, scale, base, lmbda, mu, nonneg, previous=None, beta=None):
    """prox(base + scale A' r), and with beta the point extrapolated from it; without lmbda no prox."""
    with _own_dtype(r):
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


def correlation(r, code, dictionary, stride, pads, scale) -> Tensor:
    """scale times the gradient of <A' r, code> with respect to the dictionary, float32.

    The convolution's sums end in r's dtype, so that r is scaled before: they reach further than what is asked for.
    """
    with _own_dtype(r):
        return reference.correlation(scale * r, code, dictionary, stride, pads).float()


def _own_dtype(value: Tensor) -> torch.autocast:
    """A backward may run where autocast is active; its tensors keep their dtype, as everything of ours does."""
    return torch.autocast(value.device.type, enabled=False)
