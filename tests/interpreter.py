"""Runs tests of the Triton kernels where there is no GPU: in triton's interpreter, in a process of its own.

TRITON_INTERPRET=1 has to be in the environment before triton is imported, and makes "triton" a backend of CPU
tensors for the whole process; a process of their own keeps that from all other tests.
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from helpers import DEVICE


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
    """Spare the interpreter half of its time.

    It patches triton.language again at every call of a device function, although the launch has done so, and makes
    a table of dtypes at every operation.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    def call(self, *args, **kwargs):
        if tl.core.is_builtin(tl.load) or tl.core.is_builtin(tl.core.load):
            interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
    by_scalar = functools.cache(interpreter._get_np_dtype)

    def numpys(dtype):
        scalar = dtype.scalar
        return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else by_scalar(scalar)

    interpreter._get_np_dtype = numpys
