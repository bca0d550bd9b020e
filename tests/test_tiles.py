"""Tiles of two by two codes (csrc/cpu/tiles.h): 3x3 atoms at stride 1, rows of whole tiles and others."""

from __future__ import annotations

import pytest
import torch
from error_rule import assert_error, assert_gradients, ways
from problems import Problem, random_problem
from tile_helpers import assert_gradient_is_that_of_rows, assert_same_kinds, every_option

import csc_kernels as csc
from csc_kernels import native

pytestmark = [pytest.mark.parametrize("backend", ("native",), indirect=True), pytest.mark.usefixtures("every_isa")]

# The second vector of a row's last tile has one column, all, most or none, of 16 lanes, 8 and 4; several tiles; and
# widths that take none.
WIDTHS = (17, 32, 30, 96, 113, 16, 80, 97, 9, 15, 5, 7)


def problem(columns: int, rows: int = 6, **options) -> Problem:
    options = {"channels": 3, "atoms": 7, "batch": 2, "n_iter": 2, "padding": 1, "margin": 1e-6} | options
    return random_problem(
        dtype=torch.float32, size=(rows, columns), kernel=(3, 3), seed=columns, **{"lmbda": 0.02} | options
    )  # fmt: skip


# Widths with few numbers of atoms, and every number with few widths: too few, and blocks of four and what is left.
SIZES = (
    *((columns, atoms) for columns in WIDTHS for atoms in (4, 7)),
    *((columns, atoms) for columns in (17, 32) for atoms in (1, 2, 3, 5, 12)),
)


@pytest.mark.parametrize("channels", (1, 2, 3, 4))
@pytest.mark.parametrize("columns, atoms", SIZES)
def test_every_size_obeys_the_rule(backend: str, columns: int, channels: int, atoms: int) -> None:
    for rows in (1, 2, 5, 12):
        one = problem(columns, rows, channels=channels, atoms=atoms)
        assert_error(one.solve(), ways(Problem.plain, one), one.to(torch.float64).plain())


@pytest.mark.parametrize("padding", (0, (2, 0), (0, 2), 5))
@pytest.mark.parametrize("columns", (27, 30, 34, 64))
def test_every_padding_obeys_the_rule(backend: str, columns: int, padding: int | tuple[int, int]) -> None:
    one = problem(columns, 7, padding=padding, n_iter=3)
    assert_error(one.solve(), ways(Problem.plain, one), one.to(torch.float64).plain())
    assert_gradients(Problem.solve, Problem.plain, one)


@every_option
@pytest.mark.parametrize("columns", (25, 35, 64, 71))  # Seven vectors of 4 lanes, five and nine of 8.
def test_every_option_obeys_the_rule(backend: str, columns: int, options: dict) -> None:
    one = problem(columns, 9, n_iter=4, **options)
    assert_error(one.solve(), ways(Problem.plain, one), one.to(torch.float64).plain())
    assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("channels", (1, 2, 3))
@pytest.mark.parametrize(
    "columns, atoms",
    (*((columns, 13) for columns in (17, 32, 64)), *((32, atoms) for atoms in (1, 2, 3, 4, 5, 7)), (17, 4)),
)
def test_gradients_obey_the_rule(backend: str, columns: int, channels: int, atoms: int) -> None:
    for rows in (1, 12, 71):  # More pairs than a correlation holds at once.
        assert_gradients(Problem.solve, Problem.plain, problem(columns, rows, channels=channels, atoms=atoms))


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("columns, rows", ((32, 32), (224, 24), (2048, 9)))
def test_images_of_many_blocks_obey_the_rule(
    backend: str, columns: int, rows: int, layout: torch.memory_format
) -> None:
    one = problem(columns, rows, atoms=16 if rows == 32 else 4, batch=1, n_iter=3, margin=1e-8).map(
        lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t
    )
    assert_error(one.solve(), ways(Problem.plain, one), one.to(torch.float64).plain())
    assert_gradients(Problem.solve, Problem.plain, one)


# All four columns of tiles, both vectors; five and nine of 8 lanes.
at_columns = pytest.mark.parametrize(
    "columns, column", (*((32, column) for column in (0, 1, 14, 15, 16, 17, 30, 31)), (35, 33), (72, 70))
)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf, 3e38))
@at_columns
def test_what_is_not_finite_goes_no_further_than_row_by_row(
    backend: str, columns: int, column: int, value: float
) -> None:
    """3e38 is finite, and the sum of two columns of it is not."""
    one = problem(columns, 9, n_iter=1)
    one.x[0, 0, 4, column : column + 2] = value
    found, expected = one.solve(), one.plain()
    assert_same_kinds(found, expected)
    finite = expected.isfinite() & (expected < 1e30)
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf, 3e38))
@pytest.mark.parametrize("row", (0, 5, 8))
@at_columns
def test_codes_that_are_not_finite_reach_no_further_than_row_by_row(
    backend: str, columns: int, column: int, row: int, value: float
) -> None:
    one = problem(columns, 9)
    z = one.solve()
    z[0, 2, row, column : column + 2] = value
    found = csc.residual(one.x, z, one.dictionary, padding=1)
    with native.use_path("direct"):
        expected = csc.residual(one.x, z, one.dictionary, padding=1)
    assert_same_kinds(found, expected)
    finite = expected.isfinite()
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codes", ((2e38, 0.0, 0.0), (2e38, 0.0, -2e38), (0.0, 3e38, 0.0), (2e38, 2e38, 0.0)))
@pytest.mark.parametrize("channel", (0, 1, 2))
def test_sums_of_products_do_not_overflow_where_products_do_not(
    backend: str, channel: int, codes: tuple[float, ...]
) -> None:
    dictionary, x = torch.zeros(4, 3, 3, 3), torch.zeros(1, 3, 8, 34)
    dictionary[0, channel, 1, 1] = 1
    z = torch.zeros(1, 4, 6, 32)
    for place in (z[0, 0, 2:5, 15], z[0, 0, 3, 15:18]):
        z.zero_()
        place.copy_(torch.tensor(codes))
        found = csc.residual(x, z, dictionary)
        with csc.use_backend("reference"):
            assert torch.equal(found, csc.residual(x, z, dictionary))
    x[0, channel, 3, 15:17] = 2e38
    code = csc.fista(x, dictionary, 0.0, step_size=1.0, n_iter=1)
    with csc.use_backend("reference"):
        assert torch.equal(code, csc.fista(x, dictionary, 0.0, step_size=1.0, n_iter=1))


