"""Runs tests of the Triton kernels where there is no GPU: in triton's interpreter, in a process of its own.

TRITON_INTERPRET=1 has to be in the environment before triton is imported, and makes "triton" a backend of CPU
tensors for the whole process; a process of their own keeps that from all other tests.
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import operator
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from conditions import DEVICE


def with_triton(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with the backend "triton": on a GPU where the tests are for one, else in the interpreter."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        if DEVICE != "cpu" or os.environ.get("TRITON_INTERPRET") == "1":
            _call(test.__module__, test.__name__, arguments)
        else:
            _worker().submit(_call, test.__module__, test.__name__, arguments).result()

    return run


def _call(module: str, name: str, arguments: dict[str, Any]) -> None:
    import csc_kernels as csc

    test = getattr(importlib.import_module(module), name).__wrapped__
    with csc.use_backend("triton"):
        test(**arguments)


@functools.cache
def _worker() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        pool.submit(_start).result()  # The process is there, with its environment.
    finally:
        del os.environ["TRITON_INTERPRET"]
    return pool


def _start() -> None:
    torch.set_num_threads(1)
    quicken()
    gc.freeze()  # The interpreter makes many objects: what is imported need not be searched for garbage each time.


def quicken() -> None:
    """Spare the interpreter two thirds of its time, none of which is the kernels' own arithmetic.

    It patches triton.language again at every call of a device function, although the launch has done so, makes a
    table of dtypes, the type and the shape of the result at every operation, and computes with five more operations
    whether an integer overflows, to ask only where it debugs. Here that is always asked, of numpy.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    interpreter.InterpretedFunction.__call__ = _call_of_a_device_function
    by_scalar = functools.cache(interpreter._get_np_dtype)

    def numpys(dtype):
        scalar = dtype.scalar
        return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else by_scalar(scalar)

    interpreter._get_np_dtype = numpys
    interpreter.TritonSemantic.binary_op_sanitize_overflow_impl = _assert_no_overflow
    _make_types_once(tl.core)


def _call_of_a_device_function(self, *args, **kwargs):
    from triton import language as tl
    from triton.runtime import interpreter

    if tl.core.is_builtin(tl.load) or tl.core.is_builtin(tl.core.load):
        interpreter._patch_lang(self.fn)
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def _assert_no_overflow(self, left, right, operation) -> None:
    scalar = left.type.scalar
    if scalar.int_bitwidth < 64 and self.builder.options.sanitize_overflow:
        exact = getattr(operator, operation.__name__)(left.handle.data.astype(np.int64), right.handle.data)
        least, most = scalar.get_int_min_value(), scalar.get_int_max_value()
        assert np.all((least <= exact) & (exact <= most)), f"{scalar} overflows in {operation.__name__}"


def _make_types_once(core) -> None:
    """Types of blocks with the same elements and shape share what they are made of."""
    made: dict[tuple, dict[str, Any]] = {}
    make_type = core.block_type.__init__
    scalars = core.tuple([]), core.constexpr(1)

    def block_type(self, element_ty, shape) -> None:
        key = element_ty.name, element_ty.is_const(), tuple(core._unwrap_if_constexpr(size) for size in shape)
        if key not in made:
            make_type(self, element_ty, shape)
            self.extents = core.tuple([core.constexpr(size) for size in self.shape]), core.constexpr(self.numel)
            made[key] = self.__dict__
        self.__dict__ = made[key]

    def tensor(self, handle, type) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.extents if type.is_block() else scalars

    def same_type(self, other) -> bool:
        other = core._unwrap_if_constexpr(other)
        return self is other or (isinstance(other, core.dtype) and self.name == other.name)

    core.block_type.__init__ = block_type
    core.tensor.__init__ = tensor
    core.dtype.__eq__ = same_type
