"""Runs tests of the Triton kernels where there is no GPU: in triton's interpreter, in a process of its own.

TRITON_INTERPRET=1 has to be in the environment before triton is imported, and makes "triton" a backend of CPU
tensors for the whole process; a process of their own keeps that from all other tests.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

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


def quicken() -> None:
    """Spare the interpreter half of its time.

    It patches triton.language again at every call of a device function, although the launch has done so.
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
