"""csc.lipschitz against the singular values of dense matrices."""

from __future__ import annotations

import pytest
import torch
from conditions import examples
from dictionaries import ADVERSARIES, one_frequency, random_dictionary
from hypothesis import given
from hypothesis import strategies as st
from problems import dense_operator, random_problem
from torch import Tensor

import csc_kernels as csc
from csc_kernels import native

FLOATS = (torch.float32, torch.float64)


def dense_norm(dictionary: Tensor, stride: object, padding: object, size: tuple[int, int]) -> float:
    """||A||^2 from the singular values of A as a matrix."""
    matrix = dense_operator(dictionary, stride, padding, size)
    return torch.linalg.matrix_norm(matrix, ord=2).item() ** 2 if matrix.numel() else 0.0


SHAPES = {
    "rgb": ((6, 3, 3, 3), 1, 1, (7, 8)),
    "rgb_stride": ((5, 3, 3, 3), 2, 1, (8, 9)),
    "grey_5x5": ((4, 1, 5, 5), 1, 2, (9, 9)),
    "even": ((4, 2, 2, 4), 1, "same", (7, 6)),
    "flat": ((3, 2, 1, 4), (1, 2), 0, (5, 9)),
    "stride_past_kernel": ((3, 2, 2, 2), 3, 0, (8, 9)),
    "one_tap": ((5, 3, 1, 1), 1, 0, (4, 4)),
    "more_atoms_than_pixels": ((40, 1, 2, 2), 1, 1, (4, 4)),
    "kernel_is_image": ((4, 2, 5, 6), 1, 0, (5, 6)),
    "seven": ((4, 3, 7, 7), 2, 3, (9, 10)),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_power_iteration_finds_the_largest_singular_value(shape: str, dtype: torch.dtype) -> None:
    sizes, stride, padding, size = SHAPES[shape]
    dictionary = random_dictionary(*sizes, dtype=dtype)
    found = csc.lipschitz(dictionary, stride=stride, padding=padding, input_size=size, tol=1e-9, max_iter=3000)
    assert found.dtype == dtype and found.shape == ()
    expected = dense_norm(dictionary, stride, padding, size)
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_default_tolerance_is_within_a_percent_from_below(shape: str) -> None:
    sizes, stride, padding, size = SHAPES[shape]
    dictionary = random_dictionary(*sizes, seed=3)
    found = float(csc.lipschitz(dictionary, stride=stride, padding=padding, input_size=size))
    expected = dense_norm(dictionary, stride, padding, size)
    assert 0.99 * expected <= found <= expected * (1 + 1e-9)


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bound_holds_for_adversaries(shape: str, dtype: torch.dtype, adversary: str) -> None:
    sizes, stride, padding, size = SHAPES[shape]
    dictionary = ADVERSARIES[adversary](*sizes).to(dtype)
    bound = csc.lipschitz(dictionary, stride=stride, padding=padding, method="bound")
    assert bound.dtype == dtype and bound.shape == ()
    assert float(bound) >= dense_norm(dictionary, stride, padding, size) * (1 - 1e-12)


@examples(150)
@given(st.data())
def test_bound_holds(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = draw(st.tuples(*(st.integers(max(1, k - 2 * p), 9) for k, p in zip(kernel, padding))))
    atoms, channels = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["random", *ADVERSARIES]))
    if kind == "random":
        dictionary = random_dictionary(atoms, channels, *kernel, seed=draw(st.integers(0, 1000)))
    elif kind == "one_frequency":
        dictionary = one_frequency(atoms, channels, *kernel, cycles=draw(st.floats(0, 0.5)))
    else:
        dictionary = ADVERSARIES[kind](atoms, channels, *kernel)
    dictionary = (dictionary * 10.0 ** draw(st.integers(-8, 8))).to(draw(st.sampled_from(FLOATS)))
    exact = dense_norm(dictionary, stride, padding, size)
    bound = float(csc.lipschitz(dictionary, stride=stride, padding=padding, method="bound"))
    assert bound >= exact * (1 - 1e-12)
    power = csc.lipschitz(dictionary, stride=stride, padding=padding, input_size=size)
    assert float(power) <= bound


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("kernel", (3, 5, 7))
@pytest.mark.parametrize("atoms", (8, 64))
def test_bound_is_within_15_percent_for_rgb(atoms: int, kernel: int, stride: int, seed: int) -> None:
    dictionary = random_dictionary(atoms, 3, kernel, kernel, seed=seed)
    size = (48 * stride, 48 * stride)
    exact = csc.lipschitz(dictionary, stride=stride, padding=kernel // 2, input_size=size, tol=1e-4)
    assert float(exact) <= float(csc.lipschitz(dictionary, stride=stride, method="bound")) <= 1.15 * exact


def test_bound_does_not_depend_on_padding_or_size() -> None:
    dictionary = random_dictionary(4, 3, 3, 3)
    bounds = {
        float(csc.lipschitz(dictionary, padding=padding, input_size=size, method="bound"))
        for padding in (0, 1, "same")
        for size in (None, 5, (3, 9))
    }
    assert len(bounds) == 1


@pytest.mark.parametrize("method", ("power", "bound"))
@pytest.mark.parametrize("scale", (1e-12, 1e-3, 1e6))
def test_scales_with_the_square_of_the_dictionary(method: str, scale: float) -> None:
    dictionary = random_dictionary(4, 3, 3, 3, dtype=torch.float32)
    one = csc.lipschitz(dictionary, input_size=8, method=method)
    scaled = csc.lipschitz(scale * dictionary, input_size=8, method=method)
    assert float(scaled) == pytest.approx(scale**2 * float(one), rel=1e-4, abs=0)


@pytest.mark.parametrize("method", ("power", "bound"))
def test_a_dictionary_of_zeros_has_norm_zero(method: str) -> None:
    found = csc.lipschitz(torch.zeros(4, 3, 3, 3), input_size=8, method=method)
    assert float(found) == 0.0


@pytest.mark.parametrize("method", ("power", "bound"))
def test_is_a_constant_and_the_same_every_time(method: str) -> None:
    dictionary = random_dictionary(4, 3, 3, 3).requires_grad_()
    torch.manual_seed(1)
    first = csc.lipschitz(dictionary, input_size=8, method=method)
    torch.manual_seed(2)
    assert torch.equal(first, csc.lipschitz(dictionary, input_size=8, method=method))
    assert not first.requires_grad


def test_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    csc.lipschitz(random_dictionary(4, 3, 3, 3), input_size=8)
    assert torch.equal(torch.rand(3), expected)


def test_max_iter_limits_the_products() -> None:
    dictionary = random_dictionary(8, 3, 5, 5)
    few, many = (float(csc.lipschitz(dictionary, input_size=16, tol=0, max_iter=n)) for n in (2, 100))
    assert 0 < few < many


def test_an_int_is_a_square_input() -> None:
    dictionary = random_dictionary(4, 3, 3, 3)
    assert torch.equal(csc.lipschitz(dictionary, input_size=9), csc.lipschitz(dictionary, input_size=(9, 9)))


@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_default_step_of_a_solve_does_not_diverge(name: str) -> None:
    problem = random_problem(atoms=6, padding=1, n_iter=300, momentum="none", lmbda=0.0, nonneg=False)
    problem.dictionary, problem.step_size = ADVERSARIES[name](6, 3, 3, 3), None
    assert problem.solve().norm() <= 1e3 * problem.x.norm()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("scale", (1e-22, 1e-6, 1e-3, 1.0, 1e2, 1e4))
def test_bound_of_small_and_large_dictionaries(dtype: torch.dtype, scale: float) -> None:
    """Past what their dtype holds, in the square."""
    dictionary = (scale * random_dictionary(6, 3, 3, 3)).to(dtype)
    bound = csc.lipschitz(dictionary, method="bound")
    exact = dense_norm(dictionary, 1, 1, (8, 8))
    assert bound.dtype == torch.float32
    assert float(bound) >= exact
    assert float(bound) <= 1.2 * exact + 1e-37
    power = csc.lipschitz(dictionary, padding=1, input_size=8)
    assert power.dtype == torch.float32 and float(power) <= float(bound)
    assert float(power) == pytest.approx(exact, rel=0.01, abs=1e-37)


@pytest.mark.parametrize("method", ("power", "bound"))
def test_nan_in_a_dictionary_is_nan(method: str) -> None:
    dictionary = random_dictionary(4, 3, 3, 3)
    dictionary[1, 2, 0, 1] = torch.nan
    assert csc.lipschitz(dictionary, padding=1, input_size=8, method=method).isnan()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_the_default_step_of_nan_and_of_zeros(dtype: torch.dtype) -> None:
    x = torch.ones(1, 3, 6, 6, dtype=dtype)
    assert not csc.fista(x, torch.zeros(4, 3, 3, 3, dtype=dtype), 0.1).any()
    assert csc.fista(x, torch.full((4, 3, 3, 3), torch.nan, dtype=dtype), 0.1).isnan().all()


def test_bfloat16_bound_is_an_upper_bound_of_what_is_stored() -> None:
    dictionary = random_dictionary(6, 3, 3, 3, dtype=torch.bfloat16)
    bound = csc.lipschitz(dictionary, method="bound")
    assert bound.dtype == torch.float32
    assert float(bound) >= dense_norm(dictionary, 1, 1, (8, 8))


@pytest.mark.parametrize("atoms", (64, 512, 2048))
def test_rounding_adds_nothing_where_few_products_span_all(atoms: int) -> None:
    """Equal atoms: two eigenvalues, so that what comes after two products is rounding."""
    d = torch.zeros(atoms, 64, 1, 1)
    d[:, 0] = 1
    assert csc.lipschitz(d, input_size=40).item() == pytest.approx(atoms, rel=5e-4)


@pytest.mark.skipif("native" not in csc.available_backends(), reason="no compiled kernels")
@pytest.mark.parametrize("path", ("direct", "f2"))
@pytest.mark.parametrize(
    "sizes, stride, padding, size",
    (
        ((24, 20, 3, 3), 1, 1, (9, 8)),
        ((5, 6, 3, 5), (1, 4), 0, (6, 5)),
        ((7, 9, 4, 2), 1, "same", (5, 6)),
        ((6, 5, 3, 3), 2, (2, 0), (7, 4)),
        ((1, 5, 1, 1), 1, 0, (1, 1)),
        ((40, 33, 3, 3), 1, 2, (3, 3)),
    ),
)
def test_wide_products_of_the_kernels_are_the_references(
    path: str, sizes: tuple[int, ...], stride, padding, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    gram = native.wide.gram
    monkeypatch.setattr(native.wide, "gram", lambda *arguments: made.append(arguments) or gram(*arguments))
    dictionary = random_dictionary(*sizes, dtype=torch.float32)
    options = {"stride": stride, "padding": padding, "input_size": size, "tol": 0, "max_iter": 30}
    with csc.use_backend("reference"):
        expected = float(csc.lipschitz(dictionary, **options))
    assert not made
    with native.use_path(path):
        found = float(csc.lipschitz(dictionary, **options))
    assert len(made) == 1
    assert found == pytest.approx(expected, rel=1e-5, abs=0)
    assert torch.equal(dictionary, random_dictionary(*sizes, dtype=torch.float32))


def test_needs_fewer_products_than_a_power_iteration() -> None:
    """As a wide layer asks for it: a third of the products, and nearer."""
    dictionary = random_dictionary(64, 64, 3, 3)
    matrix = dense_operator(dictionary, 1, 1, (6, 6))
    exact = float(torch.linalg.matrix_norm(matrix, 2) ** 2)
    found = float(csc.lipschitz(dictionary, padding=1, input_size=6, tol=1e-3, max_iter=12))
    assert 0.98 * exact <= found <= exact * (1 + 1e-9)
