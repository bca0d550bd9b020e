"""The Triton kernels against the float64 oracle, every option; and what only they promise.

Where there is no GPU they run in triton's interpreter: see interpreter.py. It multiplies the bit patterns of
bfloat16, so that here it is float32 and float16, and tests/test_triton_resources.py compiles bfloat16. A float64
call is not theirs: the reference serves it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import test_fista_step
import test_golden
import test_residual
import torch
from error_rule import assert_error, assert_gradients, gradients, ways
from interpreter import with_triton
from problems import CASES, SHAPES, Problem, random_problem
from test_fista_step import STEPS, random_step
from test_residual import MASKS, residual_problem
from test_triton_memory import everything, problem_of
from torch import Tensor

import csc_kernels as csc
from csc_kernels.geometry import step_weights

DTYPES = (torch.float32, torch.float16)
MOMENTA = ("fista", "none", "sdnet")


@contextmanager
def small_tiles() -> Iterator[None]:
    """Blocks of 16: small tensors then have many tiles, most of them at an end."""
    from csc_kernels.triton import blocks

    rows = [
        replace(row, pixels=256 if row.kernel == "fista" else 16, atoms=16, channels=min(row.channels, 32) or 0)
        for row in blocks.table().values()
    ]
    rows = [row if row.kernel == "fista" else replace(row, channels=min(row.channels, 16)) for row in rows]
    with blocks.using(*rows):
        yield


def assert_solve(problem: Problem) -> None:
    z = problem.solve()
    assert z.dtype == problem.x.dtype
    assert_error(z, ways(Problem.plain, problem), problem.to(torch.float64).plain())


# Every option of every op. The cases are those of the other backends.


@pytest.mark.parametrize("case", CASES)
@with_triton
def test_a_solve_errs_at_most_twice_as_much_as_pytorch(case: str) -> None:
    assert_solve(random_problem(dtype=torch.float32, **CASES[case]))


@pytest.mark.parametrize(
    "case", ("rgb", "wide_17", "stride_2_odd", "everything", "signed", "batch_5", "kernel_even")
)
@with_triton
def test_a_solve_in_float16(case: str) -> None:
    assert_solve(random_problem(dtype=torch.float16, **CASES[case]))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("ten_steps", "kernel_33_rows")])
@with_triton
def test_the_gradients_of_a_solve(case: str) -> None:
    problem = random_problem(dtype=torch.float32, margin=1e-5, **CASES[case])
    assert_gradients(Problem.solve, Problem.plain, problem)


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@with_triton
def test_a_step_errs_at_most_twice_as_much_as_pytorch(dtype: torch.dtype, case: str) -> None:
    step = random_step(dtype, **STEPS[case])
    both = test_fista_step.compute(step)
    assert_error(both, ways(test_fista_step.plain, step), test_fista_step.plain(step.to(torch.float64)))


@pytest.mark.parametrize("case", STEPS)
@with_triton
def test_the_gradients_of_a_step(case: str) -> None:
    assert_gradients(
        test_fista_step.compute, test_fista_step.plain, random_step(torch.float32, margin=1e-5, **STEPS[case])
    )


@pytest.mark.parametrize("case", SHAPES)
@with_triton
def test_a_residual_and_its_gradients(case: str) -> None:
    problem = residual_problem(torch.float32, **SHAPES[case])
    r = test_residual.compute(problem)
    assert_error(r, ways(test_residual.plain, problem), test_residual.plain(problem.to(torch.float64)))
    assert_gradients(test_residual.compute, test_residual.plain, problem)


@pytest.mark.parametrize("channels", (3, 12))
@pytest.mark.parametrize("mask", MASKS)
@with_triton
def test_a_residual_takes_every_mask(mask: str | None, channels: int) -> None:
    for dtype in DTYPES:
        problem = residual_problem(dtype, mask, channels=channels, padding=1)
        r = test_residual.compute(problem)
        assert_error(r, ways(test_residual.plain, problem), test_residual.plain(problem.to(torch.float64)))
        assert_gradients(test_residual.compute, test_residual.plain, problem)


@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_gradcheck_in_single_precision(channels: int) -> None:
    """Finite differences of float32, of problems in which no threshold is near."""
    problem = random_problem(
        dtype=torch.float32, margin=0.01, channels=channels, atoms=2, size=(3, 4), padding=1, batch=1, n_iter=2,
        lmbda="atom", mu="scalar", z0=True, mask="bool",
    ).leaves()  # fmt: skip
    step = test_fista_step.Step(**vars(problem), y=problem.z0.detach().clone().requires_grad_(), beta=0.3)
    for compute, arguments in ((Problem.solve, problem), (test_fista_step.compute, step)):
        names = list(arguments.tensors)

        def function(*tensors: Tensor, compute=compute, arguments=arguments, names=names) -> Tensor:
            return compute(replace(arguments, **dict(zip(names, tensors))))

        inputs = tuple(arguments.tensors.values())
        assert torch.autograd.gradcheck(function, inputs, eps=1e-3, atol=1e-2, rtol=1e-2, fast_mode=True)


# Ends of tiles: the same with blocks of 16, so that tiles, atoms and channels all have an end inside.


TILES = {
    "odd": {"channels": 3, "atoms": 17, "size": (3, 18), "padding": 1, "batch": 1},
    "two_blocks": {"channels": 18, "atoms": 18, "size": (3, 6), "kernel": (2, 2), "batch": 3},
    "stride": {"channels": 5, "atoms": 18, "size": (7, 10), "padding": 1, "stride": 2, "batch": 1},
    "valid": {"channels": 2, "atoms": 5, "size": (9, 6), "kernel": (2, 3), "batch": 1},
    # A tile holds four samples.
    "samples": {"channels": 2, "atoms": 3, "size": (2, 2), "kernel": (2, 2), "padding": (1, 0), "batch": 9},
    "stride_pair": {
        "channels": 3, "atoms": 7, "size": (6, 15), "kernel": (3, 4), "stride": (1, 3), "padding": (2, 1),
        "batch": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("tile", TILES)
@with_triton
def test_tiles_meet_without_a_seam(tile: str) -> None:
    options = {"n_iter": 2, "z0": True, "mask": "bool", "lmbda": "full", "mu": "atom"}
    with small_tiles():
        assert_solve(random_problem(dtype=torch.float32, n_iter=2, **TILES[tile]))
        problem = random_problem(dtype=torch.float32, margin=1e-6, **TILES[tile] | options)
        assert_solve(problem)
        assert_gradients(Problem.solve, Problem.plain, problem)


@pytest.mark.parametrize("tile", TILES)
@with_triton
def test_tiles_meet_without_a_seam_in_one_step(tile: str) -> None:
    case = {"y": True, "beta": 0.4, "mask": "bool", "lmbda": "atom", "mu": "full", "nonneg": False}
    with small_tiles():
        step = random_step(torch.float32, margin=1e-6, **TILES[tile] | case)
        both = test_fista_step.compute(step)
        assert_error(both, ways(test_fista_step.plain, step), test_fista_step.plain(step.to(torch.float64)))
        assert_gradients(test_fista_step.compute, test_fista_step.plain, step)


@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_numbers_may_lie_on_the_device(channels: int) -> None:
    """There the kernels load them; on the CPU, where tests run without a GPU, they are arguments."""
    from csc_kernels.triton import launch

    problem = problem_of(channels, lmbda="scalar", mu="scalar", n_iter=2).leaves()
    expected = everything(problem)
    with mock.patch.object(launch, "on_host", lambda value: False):
        found = everything(problem)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@with_triton
def test_not_finite_residuals() -> None:
    for value in (float("nan"), float("inf")):
        problem = residual_problem(torch.float32, channels=9, padding=1, size=(12, 13))
        problem.z0[0, 3, 6, 7] = value
        mine, plain = test_residual.compute(problem), test_residual.plain(problem)
        assert torch.equal(mine.isnan(), plain.isnan()) and torch.equal(mine.isinf(), plain.isinf())


# A whole solve on chip.

ON_CHIP = {
    "one_tile": {"size": (16, 16)},
    "tiles": {"size": (19, 41), "batch": 1},
    "tall": {"size": (50, 5), "batch": 1},
    "grey": {"channels": 1, "kernel": (4, 4), "size": (23, 25), "padding": 2, "batch": 1},
    "valid": {"size": (22, 18), "padding": 0, "batch": 1},
    "same_even": {"kernel": (2, 4), "padding": "same", "size": (30, 20), "batch": 1},
    "padding_past_kernel": {"kernel": (2, 2), "padding": 3, "channels": 4, "size": (21, 24), "batch": 1},
    "signed": {"nonneg": False, "size": (20, 17)},
    "full_penalties": {"lmbda": "full", "mu": "full", "size": (20, 17)},
    "atom_penalties": {"lmbda": "atom", "mu": "sample", "size": (9, 18)},
    "many_atoms": {"atoms": 70, "size": (9, 8)},
}


@pytest.mark.parametrize("case", ON_CHIP)
@with_triton
def test_a_solve_on_chip(case: str) -> None:
    from csc_kernels.triton.fista_kernels import fista_kernel
    from csc_kernels.triton.launch import recorded

    options = {"padding": 1, "n_iter": 2} | ON_CHIP[case]
    with recorded() as launches:
        random_problem(dtype=torch.float32, **options).solve()
    assert [launch.kernel for launch in launches] == [fista_kernel]
    for dtype in DTYPES:
        assert_solve(random_problem(dtype=dtype, **options))


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("n_iter", range(1, 7))
@with_triton
def test_every_number_of_steps(n_iter: int, momentum: str) -> None:
    for channels, nonneg, z0 in ((3, True, False), (3, False, True), (6, True, False)):
        problem = random_problem(
            dtype=torch.float32, margin=1e-5, channels=channels, atoms=5, size=(4, 6), padding=1, n_iter=n_iter,
            momentum=momentum, nonneg=nonneg, z0=z0,
        )  # fmt: skip
        assert_solve(problem)
        if n_iter <= 3 or z0:  # The backward of more steps is the same loop: once with everything.
            assert_gradients(Problem.solve, Problem.plain, problem)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("n_iter", (3, 4))
@with_triton
def test_more_steps_on_chip_where_a_table_has_them(n_iter: int, momentum: str) -> None:
    from csc_kernels.triton import blocks

    row = next(row for row in blocks.table().values() if row.kernel == "fista" and row.dtype == "float32")
    with blocks.using(replace(row, shape=str(n_iter))):
        assert_solve(
            random_problem(dtype=torch.float32, padding=1, n_iter=n_iter, momentum=momentum, size=(15, 16))
        )
        assert_solve(
            random_problem(
                dtype=torch.float32, kernel=(2, 2), n_iter=n_iter, momentum=momentum, size=(23, 21), batch=1
            )
        )


# The published layer.


@pytest.mark.parametrize("backend", ("triton",))
@with_triton
def test_golden_files(golden_file: Path, backend: str) -> None:
    """At most twice the reference's error in float32."""
    test_golden.test_errs_at_most_twice_as_much_as_the_reference(golden_file, backend, torch.float32)


