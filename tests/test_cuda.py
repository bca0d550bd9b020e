"""The CUDA kernels, run on the emulated device, against the float64 oracle and the golden files."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emulation.device import tiled
from emulation.fixtures import device, emulated_process  # noqa: F401
from error_rule import assert_error, gradients, served_leaves
from problems import CASES, SHAPES, Problem, random_problem
from scarcity import assert_unchanged_by_scarcity
from test_golden import OUTPUTS, error, load, solve
from torch import Tensor

import csc_kernels as csc
from csc_kernels import reference
from csc_kernels.cuda import LONGEST
from csc_kernels.cuda.plan import direct

pytestmark = pytest.mark.usefixtures("device")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Images that are cut into several tiles on a device of little shared memory, along both axes or the one they have.
TILED: dict[str, dict] = {
    "rgb": {"padding": 1, "size": (9, 40)},
    "grey": {"channels": 1, "padding": 1, "atoms": 5, "size": (20, 11)},
    "many_atoms": {"padding": 1, "atoms": 35, "size": (7, 36)},
    "stride_2_odd": {"stride": 2, "padding": 1, "size": (15, 71)},
    "stride_pair": {"stride": (1, 3), "padding": (1, 0), "size": (9, 64)},
    "kernel_7": {"kernel": (7, 7), "padding": 3, "stride": 2, "size": (23, 33)},
    "kernel_even": {"kernel": (2, 4), "padding": (1, 2), "size": (8, 40)},
    "halos_from_one_row": {"kernel": (5, 3), "padding": 1, "size": (12, 48)},
    "row": {"size": (1, 70), "padding": 1},
    "column": {"size": (30, 1), "padding": 1},
    "stride_past_kernel": {"stride": (4, 5), "kernel": (3, 2), "size": (31, 86)},
}


def run_tiled(device, problem: Problem, backward: bool = False) -> None:
    for name, value in tiled(problem, backward).items():
        setattr(device, name, value)


def oracle_of(problem: Problem) -> Tensor:
    return problem.to(torch.float64).plain()


def assert_solves(problem: Problem) -> None:
    assert_error(problem.solve(), problem.plain(), oracle_of(problem))


def assert_gradients(problem: Problem) -> None:
    """Of everything that the backend has a gradient for, by one backward."""
    served = [name for name, leaf in served_leaves(problem).tensors.items() if leaf.requires_grad]

    def grads(p: Problem, compute) -> dict[str, Tensor]:
        leaves = p.map(Tensor.detach)
        for name in served:
            getattr(leaves, name).requires_grad_()
        z = compute(leaves)
        grad = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        return dict(zip(served, torch.autograd.grad(z, [getattr(leaves, n) for n in served], grad.to(z.dtype))))

    found, own = grads(problem, Problem.solve), grads(problem, Problem.plain)
    wide = grads(problem.to(torch.float64), Problem.plain)
    for name in served:
        # Sums of many terms: a few units in the last place of the whole, for each of the steps' additions.
        largest = wide[name].abs().max() if wide[name].numel() else torch.zeros(())
        spread = 4 * largest.expand_as(wide[name])
        assert_error(found[name], own[name], wide[name], f"gradient of {name}", spread)


@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_pytorchs(case: str) -> None:
    assert_solves(random_problem(dtype=torch.float32, **CASES[case]))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", ("rgb", "grey", "stride_2_odd", "kernel_7", "wide_17", "everything", "mu_full"))
def test_error_in_16_bits_is_at_most_twice_pytorchs(case: str, dtype: torch.dtype) -> None:
    assert_solves(random_problem(dtype=dtype, **CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_gradients_obey_the_rule(case: str) -> None:
    assert_gradients(random_problem(dtype=torch.float32, margin=1e-5, **CASES[case]))


def assert_direction(case: str, dtype: torch.dtype) -> None:
    """Of the gradients: rounding to 16 bits changes supports, and so single entries; the direction stays."""
    problem = random_problem(dtype=dtype, **{"padding": 1} | CASES[case])
    problem.step_size, problem.mask = problem.step_size.item(), None
    own, wide = problem.leaves(), problem.to(torch.float64).leaves()
    for name, actual, peer, oracle in zip(
        own.tensors,
        gradients(Problem.solve, problem.leaves()),
        gradients(Problem.plain, own),
        gradients(Problem.plain, wide),
    ):
        assert actual.dtype == dtype
        allowed = 2 * (peer.double() - oracle).norm() + 0.02 * oracle.norm()
        assert (actual.double() - oracle).norm() <= allowed, name


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", ("rgb", "kernel_7", "wide_17", "mask_float"))
def test_gradients_in_16_bits_point_where_the_oracles_do(case: str, dtype: torch.dtype) -> None:
    assert_direction(case, dtype)


@pytest.mark.parametrize("n_iter", (1, 2, 3))
@pytest.mark.parametrize("case", TILED)
def test_tiles_with_their_halos_obey_the_rule(device, case: str, n_iter: int) -> None:
    problem = random_problem(dtype=torch.float32, n_iter=n_iter, nonneg=False, mask="float", **TILED[case])
    run_tiled(device, problem)
    assert_solves(problem)
    assert [call[0] for call in device.calls] == ["fista"]


def test_the_next_tiles_pixels_do_not_arrive_before_the_last_are_read(device) -> None:
    """One step without a mask reads x to its end."""
    problem = random_problem(dtype=torch.float32, n_iter=1, padding=1, size=(31, 6))
    run_tiled(device, problem)
    assert_solves(problem)


def test_a_block_takes_several_whole_samples(device) -> None:
    problem = random_problem(dtype=torch.float32, padding=1, size=(6, 14), batch=2 * device.processors + 1)
    assert_solves(problem)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("momentum, from_code", (("fista", True), ("sdnet", False)))
def test_tiles_with_momentum_obey_the_rule(device, momentum: str, from_code: bool, dtype: torch.dtype) -> None:
    problem = random_problem(
        dtype=dtype, n_iter=4, momentum=momentum, z0=from_code, lmbda="atom", padding=1, size=(31, 6)
    )
    run_tiled(device, problem)
    assert_solves(problem)
    assert [call[0] for call in device.calls] == ["fista"]


@pytest.mark.parametrize(
    "momentum, n_iter, from_code",
    (
        ("none", 1, False),
        ("none", 1, True),
        ("none", 2, False),
        ("none", 2, True),
        ("none", 3, False),
        ("fista", 2, False),
    ),
)
def test_gradients_of_tiles_obey_the_rule(device, momentum: str, n_iter: int, from_code: bool) -> None:
    problem = random_problem(
        dtype=torch.float32, margin=1e-6, padding=1, size=(31, 5), atoms=7, n_iter=n_iter, momentum=momentum,
        z0=from_code, mask="float", lmbda="atom", mu="sample", batch=2,
    )  # fmt: skip
    run_tiled(device, problem, backward=True)
    assert_gradients(problem)
    assert device.calls[-1][0] == "fista_backward"


# The backward of kernel_7 keeps more than a block has.
@pytest.mark.parametrize("case", sorted(TILED.keys() - {"kernel_7"}))
def test_gradients_of_tiles_of_any_shape_obey_the_rule(device, case: str) -> None:
    problem = random_problem(dtype=torch.float32, margin=1e-6, nonneg=False, lmbda="atom", **TILED[case])
    run_tiled(device, problem, backward=True)
    assert_gradients(problem)
    assert device.calls[-1][0] == "fista_backward"


def test_a_stem_runs_on_chip_and_everything_else_step_by_step(device) -> None:
    def ops(**options) -> list[str]:
        device.calls.clear()
        random_problem(dtype=torch.float32, padding=1, **options).leaves().solve()
        return [call[0] for call in device.calls if call[0] != "correlation"]

    assert ops() == ["fista"]
    assert ops(n_iter=6, z0=True) == ["fista"]
    assert ops(channels=5) == ["analysis", "synthesis", "analysis"]
    device.shared_limit = 30 * 1024
    assert ops(n_iter=2) == ["analysis", "synthesis", "analysis"]


@pytest.mark.parametrize("case", ("many_atoms", "column", "wide_5"))
def test_order_of_blocks_and_threads_changes_no_bit(device, case: str) -> None:
    problem = random_problem(dtype=torch.float32, lmbda="atom", **(TILED | SHAPES)[case]).leaves()
    if case in TILED:
        run_tiled(device, problem, backward=True)
    problem.step_size = problem.step_size.item()
    found = []
    for device.seed in (0, 1):
        found.append((problem.solve(), *gradients(Problem.solve, problem)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("case", ("rgb", "wide_17", "mu_atom", "momentum_beyond_two", "mu"))
def test_numbers_may_lie_on_the_host_or_on_the_device(device, case: str) -> None:
    options = {"padding": 1, "n_iter": 4} if case == "momentum_beyond_two" else CASES[case]
    problem = random_problem(dtype=torch.float32, **options)
    expected = problem.solve()
    device.device_numbers = False
    assert torch.equal(problem.solve(), expected)


def rounded(t: Tensor) -> Tensor:
    """float32 with TF32's 10 bits of fraction."""
    bits = t.float().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("case", ("rgb", "grey", "kernel_7", "wide_17", "stride_2_odd"))
