"""The torch ops, one file each, with their backwards and the checks of their arguments."""

from .fista import check_fista, fista, fista_backward
from .fista_step import check_fista_step, fista_step, fista_step_backward
from .lipschitz import lipschitz, lipschitz_bound
from .residual import check_residual, residual, residual_backward

__all__ = [
    "check_fista",
    "check_fista_step",
    "check_residual",
    "fista",
    "fista_backward",
    "fista_step",
    "fista_step_backward",
    "lipschitz",
    "lipschitz_bound",
    "residual",
    "residual_backward",
]
