"""Triton's interpreter for the tests: kernels run on CPU tensors. Import this before triton.

TRITON_INTERPRET=1 has to be in the environment when triton is imported, so that the tests of the kernels are runs
of pytest of their own, which `make test` starts: see tests/test_triton.py.
"""

from __future__ import annotations

import os


def active() -> bool:
    """Whether kernels are interpreted in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def quicken() -> None:
    """Spare the interpreter two thirds of its time.

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