def test_tf32_errs_as_rounded_factors_do(device, case: str) -> None:
    problem = random_problem(dtype=torch.float32, **SHAPES[case])
    problem.step_size = problem.step_size.item()
    exact = problem.solve()
    device.tf32 = True
    z = problem.solve()
    assert not torch.equal(z, exact)
    coarse = replace(problem, x=rounded(problem.x), dictionary=rounded(problem.dictionary))
    oracle = oracle_of(problem)
    assert (z - oracle).norm() <= 2 * (coarse.plain() - oracle).norm() + 2**-11 * oracle.norm()
    wide = problem.to(torch.float64).leaves()
    for found, own, oracle in zip(
        gradients(Problem.solve, problem.leaves()),
        gradients(Problem.plain, coarse.leaves()),
        gradients(Problem.plain, wide),
    ):
        assert (found - oracle).norm() <= 2 * (own - oracle).norm() + 0.01 * oracle.norm()


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("width", (16, 17))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_lines_are_copied_asynchronously_where_they_are_aligned(
    device,
    dtype: torch.dtype,
    width: int,
    channels_last: bool,
) -> None:
    problem = random_problem(dtype=dtype, padding=1, size=(20, width))
    if channels_last:
        problem.x = problem.x.contiguous(memory_format=torch.channels_last)
    run_tiled(device, problem)
    assert_solves(problem)
    step = {torch.float32: 4, torch.bfloat16: 8}[dtype]
    moved = torch.cat([torch.zeros(step + 1, dtype=dtype), problem.x.flatten()])[step + 1 :].view(problem.x.shape)
    assert torch.equal(replace(problem, x=moved).solve(), problem.solve())


