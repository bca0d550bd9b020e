"""The torch ops, one file each, with their backwards."""

from .fista import fista, fista_backward
from .fista_step import fista_step, fista_step_backward
from .lipschitz import lipschitz, lipschitz_bound
from .residual import residual, residual_backward

__all__ = [
    "fista",
    "fista_backward",
    "fista_step",
    "fista_step_backward",
    "lipschitz",
    "lipschitz_bound",
    "residual",
    "residual_backward",
]
