"""The compiled library: loading it, and the instruction set that its kernels use."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@functools.cache
def unavailable() -> str | None:
    """Why the library cannot be used in this process; loads it if it can."""
    built = sorted(Path(__file__).parent.parent.glob("_native*.so"))
    if not built:
        return "csc_kernels was installed without its compiled kernels"
    try:
        torch.ops.load_library(built[0])
    except OSError as error:
        return f"its library does not load with torch {torch.__version__}: {error}"
    return None


def _loaded() -> Any:
    """The library's ops, for those who come before any solve."""
    reason = unavailable()
    if reason is not None:
        raise RuntimeError(reason)
    return torch.ops.csc_native


def build_info() -> dict[str, object]:
    """The compiler that built the library, the instruction set in use and those that this CPU runs.

    Raises:
        RuntimeError: there is no library, or it does not load.
    """
    ops = _loaded()
    return {
        "compiler": ops.compiler(),
        "isa": ops.isa(),
        "isa_available": ops.runnable_isas().split(),
    }


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the stem kernels of another instruction set until the context ends, in the whole process.

    Raises:
        RuntimeError: this processor cannot run it, or there is no library.
    """
    ops = _loaded()
    before = ops.isa()
    ops.choose_isa(name)
    try:
        yield
    finally:
        ops.choose_isa(before)