@pytest.mark.parametrize("mask", (None, "bool", "float", "pixel", "channel"))
@pytest.mark.parametrize(
    "case", ("rgb", "wide_17", "stride_3", "kernel_even", "stride_past_kernel", "wide_40", "depth_33")
)
def test_residual_obeys_the_rule(case: str, mask: str | None) -> None:
    # One more than the depth that passes through shared memory at a time.
    shapes = SHAPES | {"depth_33": {"channels": 5, "atoms": 33, "kernel": (1, 1), "size": (4, 5)}}
    problem = random_problem(dtype=torch.float32, z0=True, mask=mask, **shapes[case])
    arguments = (problem.x, problem.z0, problem.dictionary)
    geometry = {"stride": problem.stride, "padding": problem.padding}
    wide = problem.to(torch.float64)
    oracle = reference.residual(wide.x, wide.z0, wide.dictionary, *wide.geometry, wide.mask)
    assert_error(
        csc.residual(*arguments, mask=problem.mask, **geometry),
        reference.residual(*arguments, *problem.geometry, problem.mask),
        oracle,
    )


@pytest.mark.parametrize("momentum", ("fista", "sdnet"))
@pytest.mark.parametrize("case", ("rgb", "wide_17", "stride_2_odd"))
def test_a_step_and_its_gradients_obey_the_rule(case: str, momentum: str) -> None:
    problem = random_problem(
        dtype=torch.float32, z0=True, margin=1e-5, n_iter=1, lmbda="atom", mu="sample", momentum=momentum,
        **SHAPES[case],
    )  # fmt: skip
    problem.step_size = problem.step_size.item()

    def both(p: Problem) -> Tensor:
        z, y = csc.fista_step(
            p.x, p.z0, p.dictionary, p.lmbda, p.step_size, mu=p.mu, beta=0.3, stride=p.stride,
            padding=p.padding, momentum=momentum, nonneg=p.nonneg,
        )  # fmt: skip
        return torch.stack([z, y])

    found, grads = both(problem), gradients(both, problem.leaves())
    with csc.use_backend("reference"):
        own, own_grads = both(problem), gradients(both, problem.leaves())
        wide = problem.to(torch.float64)
        oracle, oracle_grads = both(wide), gradients(both, wide.leaves())
    assert_error(found, own, oracle)
    for name, a, b, c in zip(problem.tensors, grads, own_grads, oracle_grads):
        assert_error(a, b, c, name, 4 * c.abs().max().expand_as(c))


def assert_golden(file: Path) -> None:
    golden = load(file)
    found = solve(golden, torch.float32)
    with csc.use_backend("reference"):
        own = solve(golden, torch.float32)
    for name in OUTPUTS:
        floor = 4 * torch.finfo(torch.float32).eps * golden[name].abs().max().item()
        assert error(found[name], golden[name]) <= 2 * error(own[name], golden[name]) + floor, name


