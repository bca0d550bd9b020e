"""What the tests of CSCConv2d share: sizes, inputs and a step of training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from csc_kernels import CSCConv2d

# step="auto" takes the bound for the first, the power iteration for the other.
STEM, WIDE = (3, 8, 3), (40, 6, 3)
both_sizes = pytest.mark.parametrize("sizes", (STEM, WIDE), ids=("stem", "wide"))
both_norms = pytest.mark.parametrize("normalize", ("sphere", "projection"))


def image(layer: CSCConv2d, *size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, layer.in_channels, *(size or (8, 9)))


def train_step(layer: nn.Module, x: Tensor, rate: float = 0.1) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    layer(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def atom_norms(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).norm(dim=1)


def compiled(layer: nn.Module) -> nn.Module:
    torch.compiler.reset()  # What other tests compiled counts towards its limit.
    return torch.compile(layer, fullgraph=True, backend="aot_eager")
