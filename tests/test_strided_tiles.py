"""Tiles of atoms of seven columns at stride 2 (csrc/cpu/strided_tiles.h), which any two vectors of codes share."""

from __future__ import annotations

import pytest
import torch
from conditions import ISAS
from error_rule import assert_error, assert_gradients, ways
from problems import Problem, random_problem
from tile_helpers import assert_gradient_is_that_of_rows, assert_same_kinds, every_option

import csc_kernels as csc

WITH_TILES = [isa for isa in ISAS if isa != "baseline"]
pytestmark = [
    pytest.mark.parametrize("backend", ("native",), indirect=True),
    pytest.mark.parametrize("every_isa", WITH_TILES, indirect=True),
    pytest.mark.usefixtures("every_isa"),
]

# Columns of codes: parts of a vector, whole ones, an odd number of them and an even.
COLUMNS = (1, 9, 16, 17, 32, 47, 56, 112)


def problem(columns: int, rows: int = 5, **options) -> Problem:
    """So many columns and rows of codes."""
    options = {"channels": 3, "atoms": 9, "batch": 2, "n_iter": 2, "padding": 3, "margin": 1e-6} | options
    return random_problem(
        dtype=torch.float32, size=(2 * rows, 2 * columns), stride=2, seed=columns,
        **{"kernel": (7, 7), "lmbda": 0.02} | options,
    )  # fmt: skip


def assert_solves(one: Problem) -> None:
    assert_error(one.solve(), ways(Problem.plain, one), one.to(torch.float64).plain())


@pytest.mark.parametrize("channels", (1, 2, 3, 4))  # Four take none.
@pytest.mark.parametrize("columns", COLUMNS)
def test_every_width_obeys_the_rule(backend: str, columns: int, channels: int) -> None:
    for rows in (1, 2, 3, 8, 11):  # A last row without a second; several pairs at once, and some that are left.
        assert_solves(problem(columns, rows, channels=channels))


@pytest.mark.parametrize("atoms", (1, 3, 4, 5, 6, 8, 11, 15, 16, 40))  # Too few; blocks of 8, 4, 2 and 1.
@pytest.mark.parametrize("columns", (17, 40))
def test_any_number_of_atoms_obeys_the_rule(backend: str, columns: int, atoms: int) -> None:
    one = problem(columns, 6, atoms=atoms)
    assert_solves(one)
    assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("height, stride", ((2, 1), (3, 1), (5, 1), (7, 1), (3, 2), (4, 2), (8, 2), (7, 3), (1, 1)))
