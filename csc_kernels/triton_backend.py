"""The backend "triton": fused kernels for NVIDIA and AMD GPUs.

With TRITON_INTERPRET=1, set before triton is imported, the same kernels run on CPU tensors, slowly: that is how
they are tested where there is no GPU. Importing this module does not import triton.
"""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def interpreting() -> bool:
    """Whether triton runs kernels on the CPU in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run in this process."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "there is no GPU (TRITON_INTERPRET=1 runs its kernels on the CPU, for tests)"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return f"it needs compute capability 8.0, {torch.cuda.get_device_name()} is older"
    return None


def unsupported(op: str, x: Tensor, **facts: Any) -> str | None:
    """Why these kernels cannot serve a call."""
    device = "cpu" if interpreting() else "cuda"
    if x.device.type != device:
        return f"it serves {device} tensors, x is on {x.device}"
    # The interpreter multiplies the bit patterns of bfloat16.
    dtypes = (torch.float32, torch.float16) if interpreting() else (torch.float32, torch.float16, torch.bfloat16)
    if x.dtype not in dtypes:
        return f"it serves {', '.join(str(d).removeprefix('torch.') for d in dtypes)}, x is {x.dtype}"
    if facts["dictionary"].dtype != x.dtype:
        return f"x is {x.dtype}, the dictionary {facts['dictionary'].dtype}"
    if facts.get("mask_gradient"):
        return "it has no gradient for the mask"
    return None


# The modules with kernels import triton, so that they are loaded at the first call.


def residual(*arguments):
    from .triton.residual import residual

    return residual(*arguments)


def residual_backward(*arguments):
    from .triton.residual import residual_backward

    return residual_backward(*arguments)


def fista_step(*arguments):
    from .triton.fista_step import fista_step

    return fista_step(*arguments)


def fista_step_backward(*arguments):
    from .triton.fista_step import fista_step_backward

    return fista_step_backward(*arguments)


def fista(*arguments):
    from .triton.fista import fista

    return fista(*arguments)


def fista_backward(*arguments):
    from .triton.fista import fista_backward

    return fista_backward(*arguments)
