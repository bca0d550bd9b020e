"""The backend "cudnn", its tails run on the emulated device, against the float64 oracle and the golden files."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from emulation.fixtures import device, emulated_process  # noqa: F401
from error_rule import assert_error, gradients, ways
from hypothesis import strategies as st
from problems import CASES, SHAPES, Problem, random_problem
from random_solves import each, problem_of, solves
from scarcity import assert_unchanged_by_scarcity
from test_cuda import DTYPES, assert_direction, assert_golden, assert_gradients, assert_solves

import csc_kernels as csc
from csc_kernels import parity, reference
from csc_kernels.cudnn import passes

pytestmark = [pytest.mark.usefixtures("device"), pytest.mark.parametrize("device", ["cudnn"], indirect=True)]


@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_pytorchs(case: str) -> None:
    assert_solves(random_problem(dtype=torch.float32, **CASES[case]))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", ("rgb", "stride_2_odd", "wide_17", "everything", "mu_full"))
def test_error_in_16_bits_is_at_most_twice_pytorchs(case: str, dtype: torch.dtype) -> None:
    assert_solves(random_problem(dtype=dtype, **CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_gradients_obey_the_rule(case: str) -> None:
    assert_gradients(random_problem(dtype=torch.float32, margin=1e-5, **CASES[case]))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", ("rgb", "kernel_7", "wide_17", "mask_float"))
def test_gradients_in_16_bits_point_where_the_oracles_do(case: str, dtype: torch.dtype) -> None:
    assert_direction(case, dtype)


def test_sums_of_float16_reach_as_far_as_the_result() -> None:
    """The sum without the step size is beyond the largest float16."""
    x = torch.ones(64, 5, 32, 32).half()
    dictionary = torch.full((2, 5, 3, 3), 0.1).half().requires_grad_()
    (2 * csc.fista(x, dictionary, 0.01, 0.05, 2)).sum().backward()
    found = dictionary.grad.clone()
    wide = dictionary.detach().double().requires_grad_()
    with csc.use_backend("reference"):
        (2 * csc.fista(x.double(), wide, 0.01, 0.05, 2)).sum().backward()
    assert (found - wide.grad).norm() <= 0.01 * wide.grad.norm()


@pytest.mark.parametrize("frozen", (False, True))
def test_a_backward_where_autocast_is_active_keeps_its_dtype(frozen: bool) -> None:
    problem = random_problem(dtype=torch.float32, margin=1e-5, channels=5, padding=1, mask="float", n_iter=3)
    z, own = problem.x.clone().requires_grad_(), problem.x.clone().requires_grad_()
    dictionary = problem.dictionary.clone().requires_grad_(not frozen)
    options = {"padding": 1, "mask": problem.mask}
    code = csc.fista(z, dictionary, problem.lmbda, 0.1, 3, **options)
    with torch.autocast("cpu", torch.bfloat16):
        code.square().sum().backward()
    csc.fista(own, problem.dictionary, problem.lmbda, 0.1, 3, **options).square().sum().backward()
    assert torch.equal(z.grad, own.grad)


def test_a_solve_that_keeps_nothing_holds_one_code(device, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = weakref.WeakSet()
    step = passes.step

    def watched(*arguments, **options):
        code, point = step(*arguments, **options)
        alive.add(code)
        assert len(alive) <= 2
        return code, point

    monkeypatch.setattr(passes, "step", watched)
    with torch.no_grad():
        random_problem(dtype=torch.float32, channels=5, padding=1, n_iter=6, momentum="none").solve()


@pytest.mark.parametrize("momentum", ("fista", "none", "sdnet"))
@pytest.mark.parametrize("channels_last", (False, True))
def test_steps_of_any_momentum_and_layout_obey_the_rule(momentum: str, channels_last: bool) -> None:
    problem = random_problem(
        dtype=torch.float32, margin=1e-5, channels=5, atoms=7, padding=(1, 2), n_iter=4, momentum=momentum, z0=True,
        mask="float",
    )  # fmt: skip
    if channels_last:
        problem.x = problem.x.contiguous(memory_format=torch.channels_last)
    assert_solves(problem)
    assert_gradients(problem)
    assert problem.solve().is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("mask", (None, "bool", "float", "pixel", "channel"))
@pytest.mark.parametrize("case", ("rgb", "wide_17", "kernel_even", "stride_past_kernel"))
def test_residual_obeys_the_rule(case: str, mask: str | None, channels_last: bool) -> None:
    problem = random_problem(dtype=torch.float32, z0=True, mask=mask, **SHAPES[case])
    if channels_last:
        problem.z0 = problem.z0.contiguous(memory_format=torch.channels_last)
    arguments = (problem.x, problem.z0, problem.dictionary)
    wide = problem.to(torch.float64)
    oracle = reference.residual(wide.x, wide.z0, wide.dictionary, *wide.geometry, wide.mask)
    found = csc.residual(*arguments, mask=problem.mask, stride=problem.stride, padding=problem.padding)
    assert_error(found, reference.residual(*arguments, *problem.geometry, problem.mask), oracle)


def test_a_step_and_its_gradients_obey_the_rule() -> None:
    problem = random_problem(
        dtype=torch.float32, z0=True, margin=1e-5, n_iter=1, lmbda="atom", mu="sample", channels=5, padding=1
    )
    problem.step_size = problem.step_size.item()

    def both(p: Problem) -> torch.Tensor:
        return torch.stack(
            csc.fista_step(p.x, p.z0, p.dictionary, p.lmbda, p.step_size, mu=p.mu, beta=0.3, padding=p.padding)
        )

    found, grads = both(problem), gradients(both, problem.leaves())
    with csc.use_backend("reference"):
        own, own_grads = both(problem), gradients(both, problem.leaves())
        wide = problem.to(torch.float64)
        oracle, oracle_grads = both(wide), gradients(both, wide.leaves())
    assert_error(found, own, oracle)
    for name, a, b, c in zip(problem.tensors, grads, own_grads, oracle_grads):
        assert_error(a, b, c, name, 4 * c.abs().max().expand_as(c))


@pytest.mark.parametrize("backend", ("cudnn",))
def test_golden_files(golden_file: Path, backend: str) -> None:
    assert_golden(golden_file)


@pytest.mark.parametrize("value", (torch.nan, torch.inf), ids=str)
def test_nan_and_infinity_spread_as_in_the_reference(value: float) -> None:
    problem = random_problem(dtype=torch.float32, channels=5, padding=1, nonneg=False)
    problem.x[0, 0, 4, 4] = value
    z, expected = problem.solve(), problem.plain()
    assert torch.equal(z.isnan(), expected.isnan())
    assert torch.equal(z.isinf(), expected.isinf())


def test_every_convolution_has_one_tail(device) -> None:
    random_problem(dtype=torch.float32, channels=5, padding=1, n_iter=3).solve()
    assert [op for op, *_ in device.calls] == ["step_tail", *["residual_tail", "step_tail"] * 2]


def test_out_of_memory_leaves_no_state() -> None:
    problem = random_problem(dtype=torch.float32, channels=5, size=(4, 4), atoms=3, padding=1).leaves()
    problem.step_size = problem.step_size.item()
    assert_unchanged_by_scarcity(lambda: gradients(Problem.solve, problem))


def test_addresses_beyond_2_to_the_31_elements(device) -> None:
    problem = random_problem(dtype=torch.float16, channels=5, padding=1, size=(5, 6), atoms=3)
    expected = problem.solve()
    device.stretch = 2**31 + 64
    assert torch.equal(problem.solve(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_solve_and_its_gradients_obey_the_rule(device, whole: bool, dtype: torch.dtype) -> None:
    def check(options: dict, device_numbers: bool, seed: int) -> None:
        device.device_numbers, device.seed = device_numbers, seed
        problem = problem_of(options, dtype)
        assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain())
        if dtype is torch.float32 and problem.margin() > 1e-5:
            assert_gradients(problem)

    each(24 if whole else 6, check, options=solves(), device_numbers=st.booleans(), seed=st.integers(0, 9))


def test_the_doctor_finds_the_tails_sound(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second case, in every dtype and layout; without --whole one case."""
    monkeypatch.setattr(parity, "CASES", parity.CASES[::2] if whole else parity.CASES[3:4])
    checks = list(parity.check_backend("cudnn"))
    wanted = {(case.name, dtype) for case in parity.CASES for dtype in ("float32", "bfloat16")}
    assert {(c.case, c.dtype) for c in checks if c.status == "ok"} == wanted
    assert [c for c in checks if c.status == "failed"] == []