@pytest.mark.parametrize("columns", (16, 33))
def test_every_height_obeys_the_rule(backend: str, columns: int, height: int, stride: int) -> None:
    """With four taps below each other, three and two; and none to pair."""
    one = random_problem(
        dtype=torch.float32, size=(stride * 7, 2 * columns), kernel=(height, 7), stride=(stride, 2), channels=2,
        padding=(height // 2, 3), lmbda=0.02, seed=height, margin=1e-6, atoms=9, batch=2, n_iter=2,
    )  # fmt: skip
    assert_solves(one)
    assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("height, stride, columns", ((7, 1, 33), (8, 2, 16)))
def test_gradients_of_small_images_obey_the_rule(backend: str, height: int, stride: int, columns: int) -> None:
    """Few positions to sum over: F(2, 4) of other points, in both directions, broke it for one seed of fifty."""
    for seed in range(60):
        one = random_problem(
            dtype=torch.float32, size=(stride * 7, 2 * columns), kernel=(height, 7), stride=(stride, 2), channels=2,
            padding=(height // 2, 3), lmbda=0.02, seed=seed, margin=1e-6, atoms=9, batch=2, n_iter=2,
        )  # fmt: skip
        assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("padding", (0, (2, 0), (0, 2), (1, 1), 6))
@pytest.mark.parametrize("odd", (0, 1))
def test_every_padding_obeys_the_rule(backend: str, padding: int | tuple[int, int], odd: int) -> None:
    one = random_problem(
        dtype=torch.float32, size=(15 + odd, 75 + odd), kernel=(7, 7), stride=2, channels=3, padding=padding,
        lmbda=0.02, seed=odd, margin=1e-6, atoms=8, batch=2, n_iter=3,
    )  # fmt: skip
    assert_solves(one)
    assert_gradients(Problem.solve, Problem.plain, one)


@every_option
@pytest.mark.parametrize("columns", (25, 48))
def test_every_option_obeys_the_rule(backend: str, columns: int, options: dict) -> None:
    one = problem(columns, 7, n_iter=4, **options)
    assert_solves(one)
    assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("channels", (1, 2, 3))
@pytest.mark.parametrize("columns", (9, 16, 56, 112))
def test_gradients_obey_the_rule(backend: str, columns: int, channels: int) -> None:
    for rows in (1, 12, 71):  # More tiles than a correlation holds at once.
        assert_gradients(Problem.solve, Problem.plain, problem(columns, rows, channels=channels))


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_images_of_many_blocks_obey_the_rule(backend: str, layout: torch.memory_format) -> None:
    one = problem(600, 40, atoms=4, batch=1, n_iter=3, margin=1e-8).map(
        lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t
    )
    assert_solves(one)
    assert_gradients(Problem.solve, Problem.plain, one)


@pytest.mark.parametrize("columns", (16, 56))
def test_a_code_does_not_depend_on_whose_tiles_it_shares(backend: str, columns: int) -> None:
    """Threads, and images beside each other, change which vectors are combined."""
    one = problem(columns, 37, batch=1, n_iter=2)
    threads, codes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            codes.append(one.solve())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(code, codes[0]) for code in codes)
    # Fewer rows, so that the last vector has another partner or none; those that see the border are others.
    for rows in (35, 32):
        part = problem(columns, rows, batch=1, n_iter=2)
        part.x, part.dictionary, part.step_size = one.x[:, :, : 2 * rows], one.dictionary, one.step_size
        assert torch.equal(part.solve()[:, :, : rows - 8], codes[0][:, :, : rows - 8])


def test_codes_written_around_the_caches_have_the_same_bits(backend: str) -> None:
    x, dictionary = torch.rand(8, 3, 128, 128), 0.1 * torch.randn(70, 3, 7, 7)
    options = {"n_iter": 2, "padding": 3, "step_size": 0.05, "stride": 2}
    whole = csc.fista(x, dictionary, 0.02, **options)
    assert whole.nbytes > 8 << 20
    assert torch.equal(whole, torch.cat([csc.fista(part, dictionary, 0.02, **options) for part in x.split(1)]))


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf, 3e38))
@pytest.mark.parametrize("column", (0, 1, 2, 3, 33, 34, 62))  # Of the image: either phase, both vectors.
def test_what_is_not_finite_goes_no_further_than_row_by_row(backend: str, column: int, value: float) -> None:
    """3e38 is finite, and what columns of it combine to is not."""
    one = problem(32, 9, n_iter=1)
    one.x[0, 0, 4, column : column + 2] = value
    found, expected = one.solve(), one.plain()
    assert_same_kinds(found, expected)
    finite = expected.isfinite() & (expected < 1e30)
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("column", (14, 15, 32, 33))
@pytest.mark.parametrize(
    "taps, value",
    (
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 100.0), 1e37), ((1.0, 1.0, 1e-3, 0.0, 1.0, 1.0, 100.0), 1e37),
        ((0.0, 1.2e38, 0.0, -1.2e38, 0.0, 1.2e38, 0.0), 1.0), ((1e38, 0.0, -1e38, 0.0, 1e38, 0.0, -1e38), 1.0),
    ),
)  # fmt: skip
@pytest.mark.parametrize("down", (True, False))
def test_products_of_large_atoms_overflow_only_where_they_do_row_by_row(
    backend: str, down: bool, taps: tuple[float, ...], value: float, column: int
) -> None:
    x, dictionary = torch.zeros(1, 1, 18, 70), torch.zeros(4, 1, 7, 7)
    x[0, 0, 8, column] = value
    (dictionary[0, 0, :, 3] if down else dictionary[0, 0, 3]).copy_(torch.tensor(taps))
    options = {"lmbda": 0.0, "step_size": 1.0, "n_iter": 1, "nonneg": False, "stride": 2}
    found = csc.fista(x, dictionary, **options)
    with csc.use_backend("reference"):
        expected = csc.fista(x, dictionary, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("down, across, row, value", ((2, 0, 10, 1e36), (2, 6, 10, 1e36), (3, 0, 11, 1.3e36)))
def test_columns_overflow_only_where_they_do_row_by_row(
    backend: str, down: int, across: int, row: int, value: float
) -> None:
    """One tap, whose products are finite: what its columns combine to is several times as large."""
    x, dictionary = torch.zeros(1, 1, 18, 70), torch.zeros(4, 1, 7, 7)
    x[0, 0, row] = value * (torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0]).repeat(10))
    dictionary[0, 0, down, across] = 100.0
    options = {"lmbda": 0.0, "step_size": 1.0, "n_iter": 1, "nonneg": False, "stride": 2}
    found = csc.fista(x, dictionary, **options)
    with csc.use_backend("reference"):
        expected = csc.fista(x, dictionary, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, 3e38))
@pytest.mark.parametrize("column", (8, 33))
def test_a_gradient_that_is_not_finite_is_computed_row_by_row(backend: str, column: int, value: float) -> None:
    one, struck = problem(40, 9), problem(40, 9)
    struck.x[0, 0, 4, column : column + 2] = value
    grad = torch.ones_like(one.solve())
    far = grad.clone()
    far[0, :, 5, column // 2 : column // 2 + 2] = value
    assert_gradient_is_that_of_rows(struck, grad)
    assert_gradient_is_that_of_rows(one, far)
