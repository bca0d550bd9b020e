"""Convolutional sparse coding for PyTorch."""

from .backends import available_backends, use_backend
from .functional import fista, fista_step, residual
from .layers import CSCConv2d
from .lipschitz import lipschitz
from .penalties import set_lmbda
from .tuning import tune
from .version import __version__

__all__ = [
    "__version__",
    "CSCConv2d",
    "available_backends",
    "fista",
    "fista_step",
    "lipschitz",
    "residual",
    "set_lmbda",
    "tune",
    "use_backend",
]
