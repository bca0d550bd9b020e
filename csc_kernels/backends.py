"""Which backend serves an op: the one place where that is decided."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# In order of preference. Each is a module of this package with
#   unavailable() -> why it cannot run in this process, or None
#   unsupported(op, x, ...) -> why it cannot serve this call, or None
# and one function per op with the op's own signature.
_MODULES = {
    "cuda": ".cuda",
    "triton": ".triton_backend",
    "cudnn": ".cudnn",
    "native": ".native",
    "reference": ".reference_backend",
}
GPU_BACKENDS = ("triton", "cuda", "cudnn")
BACKENDS = ("native", "triton", "cuda", "cudnn", "reference")
_forced: str | None = None

# The others run on a CPU where their kernels are interpreted or emulated, and then only where they are forced.
_CPU_ORDER = ("native", "reference")

# On a GPU the order depends on the kind of call. Predicted from counts, measured by nobody: a solve on chip moves
# the fewest bytes; else products decide, and of those on tensor cores triton's, with the rest in their epilogue. In
# plain float32 there are none, and cuDNN's convolutions have Winograd's algorithm. Last come the direct kernels of
# "cuda", which fetch and multiply by turns.
_GPU_ORDER = {
    "on chip": ("cuda", "triton", "cudnn", "reference"),
    "tensor cores": ("triton", "cudnn", "reference", "cuda"),
    "plain float32": ("cudnn", "triton", "reference", "cuda"),
}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(_MODULES[name], __package__)


def unavailable(name: str) -> str | None:
    """Why the backend cannot run in this process; None when it can."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {name!r}")
    if name not in _MODULES:
        return f"this version has no {name} backend"
    return _module(name).unavailable()


def available_backends() -> list[str]:
    """Names of the backends that run in this process, the preferred one first.

    >>> "reference" in available_backends()
    True
    """
    return [name for name in _MODULES if unavailable(name) is None]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every op with one backend, in the whole process, until the context ends.

    An op that this backend cannot serve raises RuntimeError and says why.

    Args:
        name: "reference", "native", "triton", "cuda" or "cudnn".

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend cannot run in this process.

    >>> with use_backend("reference"):
    ...     pass
    """
    global _forced
    reason = unavailable(name)
    if reason is not None:
        raise RuntimeError(f'backend "{name}" is not available: {reason}')
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def runs_natively(x: Tensor) -> bool:
    """Whether "native" does what only it and plain PyTorch can: on the CPU, unless another backend is forced."""
    return x.device.type == "cpu" and _forced in (None, "native") and unavailable("native") is None


def allows_tf32() -> bool:
    """Whether torch allows its own convolutions TF32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _order(op: str, x: Tensor, dictionary: Tensor, solve: tuple | None) -> tuple[str, ...]:
    """The backends to ask for a call, the preferred one first."""
    if x.device.type == "cpu":
        return _CPU_ORDER
    cuda = _module("cuda")
    if solve is not None and cuda.unavailable() is None and cuda.runs_on_chip(op, x, dictionary, *solve):
        return _GPU_ORDER["on chip"]
    plain = x.dtype is torch.float32 and not allows_tf32()
    return _GPU_ORDER["plain float32" if plain else "tensor cores"]


def choose(op: str, x: Tensor, **facts: Any) -> ModuleType:
    """The backend for one call of `op`; `facts` is what else the decision depends on.

    Of a solve that keeps nothing, `solve` is its stride, pads, n_iter, momentum, and whether it starts from a code.
    """
    if _forced is not None:
        module = _module(_forced)
        reason = module.unsupported(op, x, **facts)
        if reason is not None:
            raise RuntimeError(f'backend "{_forced}" cannot serve csc.{op} here: {reason}')
        return module
    for name in _order(op, x, facts["dictionary"], facts.get("solve")):
        module = _module(name)
        if module.unavailable() is None and module.unsupported(op, x, **facts) is None:
            return module
    raise RuntimeError(f"no backend serves csc.{op} for {x.dtype} on {x.device}")
