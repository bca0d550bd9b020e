"""Dictionaries that a step size must survive: random ones, and those that are as bad as can be."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_dictionary(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(shape, dtype=torch.float64, generator=generator)
    return (dictionary / dictionary.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).to(dtype)


def constant(atoms: int, channels: int, rows: int, columns: int) -> Tensor:
    """All energy at frequency zero: the largest norm that atoms of unit norm can have."""
    return torch.full((atoms, channels, rows, columns), (channels * rows * columns) ** -0.5).double()


def alternating(atoms: int, channels: int, rows: int, columns: int) -> Tensor:
    """The same at the highest frequency."""
    sign = (-1.0) ** (torch.arange(rows).view(-1, 1) + torch.arange(columns))
    return constant(atoms, channels, rows, columns) * sign


def one_frequency(atoms: int, channels: int, rows: int, columns: int, cycles: float = 0.17) -> Tensor:
    """A wave whose frequency is on no grid, one phase per atom."""
    phase = torch.arange(atoms).view(-1, 1, 1, 1)
    position = torch.arange(rows).view(-1, 1) + 0.6 * torch.arange(columns)
    wave = torch.cos(2 * math.pi * cycles * position + phase).double()
    return wave.expand(atoms, channels, rows, columns) / (channels * rows * columns) ** 0.5


def nearly_rank_one(atoms: int, channels: int, rows: int, columns: int) -> Tensor:
    base = random_dictionary(1, channels, rows, columns)
    return base + 1e-3 * random_dictionary(atoms, channels, rows, columns, seed=1)


def spikes(atoms: int, channels: int, rows: int, columns: int) -> Tensor:
    """Every atom a single one in the first entry: A'A is rank one at each position, and flat in frequency."""
    dictionary = torch.zeros(atoms, channels, rows, columns, dtype=torch.float64)
    dictionary[:, 0, 0, 0] = 1
    return dictionary


ADVERSARIES = {f.__name__: f for f in (constant, alternating, one_frequency, nearly_rank_one, spikes)}
