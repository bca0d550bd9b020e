"""The compiled library: loading it, and the instruction set that its kernels use."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def build_info() -> dict[str, object]:
    """The compiler that built the library, the instruction set in use and those that this CPU runs."""
    ops = torch.ops.csc_native
    return {
        "compiler": ops.compiler(),
        "isa": ops.isa(),
        "isa_available": ops.runnable_isas().split(),
    }


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the stem kernels of another instruction set until the context ends, in the whole process.

    Raises:
        RuntimeError: this processor cannot run it.
    """
    before = torch.ops.csc_native.isa()
    torch.ops.csc_native.choose_isa(name)
    try:
        yield
    finally:
        torch.ops.csc_native.choose_isa(before)
