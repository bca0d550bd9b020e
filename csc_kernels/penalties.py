"""Penalties of the layers of a model."""

from __future__ import annotations

from torch import Tensor, nn

from .checks import check_penalty
from .layers import CSCConv2d


def set_lmbda(model: nn.Module, lmbda: float | Tensor) -> int:
    """Set lmbda of every CSCConv2d in a model, from the next forward on; returns how many there are.

    Raises:
        TypeError: the model is no module, or the value no number or floating point tensor.
        ValueError: the model has none, or the value is negative or not finite. Nothing was set then.

    >>> set_lmbda(nn.Sequential(CSCConv2d(3, 8, 3), nn.ReLU()), 0.3)
    1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_penalty("lmbda", lmbda)
    layers = [module for module in model.modules() if isinstance(module, CSCConv2d)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no CSCConv2d")
    for layer in layers:
        layer.lmbda = lmbda
    return len(layers)
