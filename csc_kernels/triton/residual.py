"""csc::residual on a GPU: one kernel forward; backward two, each of one gradient."""

from __future__ import annotations

from ..ops.library import gradient_of, image, unused
from . import passes
from .passes import Geometry


def residual(x, z, dictionary, stride, pads, mask):
    return passes.residual(Geometry.of(x, dictionary, z.shape, stride, pads, mask), z)


def residual_backward(grad, x, z, dictionary, stride, pads, mask, needs):
    g = Geometry.of(x, dictionary, z.shape, stride, pads, mask)
    masked = grad if mask is None else grad * mask
    grad_x = image(x, masked) if needs[0] else unused(x)
    if grad_x.data_ptr() == grad.data_ptr():  # An op must not return its own argument.
        grad_x = grad_x.clone()
    return (
        grad_x,
        passes.code_gradient(g, masked, None, 0.0) if needs[1] else unused(x),
        gradient_of(dictionary, passes.correlation(g, masked, z, -1.0)) if needs[2] else unused(x),
        unused(x),
    )
