"""SDNets whose layer is written in plain PyTorch: as published, and as a careful user would."""

from __future__ import annotations

import torch
from sdnet.plain import Published, cleaned
from torch import Tensor, nn
from torch.nn import functional as F

import csc_kernels as csc


class Cleaned(nn.Module):
    """The layer in eager PyTorch; its step size is a constant, which training would have to find again."""

    def __init__(self, layer: csc.CSCConv2d) -> None:
        super().__init__()
        self.weight = layer.weight
        self.stride, self.padding, self.lmbda = layer.stride[0], layer.padding, float(layer.lmbda)
        self.step_size = float(1 / csc.lipschitz(layer.dictionary().detach(), stride=layer.stride, method="bound"))

    def forward(self, x: Tensor) -> Tensor:
        return cleaned(
            x, F.normalize(self.weight.flatten(1)).view_as(self.weight), self.lmbda, self.step_size, self.stride,
            self.padding,
        )  # fmt: skip


class AsShipped(nn.Module):
    """The published layer with the power iteration that its loops call before each batch."""

    def __init__(self, layer: csc.CSCConv2d) -> None:
        super().__init__()
        self.layer = Published(
            layer.in_channels, layer.out_channels, layer.kernel_size[0], stride=layer.stride[0],
            padding=layer.padding, lmbda=float(layer.lmbda),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, kernel = self.layer.stride, self.layer.padding, self.layer.weight.shape[-1]
        with torch.no_grad():
            self.layer.update_step_size(tuple((n + 2 * padding - kernel) // stride + 1 for n in x.shape[-2:]))
        return self.layer(x)


def _replaced(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    layers = [name for name, module in model.named_modules() if isinstance(module, csc.CSCConv2d)]
    for name in layers:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, kind(model.get_submodule(name)))
    return model


def cleaned_eager(model: nn.Module) -> nn.Module:
    return _replaced(model, Cleaned)


def as_shipped(model: nn.Module) -> nn.Module:
    return _replaced(model, AsShipped)
