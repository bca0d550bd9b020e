"""Random problems of the Triton kernels, with the shipped block sizes and with small tiles."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import torch
from error_rule import assert_gradients
from hypothesis import strategies as st
from interpreter import with_triton
from problems import Problem
from random_solves import each, problem_of, solves
from test_triton import assert_solve, small_tiles


@with_triton
def test_any_solve_and_its_gradients_obey_the_rule(whole: bool) -> None:
    from csc_kernels.triton import blocks

    on_chip = blocks.table()["fista", "2", "float32", "any"]

    def check(options: dict, small: bool, steps: int) -> None:
        with ExitStack() as tables:
            if small:
                tables.enter_context(small_tiles())
            # More steps on chip than the shipped table has rows for.
            tables.enter_context(blocks.using(replace(on_chip, shape=str(steps))))
            problem = problem_of(options)
            assert_solve(problem)
            if problem.margin() > 1e-5:
                assert_gradients(Problem.solve, Problem.plain, problem)

    each(24 if whole else 3, check, options=solves(), small=st.booleans(), steps=st.integers(2, 4))


@with_triton
def test_any_solve_in_float16_obeys_the_rule(whole: bool) -> None:
    def check(options: dict) -> None:
        assert_solve(problem_of(options, torch.float16))

    each(20 if whole else 2, check, options=solves())