@pytest.mark.parametrize("column", (4, 15, 16, 31))
@pytest.mark.parametrize(
    "taps, value", (((0.0, 0.0, 100.0), 1e37), ((1.0, 1e-3, 100.0), 1e37), ((1.2e38, -1.2e38, 1.2e38), 1.0))
)
def test_products_of_large_atoms_overflow_only_where_they_do_row_by_row(
    backend: str, taps: tuple[float, ...], value: float, column: int
) -> None:
    x, dictionary = torch.zeros(1, 1, 8, 34), torch.zeros(4, 1, 3, 3)
    x[0, 0, 4, column] = value
    dictionary[0, 0, 1] = torch.tensor(taps)
    options = {"lmbda": 0.0, "step_size": 1.0, "n_iter": 1, "nonneg": False}
    found = csc.fista(x, dictionary, **options)
    with csc.use_backend("reference"):
        expected = csc.fista(x, dictionary, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)


def test_partial_sums_of_tiles_overflow_only_where_codes_do(backend: str) -> None:
    """A code is 1.04 - 0.15 of the largest number: it fits, and not every partial sum of its products does."""
    pixel = 1e36
    largest = torch.finfo(torch.float32).max / pixel
    x, dictionary = torch.zeros(1, 3, 8, 32), torch.zeros(4, 3, 3, 3)
    dictionary[:, :, 1, 1], dictionary[:, 0, 0, 0] = 1.04 * largest / 3, 0.15 * largest
    x[0, :, 3, 17], x[0, 0, 2, 16] = pixel, -pixel
    options = {"lmbda": 0.0, "step_size": 1.0, "n_iter": 1, "padding": 1, "nonneg": False}
    found = csc.fista(x, dictionary, **options)
    with csc.use_backend("reference"):
        expected = csc.fista(x, dictionary, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)


def test_a_threshold_that_overflows_leaves_no_code(backend: str) -> None:
    x, dictionary = torch.randn(1, 3, 8, 32), torch.randn(8, 3, 3, 3)
    code = csc.fista(x, dictionary, 1e38, step_size=10.0, n_iter=1, padding=1)
    assert torch.equal(code, torch.zeros(1, 8, 8, 32))


def test_a_synthesis_whose_weights_overflow_is_computed_row_by_row(backend: str) -> None:
    """Those of its tiles are 9/4 of the taps at most; times the step size, as the analysis takes them, they fit."""
    dictionary = torch.full((4, 1, 3, 3), 3e38).requires_grad_()
    z0 = torch.zeros(1, 4, 9, 32)
    z0[0, 0, 4, 16] = 1e-36
    options = {"lmbda": 0.0, "step_size": 1e-7, "n_iter": 1, "padding": 1, "nonneg": False}

    def solve(dictionary: torch.Tensor, z0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        code = csc.fista(torch.zeros(1, 1, 9, 32, dtype=z0.dtype), dictionary, z0=z0, **options)
        return code.detach(), torch.autograd.grad(code.sum() * 1e-30, dictionary)[0]

    found = solve(dictionary, z0)
    with csc.use_backend("reference"):
        expected = solve(dictionary.double(), z0.double())
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("value", (torch.nan, torch.inf, 3e38))
@pytest.mark.parametrize("column", (4, 15, 16))
def test_a_gradient_that_is_not_finite_is_computed_row_by_row(backend: str, column: int, value: float) -> None:
    one, struck = problem(32, 9), problem(32, 9)
    struck.x[0, 0, 4, column : column + 2] = value
    grad = torch.ones_like(one.solve())
    far = grad.clone()
    far[0, :, 5, column : column + 2] = value
    assert_gradient_is_that_of_rows(struck, grad)
    assert_gradient_is_that_of_rows(one, far)


@pytest.mark.parametrize(
    "atoms, rows, columns",
    ((50, 32, 64), (64, 32, 64), (64, 32, 40), (64, 32, 80), (64, 32, 44), (64, 30, 44), (64, 32, 45)),
)
def test_codes_of_more_than_a_cache_have_the_same_bits(backend: str, atoms: int, rows: int, columns: int) -> None:
    x, dictionary = torch.rand(32, 3, rows, columns), 0.2 * torch.randn(atoms, 3, 3, 3)
    options = {"n_iter": 2, "padding": 1, "step_size": 0.05}
    whole = csc.fista(x, dictionary, 0.02, **options)
    assert whole.nbytes > 8 << 20
    assert torch.equal(whole, torch.cat([csc.fista(part, dictionary, 0.02, **options) for part in x.split(1)]))
