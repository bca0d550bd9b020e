"""Code rows that the stem kernels compute two by two (csrc/cpu/pairs.h): every kernel, stride and end of a code."""

from __future__ import annotations

import itertools

import pytest
import torch
from conditions import ISAS
from error_rule import assert_error, assert_gradients, ways
from problems import Problem, random_problem

import csc_kernels as csc
from csc_kernels import native

pytestmark = pytest.mark.parametrize("backend", ("native",), indirect=True)


# Threes, twos and ones below each other, of every phase of a stride.
TALL = [(height, stride) for height, stride in itertools.product(range(2, 9), (1, 2, 3)) if height > stride]


def problem(height: int, stride: int, rows: int, columns: int, seed: int = 0, **options) -> Problem:
    options = {"channels": 1 + (height + rows) % 4, "atoms": 11, "batch": 2, "n_iter": 2} | options
    return random_problem(
        dtype=torch.float32, size=(rows, columns), kernel=(height, 3), stride=(stride, 1 + seed % 2),
        padding=(height // 2, 1), lmbda=0.02, seed=seed, margin=1e-6, **options,
    )  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", (9, 70))  # A part of a vector, and several of them.
@pytest.mark.parametrize("height, stride", TALL)
def test_every_kernel_obeys_the_rule(backend: str, height: int, stride: int, columns: int, isa: str) -> None:
    with native.use_isa(isa):
        for rows in (height, 13, 14):
            one = problem(height, stride, rows, columns, seed=rows)
            assert_error(one.solve(), ways(Problem.plain, one), one.to(torch.float64).plain())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel, stride, width", ((7, 1, 930), (7, 2, 3200), (4, 1, 2100)))
def test_images_too_wide_to_keep_the_products_of_each_column_obey_the_rule(
    backend: str, kernel: int, stride: int, width: int, isa: str
) -> None:
    one = random_problem(
        dtype=torch.float32, size=(3 + kernel, width), kernel=(kernel, kernel), stride=stride, padding=1,
        channels=4 if kernel == 4 else 3, lmbda=0.02, seed=kernel, margin=1e-6, atoms=5, batch=1, n_iter=2,
    )  # fmt: skip
    with native.use_isa(isa):
        assert_error(one.solve(), ways(Problem.plain, one), one.to(torch.float64).plain())
        assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("height, atoms, nonneg", ((1, 50, True), (3, 48, True), (3, 50, False)))
def test_codes_written_around_the_caches_have_the_same_bits(
    backend: str, height: int, atoms: int, nonneg: bool, layout: torch.memory_format, isa: str
) -> None:
    """Row by row and two by two, pixels that are whole vectors and others, both epilogues."""
    with native.use_isa(isa):
        x, dictionary = torch.rand(32, 2, 30, 48).to(memory_format=layout), 0.2 * torch.randn(atoms, 2, height, 3)
        options = {"n_iter": 2, "padding": (height // 2, 1), "step_size": 0.05, "nonneg": nonneg}
        whole = csc.fista(x, dictionary, 0.02, **options)
        assert whole.nbytes > 8 << 20
        parts = [csc.fista(part, dictionary, 0.02, **options) for part in x.split(5)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("step, code", ((1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6)))
def test_codes_between_two_of_bfloat16_become_the_even_one(backend: str, step: float, code: float) -> None:
    one = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    assert csc.fista(one, one, 0.0, n_iter=1, step_size=step).item() == code


@pytest.mark.parametrize("nonneg, mu", ((True, 0.0), (False, 0.1)))
def test_bands_written_around_the_caches_have_the_same_bits(backend: str, nonneg: bool, mu: float) -> None:
    x, dictionary = torch.rand(1, 2, 165, 256), 0.2 * torch.randn(50, 2, 3, 3)
    options = {"lmbda": 0.02, "mu": mu, "nonneg": nonneg, "n_iter": 2, "padding": 1, "step_size": 0.05}
    z, other = (csc.fista(t, dictionary, **options) for t in (x, x.to(memory_format=torch.channels_last)))
    assert z.nbytes > 8 << 20 and not other.is_contiguous()  # Channels last is written through them.
    assert torch.equal(z, other)


def test_a_threshold_beyond_the_largest_number_leaves_nothing(backend: str) -> None:
    x, dictionary = torch.rand(2, 3, 8, 8), torch.rand(16, 3, 3, 3)
    assert not csc.fista(x, dictionary, 1e39, step_size=0.5).any()


def test_products_far_below_the_threshold_are_not_rounded_as_it_is(backend: str) -> None:
    # Codes and atoms of which A z is exactly zero, so that the residual is the small x.
    half = torch.randint(1, 5, (8, 3, 3, 3)) / 4
    dictionary, z0 = torch.cat([half, -half]), torch.full((1, 16, 12, 16), 100.5)
    x = 2e-6 * torch.rand(1, 3, 12, 16)

    def solve(dtype: torch.dtype) -> torch.Tensor:
        options = {"n_iter": 1, "z0": z0.to(dtype), "step_size": 1.0, "padding": 1}
        return csc.fista(x.to(dtype), dictionary.to(dtype), 100.0, **options)

    found = solve(torch.float32)
    with csc.use_backend("reference"):
        exact, plain = solve(torch.float64), solve(torch.float32)
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("momentum", ("fista", "none", "sdnet"))
@pytest.mark.parametrize("height, stride", TALL)
def test_gradients_of_every_kernel_obey_the_rule(backend: str, height: int, stride: int, momentum: str) -> None:
    for rows in (11, 12):
        one = problem(height, stride, rows, 18, seed=rows, n_iter=3, momentum=momentum, z0=rows == 11)
        assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("height, stride", ((3, 1), (4, 1), (7, 2)))
def test_gradients_of_whole_vectors_obey_the_rule(backend: str, height: int, stride: int, isa: str) -> None:
    """Those of steps before the last, which without momentum leave the registers on the support of their codes."""
    with native.use_isa(isa):
        one = problem(height, stride, 12, 64, seed=12, n_iter=3, momentum="none")
        assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("columns", (56, 500))  # Blocks of 18 rows, of which rings of 32 hold five steps; and of 4.
@pytest.mark.parametrize("momentum", ("fista", "sdnet"))
@pytest.mark.parametrize("height, stride", ((2, 1), (3, 1), (4, 1), (4, 3), (6, 1)))
def test_rows_in_flight_are_kept_as_long_as_they_are_read(
    backend: str, height: int, stride: int, momentum: str, columns: int
) -> None:
    """Of many iterates, of which each reaches further than the next."""
    one = random_problem(
        dtype=torch.float32, channels=1, atoms=3, batch=1, size=(130 * stride, columns), kernel=(height, 2),
        stride=(stride, 1), padding=(1, 0), lmbda=0.02, n_iter=6, z0=True, momentum=momentum,
    )  # fmt: skip
    found, expected = [], []
    for each, outputs in ((one, found), (one.to(torch.float64), expected)):
        leaves = [each.x.requires_grad_(), each.dictionary.requires_grad_(), each.z0.requires_grad_()]
        code = each.solve() if outputs is found else each.plain()
        outputs += [code, *torch.autograd.grad(code.sum(), leaves)]
    for one_found, one_expected in zip(found, expected):
        error = (one_found - one_expected).norm() / one_expected.norm()
        assert (
            error < 1e-3
        )  # A support may differ in a few entries; a row of another iterate is a difference of 0.1.


@pytest.mark.parametrize("height, stride", ((3, 1), (4, 1), (5, 2), (7, 3)))
@pytest.mark.parametrize("rows", (45, 46, 47, 48))
def test_bands_of_an_image_end_where_pairs_do(backend: str, height: int, stride: int, rows: int) -> None:
    one = problem(height, stride, rows * stride, 10, batch=1, n_iter=3)
    alone = one.solve()
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert torch.equal(one.solve(), alone)


def test_gradients_have_the_same_bits_whoever_computes_them(backend: str) -> None:
    """More samples than there are groups, whose number grows with that of the threads only when they are many."""
    one = problem(3, 1, 9, 10, batch=70)
    leaves = [one.x.requires_grad_(), one.dictionary.requires_grad_()]
    alone = torch.autograd.grad(one.solve().square().sum(), leaves)
    assert_gradients(Problem.solve, Problem.plain, one)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for found, expected in zip(torch.autograd.grad(one.solve().square().sum(), leaves), alone):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "side, n_iter, momentum", ((3, 3, "none"), (7, 2, "sdnet"), (11, 2, "fista"), (11, 3, "fista"))
)
def test_rows_of_a_long_image_wait_for_all_who_need_them(
    backend: str, side: int, n_iter: int, momentum: str
) -> None:
    """Wide rows: few are computed at once, and rings are as short as they get."""
    one = random_problem(
        dtype=torch.float32, batch=1, channels=2, atoms=4, size=(60, 300), kernel=(side, side), padding=side // 2,
        n_iter=n_iter, momentum=momentum, z0=True, margin=1e-8,
    )  # fmt: skip
    assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf, 3e38))
@pytest.mark.parametrize("row", (0, 1, 6, 7, 12))
@pytest.mark.parametrize("height, stride", ((2, 1), (3, 1), (4, 1), (5, 2), (7, 1), (7, 2)))
def test_what_is_not_finite_goes_no_further_than_row_by_row(
    backend: str, height: int, stride: int, row: int, value: float
) -> None:
    """3e38 is finite, and the sum of two rows of it is not."""
    one = problem(height, stride, 13, 20, n_iter=1)
    one.x[0, 0, row : row + 2, 5] = value
    found, expected = one.solve(), one.plain()
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(found), kind(expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("column", (6, 25))
def test_pixels_beside_what_is_not_finite_are_right(backend: str, column: int, isa: str) -> None:
    """At both ends of rows that are whole vectors, behind and before which other codes lie."""
    one = problem(3, 1, 12, 32)
    one.x[0, 0, 6, column] = torch.nan
    with native.use_isa(isa):
        torch.testing.assert_close(one.solve(), one.plain(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf, 3e38))
@pytest.mark.parametrize("row", (0, 1, 6, 7, 11))
@pytest.mark.parametrize("height, stride", ((2, 1), (3, 1), (4, 1), (5, 2), (7, 1), (7, 2)))
def test_codes_that_are_not_finite_reach_no_further_than_row_by_row(
    backend: str, height: int, stride: int, row: int, value: float
) -> None:
    """3e38 is finite, and the sum of two rows of it is not."""
    one = problem(height, stride, 13 * stride, 20)
    z = one.solve()
    z[0, 2, row : row + 2, 5] = value
    found = csc.residual(one.x, z, one.dictionary, stride=one.stride, padding=one.padding)
    with native.use_path("direct"):
        expected = csc.residual(one.x, z, one.dictionary, stride=one.stride, padding=one.padding)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(found), kind(expected))
    finite = expected.isfinite()
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_an_atom_that_is_not_finite_is_computed_row_by_row(backend: str, value: float) -> None:
    one = problem(3, 1, 13, 20, n_iter=1)
    one.dictionary[2, 0, 1, 1] = value
    found = one.solve()
    with native.use_path("direct"):
        torch.testing.assert_close(found, one.solve(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", (torch.inf, -torch.inf))
@pytest.mark.parametrize("height, stride", ((1, 1), (3, 1), (3, 2), (5, 1)))
def test_an_infinite_atom_makes_what_sees_it_infinite(backend: str, height: int, stride: int, value: float) -> None:
    """And NaN nothing: not what no code sees, and not by a row of codes beyond the last."""
    x, z = torch.zeros(1, 1, 8, 9), torch.ones(1, 1, (8 - height) // stride + 1, 9)
    dictionary = torch.full((1, 1, height, 1), 0.5)
    dictionary[0, 0, height // 2] = value
    found = csc.residual(x, z, dictionary, stride=(stride, 1))
    with csc.use_backend("reference"):
        assert torch.equal(found, csc.residual(x, z, dictionary, stride=(stride, 1)))


@pytest.mark.parametrize("codes", ((2e38, 0.0, 0.0), (2e38, 0.0, -2e38), (0.0, 3e38, 0.0)))
@pytest.mark.parametrize("channel", (0, 1, 2))  # What overflows may do so in one of the image's channels alone.
@pytest.mark.parametrize("height", (3, 4))
def test_sums_of_products_do_not_overflow_where_products_do_not(
    backend: str, height: int, channel: int, codes: tuple[float, ...]
) -> None:
    dictionary, x = torch.zeros(1, 3, height, 1), torch.zeros(1, 3, 8, 9)
    dictionary[0, channel] = 1
    z = torch.zeros(1, 1, 9 - height, 9)
    z[0, 0, 2:5, 4] = torch.tensor(codes)
    found = csc.residual(x, z, dictionary)
    with csc.use_backend("reference"):
        assert torch.equal(found, csc.residual(x, z, dictionary))
    x[0, channel, 3, 4] = 2e38
    code = csc.fista(x, dictionary, 0.0, step_size=1.0, n_iter=1)
    with csc.use_backend("reference"):
        assert torch.equal(code, csc.fista(x, dictionary, 0.0, step_size=1.0, n_iter=1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize(
    "taps, value",
    (
        ((0.0, 100.0), 1e37), ((0.0, 0.0, 100.0), 1e37), ((0.0, 0.0, 0.0, 100.0), 1e37),
        ((1.0, 1.0, 1e-3, 100.0), 1e37), ((1.2e38, -1.2e38, 1.2e38), 1.0), ((-1e38, 1e38, -1e38, 1e38), 1.0),
    ),
)  # fmt: skip
def test_products_of_large_atoms_overflow_only_where_they_do_row_by_row(
    backend: str, taps: tuple[float, ...], value: float, row: int, isa: str
) -> None:
    x = torch.zeros(1, 1, 8, 16)
    x[0, 0, row] = value
    options = {"lmbda": 0.0, "step_size": 1.0, "n_iter": 1, "nonneg": False}
    with native.use_isa(isa):
        found = csc.fista(x, torch.tensor(taps).view(1, 1, -1, 1), **options)
    with csc.use_backend("reference"):
        expected = csc.fista(x, torch.tensor(taps).view(1, 1, -1, 1), **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf, 3e38))
@pytest.mark.parametrize("rows", (12, 13))
def test_a_gradient_that_is_not_finite_is_computed_row_by_row(backend: str, rows: int, value: float) -> None:
    """In x or in the output's gradient; 3e38 is finite, and the sum of two rows of it is not."""
    one, struck = problem(3, 1, rows, 20), problem(3, 1, rows, 20)
    struck.x[0, 0, 4:6, 5] = value
    grad = torch.ones_like(one.solve())
    far = grad.clone()
    far[0, :, 5, 4] = value
    for each, upstream in ((struck, grad), (one, far)):
        each.dictionary.requires_grad_()
        (found,) = torch.autograd.grad(each.solve(), each.dictionary, upstream)
        with native.use_path("direct"):
            (expected,) = torch.autograd.grad(each.solve(), each.dictionary, upstream)
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(found), kind(expected))
