"""What the tests run on and with: the device, every backend with its dtypes, and how many random examples."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

import csc_kernels as csc
from csc_kernels import native


def examples(count: int) -> settings:
    """Hypothesis with the same examples on every machine; the fixture `backend` holds for all of them."""
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=ignored)


# Where the tests put their tensors: `make test DEVICE=cuda`.
DEVICE = os.environ.get("CSC_TEST_DEVICE", "cpu")
if DEVICE == "cuda" and not torch.cuda.is_available():
    raise SystemExit("DEVICE=cuda: torch sees no GPU on this machine")


def serves(backend: str, dtype: torch.dtype) -> bool:
    """Whether a backend that runs here serves a dtype on the device of the tests."""
    x = torch.zeros(1, 1, 1, 1, dtype=dtype, device=DEVICE)
    try:
        with csc.use_backend(backend):
            csc.residual(x, x, x)
    except RuntimeError:
        return False
    return True


# Every backend with every dtype it serves, for parametrize("backend, dtype", ..., indirect=["backend"]).
BACKENDS = [name for name in csc.available_backends() if serves(name, torch.float32)]
# Those of the native kernels that run here.
ISAS = native.build_info()["isa_available"] if "native" in BACKENDS else []
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
EACH_DTYPE = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for name in BACKENDS
    for dtype in DTYPES
    if serves(name, dtype)
]
# float32 is what every backend serves; gradients jump where rounding changes the support of a code, which
# bfloat16 does everywhere: the margin of a problem keeps it out of float32.
PRECISE = [case for case in EACH_DTYPE if case.values[1] is not torch.bfloat16]
