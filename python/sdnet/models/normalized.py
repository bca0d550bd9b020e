"""A network that takes pictures in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """A network behind (x - mean) / std, so that attacks, noise and users all speak of pixels in [0, 1].

    Args:
        network: takes normalised pictures (N, C, H, W).
        mean, std: per channel, of pictures in [0, 1].

    >>> model = Normalized(nn.Identity(), mean=(0.5,), std=(0.25,))
    >>> model(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std need one number per channel, std above 0; got {mean} and {std}")
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network((pictures - self.mean) / self.std)
