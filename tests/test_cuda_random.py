"""Random problems of the CUDA kernels, on random devices."""

from __future__ import annotations

import pytest
import torch
from emulation.fixtures import device, emulated_process  # noqa: F401
from error_rule import assert_error, ways
from hypothesis import strategies as st
from problems import Problem
from random_solves import each, problem_of, solves
from test_cuda import assert_gradients

DEVICES = {
    "kibibytes": st.one_of(st.integers(30, 100), st.integers(30, 227)),
    "processors": st.integers(1, 5),
    "device_numbers": st.booleans(),
    "seed": st.integers(0, 9),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_any_solve_and_its_gradients_obey_the_rule(device, whole: bool, dtype: torch.dtype) -> None:
    def check(options: dict, kibibytes: int, **state: int) -> None:
        device.shared_limit = 1024 * kibibytes
        for name, value in state.items():
            setattr(device, name, value)
        problem = problem_of(options, dtype)
        assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain())
        if dtype is torch.float32 and problem.margin() > 1e-5:
            assert_gradients(problem)

    each(24 if whole else 6, check, options=solves(), **DEVICES)
