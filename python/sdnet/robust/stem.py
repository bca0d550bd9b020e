"""The stem's lmbda, which robust inference changes: a threshold, so that no weight is touched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from csc_kernels import CSCConv2d

from ..training.statistics import csc_layers


def stem_layers(model: nn.Module) -> list[CSCConv2d]:
    """The sparse coding layers that see the picture first: those of layer0 in an SDNet, else the first one.

    Raises:
        ValueError: the model has no sparse coding layer, as a ResNet: lmbda has no meaning there.
    """
    layers = csc_layers(model)
    if not layers:
        network = getattr(model, "network", model)
        raise ValueError(
            f"lmbda has no meaning in this model: {type(network).__name__} has no sparse coding layer "
            "(CSCConv2d), as an SDNet has"
        )
    stem = [layer for name, layer in layers.items() if "layer0" in name.split(".")]
    return stem or [next(iter(layers.values()))]


def own_lmbda(model: nn.Module) -> float | None:
    """The lmbda that a model's stem has by itself; None where it is not one number.

    Raises:
        ValueError: the model has no sparse coding layer.
    """
    lmbda = stem_layers(model)[0].lmbda
    return None if isinstance(lmbda, Tensor) and lmbda.numel() != 1 else float(lmbda)


@contextmanager
def stem_lmbda(model: nn.Module, lmbda: float | Tensor | None) -> Iterator[None]:
    """The model with another lmbda in its stem, from which it gets its own back; None leaves its own.

    A tensor is one lmbda per picture, (N, 1, 1, 1), and may require gradients. The model is changed meanwhile:
    not for several threads at once.

    Raises:
        ValueError: the model has no sparse coding layer, or lmbda is negative or not finite.
    """
    if lmbda is None:
        yield
        return
    layers = stem_layers(model)
    if not isinstance(lmbda, Tensor):
        check_lmbda(lmbda)
    before = [layer.lmbda for layer in layers]
    try:
        for layer in layers:
            layer.lmbda = lmbda
        yield
    finally:
        for layer, own in zip(layers, before):
            layer.lmbda = own


def check_lmbda(lmbda: float) -> None:
    if not (math.isfinite(lmbda) and lmbda >= 0):
        raise ValueError(f"lmbda must be at least 0 and finite, got {lmbda}")


class AtLmbda(nn.Module):
    """A model at one lmbda of its stem, as a model: what an attack differentiates is what is evaluated."""

    def __init__(self, model: nn.Module, lmbda: float | None) -> None:
        super().__init__()
        if lmbda is not None:
            stem_layers(model)
            check_lmbda(lmbda)
        self.model, self.lmbda = model, lmbda
        self.train(model.training)

    def forward(self, pictures: Tensor) -> Tensor:
        with stem_lmbda(self.model, self.lmbda):
            return self.model(pictures)


class AverageOver(nn.Module):
    """The mean log-probability over several lmbda: an attack on it aims at all of them at once."""

    def __init__(self, model: nn.Module, lmbdas: tuple[float, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(AtLmbda(model, lmbda) for lmbda in lmbdas)
        self.train(model.training)

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.stack([part(pictures).log_softmax(-1) for part in self.parts]).mean(0)