@pytest.mark.parametrize("backend", ("cuda",))
def test_golden_files(golden_file: Path, backend: str) -> None:
    assert_golden(golden_file)


@pytest.mark.parametrize("value", (torch.nan, torch.inf), ids=str)
@pytest.mark.parametrize("channels", (3, 5))
def test_nan_and_infinity_spread_as_in_the_reference(channels: int, value: float) -> None:
    for spot in ((0, 0), (4, 4), (-1, -1)):
        problem = random_problem(dtype=torch.float32, channels=channels, padding=1, nonneg=False)
        problem.x[0, 0, spot[0], spot[1]] = value
        z, expected = problem.solve(), problem.plain()
        assert not (expected.isnan() & z.isfinite()).any()
        assert torch.equal(z[1:].isnan(), expected[1:].isnan())


def test_a_code_that_is_not_finite_spreads_no_further_than_its_taps() -> None:
    """A stride of 2 and a kernel of 3: some pixels of a position have one tap, others two."""
    problem = random_problem(dtype=torch.float32, z0=True, stride=2, padding=1, channels=2)
    problem.z0[0, 1, 1, 2] = torch.nan
    actual = csc.residual(problem.x, problem.z0, problem.dictionary, stride=2, padding=1)
    expected = reference.residual(problem.x, problem.z0, problem.dictionary, *problem.geometry)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_taps_that_fit_no_block_are_met_row_by_row(dtype: torch.dtype) -> None:
    options = {"channels": 5, "atoms": 2, "batch": 1, "kernel": (63, 66), "size": (65, 69), "stride": 2}
    problem = random_problem(dtype=dtype, n_iter=1, **options)
    x, dictionary = problem.x, problem.dictionary
    *_, whole = direct(False, x, problem.plain(), dictionary, *problem.geometry, False)
    assert not whole
    assert_solves(problem)


@pytest.mark.parametrize("stride", (1, 2, 450, 899, 900))
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_kernels_of_up_to_900_columns_have_a_plan(dtype: torch.dtype, stride: int) -> None:
    x, dictionary = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((1, 1, 9, 900), (1, 1, 9, 900)))
    for synthesis, tf32 in itertools.product((False, True), repeat=2):
        assert direct(synthesis, x, x, dictionary, (stride, stride), (0, 450, 0, 450), tf32)
    wider = torch.empty(1, 1, 1, 901, dtype=dtype)
    with pytest.raises(RuntimeError, match="up to 900 columns, the dictionary has 901"):
        csc.residual(wider, torch.empty(1, 1, 1, 1, dtype=dtype), wider)


def test_what_has_no_plan_is_declined_with_the_reason() -> None:
    one = torch.ones(1, 1, 1, 1)
    longest = torch.empty(1, 1, 1, LONGEST - 1, device="meta")
    for synthesis in (False, True):
        assert direct(synthesis, longest, longest, one, (1, 1), (0, 0, 0, 0), False)
    line = one.expand(1, 1, 1, 2**25)
    with pytest.raises(RuntimeError, match="dimensions below 33554431"):
        csc.residual(line, line, one)
    with pytest.raises(ValueError, match=r"no tile fits an image of \(1, 1, 8, 8\).* at stride \(16384, 16384\)"):
        csc.residual(torch.ones(1, 1, 8, 8), one, torch.ones(1, 1, 3, 3), stride=16384)


@pytest.mark.parametrize("channels", (3, 5))
def test_out_of_memory_leaves_no_state(channels: int) -> None:
    problem = random_problem(dtype=torch.float32, channels=channels, size=(4, 4), atoms=3, padding=1).leaves()
    problem.step_size = problem.step_size.item()
    assert_unchanged_by_scarcity(lambda: gradients(Problem.solve, problem))


def test_addresses_beyond_2_to_the_31_elements(device) -> None:
    """Views whose samples and channels lie so far apart that no 32-bit offset reaches them."""
    problem = random_problem(dtype=torch.float16, padding=1, size=(5, 6), atoms=3, n_iter=2)
    expected = problem.solve()
    device.stretch = 2**31 + 64
    assert torch.equal(problem.solve(), expected)
    wide = random_problem(dtype=torch.float16, channels=5, padding=1, size=(5, 6), atoms=3, n_iter=2)
    device.stretch = 0
    expected = wide.solve()
    device.stretch = 2**31 + 64
    assert torch.equal(wide.solve(), expected)
