"""The largest moment of a dictionary's symbol, by every implementation, against eigenvalues at each frequency."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from conditions import ISAS
from dictionaries import random_dictionary
from torch import Tensor

import csc_kernels as csc
from csc_kernels import native, symbol
from csc_kernels.symbol import largest_moment, scaled_taps


def divided(taps: Tensor) -> Tensor:
    """So that none of their matrices has an eigenvalue above 1."""
    return taps / (taps.square().sum() * taps.shape[1] * taps.shape[2]).sqrt()


def random_taps(*shape: int) -> Tensor:
    return divided(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def phases(at: Sequence[float], grid: Sequence[int], rows: int, columns: int) -> Tensor:
    """w.q for a point of the grid and all taps."""
    down, across = (
        torch.arange(taps, dtype=torch.float64) * i / n for taps, i, n in zip((rows, columns), at, grid)
    )
    return 2 * math.pi * (down[:, None] + across)


def expected_moment(taps: Tensor, grid: Sequence[int]) -> float:
    """From the eigenvalues at every point of the whole grid."""
    angle = -torch.stack([phases(at, grid, *taps.shape[1:3]) for at in itertools.product(*map(range, grid))])
    wave = torch.polar(torch.ones_like(angle), angle)
    symbols = torch.einsum("pij,kijn->pkn", wave, taps.to(torch.complex128))
    return float(torch.linalg.eigvalsh(symbols.mH @ symbols).pow(32).sum(1).max())


def expected_bound(dictionary: Tensor, stride: Sequence[int]) -> float:
    """From the largest moment over the grid that `lipschitz` documents."""
    taps, largest, scale = scaled_taps(dictionary, stride)
    lengths = taps.shape[1:3]
    grid = [12 * t if t > 1 else 1 for t in lengths]
    between = math.prod(math.cos(math.pi * (t - 1) / n) for t, n in zip(lengths, grid))
    return float(largest * scale**2) * expected_moment(taps, grid) ** (1 / 32) / between * (1 + 1e-7)


@pytest.fixture(params=["reference", *ISAS])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "reference":
        with csc.use_backend("reference"):
            yield request.param
    else:
        with native.use_isa(request.param):
            yield request.param


SHAPES = [
    ((1, 1, 1, 1), (1, 1)),
    ((4, 3, 1, 1), (36, 1)),
    ((5, 1, 3, 2), (1, 36)),
    ((3, 2, 3, 5), (24, 36)),
    ((64, 3, 3, 3), (36, 36)),
    ((64, 4, 4, 12), (48, 48)),
    ((2, 2, 2, 7), (7, 5)),
    ((1, 40, 40, 1), (9, 12)),
]


@pytest.mark.parametrize("shape, grid", SHAPES)
def test_is_the_largest_over_the_whole_grid(shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    taps = random_taps(*shape)
    assert float(largest_moment(taps, grid)) == pytest.approx(expected_moment(taps, grid), rel=1e-11, abs=0)


@pytest.mark.parametrize("n", (1, 5))
@pytest.mark.parametrize("at", [(0, 0), (0, 36), (36, 0), (5, 7), (71, 3), (30, 20), (65, 30), (36, 36)])
def test_finds_the_largest_wherever_it_is(at: tuple[int, int], n: int, implementation: str) -> None:
    """Waves of one frequency and all phases: most points have next to nothing, and are left out early."""
    shift = 7 * torch.rand(3, n, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    dictionary = torch.cos(phases(at, (72, 72), 6, 6) + shift) + 0.01 * random_dictionary(3, n, 6, 6)
    bound = float(csc.lipschitz(dictionary, method="bound"))
    assert bound == pytest.approx(expected_bound(dictionary, (1, 1)), rel=1e-11, abs=0)


def test_a_symbol_made_part_by_part_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = random_taps(3, 2, 3, 5)
    monkeypatch.setattr(symbol, "_NUMBERS_AT_ONCE", 1)
    assert len(list(symbol._symbol(taps, (24, 36)))) == 24
    with csc.use_backend("reference"):
        assert float(largest_moment(taps, (24, 36))) == pytest.approx(
            expected_moment(taps, (24, 36)), rel=1e-11, abs=0
        )


@pytest.mark.skipif("native" not in csc.available_backends(), reason="no compiled kernels")
def test_the_kernel_runs_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(torch.ops.csc_native, "lipschitz_bound", lambda *given: calls.append(given) or 1.0)
    for backend, shape, stride, expected in (
        ("native", (2, 3, 2, 2), 1, 1),
        ("reference", (2, 3, 2, 2), 1, 0),
        ("native", (34, 32, 1, 1), 1, 1),
        ("native", (34, 33, 1, 1), 1, 0),
        ("native", (40, 3, 2, 2), 16384, 1),
        ("native", (1, 1, 40, 40), 1, 0),
    ):
        calls.clear()
        with csc.use_backend(backend):
            csc.lipschitz(random_dictionary(*shape), stride=stride, method="bound")
        assert len(calls) == expected, (backend, shape)


@pytest.mark.parametrize("channels", (8, 12, 16))
def test_strides_beyond_the_kernel_pass_over_zeros(channels: int, implementation: str) -> None:
    """Of 2^28 phases for each channel, which nobody could hold."""
    dictionary = random_dictionary(3, channels, 2, 2)
    exact = torch.linalg.matrix_norm(dictionary.flatten(1), 2) ** 2
    for stride in ((2, 2), (16384, 16384), (2, 5000)):
        bound = float(csc.lipschitz(dictionary, stride=stride, method="bound"))
        assert bound == float(csc.lipschitz(dictionary, stride=2, method="bound"))
        assert exact <= bound <= 1.04 * exact


SCALED = [
    ((6, 3, 3, 3), (1, 1)),
    ((64, 3, 7, 7), (2, 2)),
    ((5, 2, 3, 4), (2, 3)),
    ((12, 1, 2, 2), (3, 1)),
    ((4, 4, 1, 5), (1, 1)),
    ((9, 16, 1, 2), (1, 2)),
    ((36, 33, 1, 2), (1, 1)),  # Libraries take over here.
    ((3, 5, 4, 3), (1, 2)),  # Fewer atoms than phases of channels: B(w)^H.
]


@pytest.mark.parametrize("form", ("contiguous", "channels_last", "slice", "small", "large", "zero", "negative"))
@pytest.mark.parametrize("shape, stride", SCALED)
def test_every_bound_is_the_definitions(
    shape: tuple[int, ...], stride: tuple[int, int], form: str, implementation: str
) -> None:
    dictionary = random_dictionary(*shape)
    if form == "channels_last":
        dictionary = dictionary.to(memory_format=torch.channels_last)
    elif form == "slice":
        dictionary = torch.cat([dictionary, dictionary], 3)[..., : shape[3]]
    dictionary[0, 0, 0, 0] = -9  # The largest.
    dictionary = dictionary * {"small": 1e-30, "large": 1e30, "zero": 0}.get(form, 1)
    if form == "negative":
        dictionary = -dictionary.abs()
    taps = scaled_taps(dictionary, stride)[0]
    assert float(taps.square().sum() * taps.shape[1] * taps.shape[2]) <= 1 + 1e-12
    bound = float(csc.lipschitz(dictionary, stride=stride, method="bound"))
    assert bound == pytest.approx(expected_bound(dictionary, stride), rel=1e-11, abs=0)


@pytest.mark.skipif("native" not in csc.available_backends(), reason="no compiled kernels")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_the_bound_of_less_precise_numbers_is_above_theirs(dtype: torch.dtype) -> None:
    dictionary = random_dictionary(8, 3, 3, 3).to(dtype)
    exact, bound = (float(csc.lipschitz(d, method="bound")) for d in (dictionary.double(), dictionary))
    rounding = 2 * torch.finfo(dtype).eps
    assert exact < bound == pytest.approx(exact * (1 + rounding) / (1 + 1e-7), rel=1e-7)


@pytest.mark.skipif("native" not in csc.available_backends(), reason="no compiled kernels")
@pytest.mark.parametrize("shape, stride", [((64, 3, 3, 3), 1), ((64, 3, 7, 7), 2), ((5, 2, 4, 6), (2, 1))])
def test_threads_do_not_change_the_bound(shape: tuple[int, ...], stride: int) -> None:
    dictionary = random_dictionary(*shape)
    threads, bounds = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            bounds.add(float(csc.lipschitz(dictionary, stride=stride, method="bound")))
    finally:
        torch.set_num_threads(threads)
    assert len(bounds) == 1


@pytest.mark.parametrize("width", (128, 512))
def test_the_bound_of_many_channels_is_theirs(width: int) -> None:
    """Whose powers are beyond float32."""
    dictionary = random_dictionary(width, width, 1, 1, dtype=torch.float32)
    exact = float(torch.linalg.matrix_norm(dictionary[:, :, 0, 0].double(), 2) ** 2)
    assert exact <= float(csc.lipschitz(dictionary, method="bound")) <= 1.22 * exact


@pytest.mark.parametrize("scale", (1e-163, 1e-150, 1e150, 1e153))
def test_a_bound_that_float64_holds_is_found(scale: float, implementation: str) -> None:
    dictionary = random_dictionary(64, 2, 3, 3)
    bound, one = (float(csc.lipschitz(d, method="bound")) for d in (scale * dictionary, dictionary))
    expected = max(scale * (scale * one), torch.finfo(torch.float64).tiny)
    assert bound == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_raw_op_has_no_half_gradient(implementation: str) -> None:
    dictionary = random_dictionary(4, 3, 3, 3).requires_grad_()
    bound = torch.ops.csc.lipschitz_bound(dictionary, [1, 1])
    assert not bound.requires_grad or torch.autograd.grad(bound, dictionary, allow_unused=True) == (None,)


def test_zeros_have_the_moment_zero() -> None:
    assert float(largest_moment(torch.zeros(3, 2, 2, 4, dtype=torch.float64), (24, 24))) == 0


@pytest.mark.parametrize("precision", ("high", "medium"))
def test_the_bound_holds_where_products_of_float32_may_lose_bits(implementation: str, precision: str) -> None:
    """Equal atoms of numbers of which bfloat16 loses 0.3 %: the bound is their norm, and no less."""
    dictionary = torch.full((64, 32, 1, 1), 0.3349)
    dictionary[:, 0] = 1
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        bound = float(csc.lipschitz(dictionary, method="bound"))
    finally:
        torch.set_float32_matmul_precision(before)
    exact = float(dictionary.double().square().sum())
    assert exact <= bound <= (1 + 1e-6) * exact


@pytest.mark.parametrize("value", (torch.inf, -torch.inf, torch.nan))
@pytest.mark.parametrize("shape", ((6, 3, 3, 3), (2, 40, 2, 2), (40, 40, 2, 2)))
def test_what_is_not_finite_has_no_bound(shape: tuple[int, ...], value: float, implementation: str) -> None:
    dictionary = random_dictionary(*shape)
    dictionary[1, 1, 0, 1] = value
    assert csc.lipschitz(dictionary, method="bound").isnan()
