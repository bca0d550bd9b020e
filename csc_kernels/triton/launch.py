"""Starting a kernel: the one place where a launch happens, and how arguments are handed over."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .blocks import Blocks


def launch(kernel: Any, programs: int, device: torch.device, blocks: Blocks, arguments: dict[str, Any]) -> None:
    """Run a kernel on a device, in its current stream, as that many programs."""
    with _on(device):
        kernel[(programs,)](**arguments, num_warps=blocks.warps, num_stages=blocks.stages)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def tensor(name: str, value: Tensor | None) -> dict[str, Any]:
    """A tensor and its strides, as kernels take them."""
    if value is None:
        return {name: None, f"{name}_strides": None}
    return {name: value.detach(), f"{name}_strides": tuple(value.stride())}


def parameter(name: str, value: Tensor) -> dict[str, Any]:
    """lmbda or mu: a number where it is one on the CPU; strides are None where it is broadcast."""
    if value.dim() == 0 and value.device.type == "cpu":
        return {name: value.item(), f"{name}_strides": None}
    value = value.detach().reshape((1,) * (4 - value.dim()) + tuple(value.shape))
    strides = tuple(None if size == 1 else stride for size, stride in zip(value.shape, value.stride()))
    return {name: value, f"{name}_strides": strides}


def number(value: Tensor) -> float | Tensor:
    """The step size: its value where that costs nothing, on the CPU, and else the tensor."""
    return value.item() if value.device.type == "cpu" else value.detach()


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as PyTorch's own convolutions do it, with TF32 only where that is allowed."""
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if dtype is torch.float32 and allowed else "ieee"


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