# Values.


@pytest.mark.parametrize("channels", (3, 9))
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@with_triton
def test_what_is_not_finite_reaches_what_it_reaches_in_pytorch(value: float, channels: int) -> None:
    for options in ({"n_iter": 1}, {"n_iter": 2}, {"n_iter": 2, "nonneg": False}):
        problem = random_problem(
            dtype=torch.float32, channels=channels, padding=1, size=(20, 21), batch=1, atoms=4, **options
        )
        problem.x[0, 1, 9, 10] = value
        mine, plain = problem.solve(), problem.plain()
        assert torch.equal(mine.isfinite(), plain.isfinite())
        assert torch.equal(mine.isnan(), plain.isnan())


@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_an_empty_batch_has_an_empty_code_and_zero_gradients(channels: int) -> None:
    problem = random_problem(
        dtype=torch.float32, batch=0, channels=channels, lmbda="atom", mu="scalar", padding=1, n_iter=3
    ).leaves()
    assert problem.solve().shape == (0, 8, 8, 9)
    for gradient, tensor in zip(gradients(Problem.solve, problem), problem.tensors.values()):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@with_triton
def test_a_loop_of_steps_is_a_solve() -> None:
    for channels, momentum in itertools.product((3, 8), MOMENTA):
        problem = random_problem(
            dtype=torch.float32, channels=channels, n_iter=4, momentum=momentum, padding=1, z0=True
        )
        z = y = problem.z0
        for beta in step_weights(4, momentum):
            extrapolated = {} if momentum == "none" else {"y": y, "beta": beta}
            z, y = csc.fista_step(
                problem.x, z, problem.dictionary, problem.lmbda, problem.step_size, padding=1, momentum=momentum,
                **extrapolated,
            )  # fmt: skip
        torch.testing.assert_close(z, problem.solve(), rtol=1e-5, atol=1e-6)


@with_triton
def test_only_the_gradient_of_a_floating_mask_is_refused() -> None:
    problem = random_problem(
        dtype=torch.float32, padding=1, lmbda="full", mu="full", mask="float", z0=True, n_iter=3
    ).leaves()
    wanted = [t for name, t in problem.tensors.items() if name != "mask"]
    problem.mask = problem.mask.detach()
    torch.autograd.grad(problem.solve().sum(), wanted)
    problem.mask.requires_grad_()
    with pytest.raises(RuntimeError, match="cannot serve csc.fista_backward here: it has no gradient for the mask"):
        torch.autograd.grad(problem.solve().sum(), [problem.mask])


@with_triton
def test_float64_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="it serves float32, float16.*x is torch.float64"):
        random_problem().solve()
