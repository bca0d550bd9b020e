"""Launches of every kernel on representative problems, for the tables of resources and traffic and for tuning.

The problems are SDNet-18's: its stem on CIFAR, and its first wide layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import pretending, shape_class
from .fista import fista
from .fista_step import fista_step, fista_step_backward
from .launch import Launch, recorded

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """A layer: batch, channels and side of its square images, atoms and side of its square kernel, and stride."""

    batch: int
    channels: int
    side: int
    atoms: int
    kernel: int = 3
    stride: int = 1

    @property
    def shape(self) -> str:
        return shape_class(self.channels)

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        return (self.stride, self.stride), (self.kernel // 2,) * 4

    @property
    def code_side(self) -> int:
        return (self.side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    def tensors(self, dtype: torch.dtype, device: str, layout: str) -> tuple[Tensor, Tensor, Tensor]:
        """x, z and the dictionary, uninitialised."""

        def image(channels: int, side: int) -> Tensor:
            shape = (self.batch, channels, side, side)
            return torch.empty(shape, dtype=dtype, device=device, memory_format=LAYOUTS[layout])

        dictionary = torch.empty(self.atoms, self.channels, self.kernel, self.kernel, dtype=dtype, device=device)
        return image(self.channels, self.side), image(self.atoms, self.code_side), dictionary


CIFAR_STEM = Case(64, 3, 32, 64)
WIDE = Case(64, 64, 32, 64)
CASES = {"CIFAR stem": CIFAR_STEM, "ImageNet stem": Case(32, 3, 224, 64, 7, 2), "wide": WIDE}


def run(case: Case, x: Tensor, z: Tensor, dictionary: Tensor) -> None:
    """One solve of two steps, one step with momentum, and its backward with every gradient."""
    nothing = torch.zeros((), dtype=torch.float64)
    step_size = torch.full((), 0.1, dtype=torch.float32, device=x.device)
    parameters = (nothing, nothing, step_size)
    fista(x, dictionary, *parameters, None, None, 2, *case.geometry, True, "fista", False)
    fista_step(x, z, z, dictionary, *parameters, 0.3, *case.geometry, True, False, None)
    needs = [True, True, True, True, False, False, True, False]
    fista_step_backward(z, z, z, x, z, z, dictionary, *parameters, 0.3, *case.geometry, False, None, needs)


def launches(case: Case, dtype: torch.dtype, layout: str, architecture: str) -> Iterator[Launch]:
    """One launch of every kernel: of its variants the one with the most tensors."""
    with recorded() as found, pretending(architecture):
        run(case, *case.tensors(dtype, "meta", layout))

    def tensors(launch: Launch) -> int:
        return sum(isinstance(value, Tensor) for value in launch.arguments.values())

    for kernel in dict.fromkeys(launch.kernel for launch in found):
        yield max((launch for launch in found if launch.kernel is kernel), key=tensors)
