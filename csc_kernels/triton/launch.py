"""Starting a kernel: the one place where a launch happens, and how arguments are handed over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import allows_tf32
from .blocks import Blocks


@dataclass(frozen=True)
class Launch:
    """A kernel, the number of its programs, its row of the table, and its arguments."""

    kernel: Any
    programs: int
    blocks: Blocks
    arguments: dict[str, Any]


_recorded: list[Launch] | None = None


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """List the launches of a context instead of making them; its tensors may be on the device "meta"."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel: Any, programs: int, device: torch.device, blocks: Blocks, arguments: dict[str, Any]) -> None:
    """Run a kernel on a device, in its current stream, as that many programs."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, programs, blocks, arguments))
        return
    with _on(device):
        kernel[(programs,)](**arguments, num_warps=blocks.warps, num_stages=blocks.stages)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def tensor(name: str, value: Tensor | None) -> dict[str, Any]:
    """A tensor and its strides, as kernels take them."""
    if value is None:
        return {name: None, f"{name}_strides": None}
    return {name: value.detach(), f"{name}_strides": tuple(value.stride())}


def on_host(value: Tensor) -> bool:
    """Whether its number can be read without waiting for a GPU."""
    return value.device.type == "cpu"


def parameter(name: str, value: Tensor) -> dict[str, Any]:
    """lmbda or mu: a number where it is one on the CPU; strides are None where it is broadcast."""
    if value.dim() == 0 and on_host(value):
        return {name: value.item(), f"{name}_strides": None}
    value = value.detach().reshape((1,) * (4 - value.dim()) + tuple(value.shape))
    strides = tuple(None if size == 1 else stride for size, stride in zip(value.shape, value.stride()))
    return {name: value, f"{name}_strides": strides}


def number(value: Tensor) -> float | Tensor:
    """The step size: its value where that costs nothing, on the CPU, and else the tensor."""
    return value.item() if on_host(value) else value.detach()


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as PyTorch's own convolutions do it, with TF32 only where that is allowed."""
    return "tf32" if dtype is torch.float32 and allows_tf32() else "ieee"


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
