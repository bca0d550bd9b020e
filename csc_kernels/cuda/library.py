"""The compiled library: whether it holds the CUDA kernels, and what it needs to know of a device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import backends
from ..native.library import unavailable as library_unavailable


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run in this process."""
    reason = library_unavailable()
    if reason is not None:
        return reason
    if not torch.ops.csc_cuda.built():
        return "csc_kernels was installed without its CUDA kernels: no nvcc was found, or CSC_KERNELS_CUDA=0"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is not None:
        return "it serves NVIDIA devices; AMD's are served by triton"
    if not torch.ops.csc_cuda.runs():
        return f"its kernels were not compiled for {torch.cuda.get_device_name()}, or need a newer driver"
    return None


def serves_device(x: Tensor) -> bool:
    return x.device.type == "cuda"


def is_device_number(value: Tensor) -> bool:
    """Whether a parameter must be read on the device."""
    return value.device.type == "cuda"


@functools.cache
def limits(device: torch.device) -> tuple[int, int]:
    """Bytes of shared memory that a block may have, and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    shared_bytes = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return shared_bytes, properties.multi_processor_count


def allows_tf32(dtype: torch.dtype) -> bool:
    """What torch allows its own convolutions."""
    return dtype is torch.float32 and backends.allows_tf32()


def number(value: Tensor, code_shape: tuple[int, ...] | None = None) -> Tensor:
    """lmbda, mu or a step size as the kernels take it: float32, on the host a scalar, else broadcast to the code.

    Nothing on the device is read, and nothing copied but for another dtype.
    """
    value = value.to(torch.float32)
    if not is_device_number(value) or code_shape is None:
        return value
    return value.reshape((1,) * (4 - value.dim()) + tuple(value.shape)).expand(code_shape)
