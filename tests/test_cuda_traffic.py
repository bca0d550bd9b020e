"""The bytes and products of a solve on chip: by formula, and counted while it runs on the emulated device."""

from __future__ import annotations

import csv
from types import ModuleType

import pytest
import torch
from emulation.fixtures import device, emulated_process  # noqa: F401

import csc_kernels as csc
from csc_kernels import traffic
from csc_kernels.cuda import kernels
from csc_kernels.cuda.plan import splits
from csc_kernels.cuda.resources import STEMS, Stem, plan_of
from csc_kernels.cuda.step_traffic import Pass, analysis, correlation, residual_tail, sizes, step_tail, synthesis
from csc_kernels.cuda.traffic import backward, forward, predictions
from csc_kernels.cudnn import passes
from csc_kernels.resources import Architecture

# The solve, and whether it is cut into tiles.
CASES = {
    "whole": (Stem((2, 3, 8, 16), 8, 3, 1, 1, 2), False),
    "tiled": (Stem((2, 3, 13, 24), 20, 3, 1, 1, 2), True),
    "three_steps": (Stem((1, 1, 11, 48), 16, 3, 1, 1, 3), True),
    "strided": (Stem((1, 3, 33, 41), 8, 7, 2, 3, 2), True),
    "one_step": (Stem((2, 2, 9, 8), 5, 3, 1, 1, 1), False),
}


def least_shared(stem: Stem, backward: bool, element: int) -> int:
    """Bytes with which the solve fits in small tiles."""

    def plan(kilobytes: int) -> list[int]:
        return plan_of(stem, backward, element, Architecture(kilobytes * 1024, 0, 0, 3))

    return 1024 * (6 + next(kilobytes for kilobytes in range(30, 228, 2) if plan(kilobytes)))


def tensors(stem: Stem, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x and a dictionary."""
    generator = torch.Generator().manual_seed(0)
    shapes = (stem.x, (stem.atoms, stem.x[1], stem.kernel, stem.kernel))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def solve(stem: Stem, x: torch.Tensor, dictionary: torch.Tensor) -> torch.Tensor:
    """Nothing is thresholded: the code has no zeros."""
    options = {"stride": stem.stride, "padding": stem.padding, "momentum": "none", "nonneg": False}
    return csc.fista(x, dictionary, 0.0, 0.01, stem.n_iter, **options)


def assert_cut(stem: Stem, plan: list[int], cut: bool) -> None:
    assert not cut or plan[0] < stem.x[2] // stem.stride or plan[1] < stem.x[3] // stem.stride


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", CASES)
def test_of_a_solve_formula_and_count_agree(device, case: str, dtype: torch.dtype) -> None:
    stem, cut = CASES[case]
    device.device_numbers, device.tf32 = False, True
    x, dictionary = tensors(stem, dtype)
    if cut:
        device.shared_limit = least_shared(stem, False, x.element_size())
    solve(stem, x, dictionary)
    ((op, arguments, counted),) = device.calls
    assert op == "fista"
    assert_cut(stem, arguments["plan"], cut)
    counts = forward(stem, list(arguments["plan"]), x.element_size())
    assert counted.loaded["x"] == counts.x and counted.stored["x"] == 0
    assert counted.stored["z"] == counts.stored and counted.loaded["z"] == 0
    assert counted.loaded["dictionary"] == counts.dictionary
    assert counted.products == counts.products


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c != "strided"])  # Whose backward keeps too much.
def test_of_a_backward_formula_and_count_agree(device, case: str, dtype: torch.dtype) -> None:
    stem, cut = CASES[case]
    device.device_numbers, device.tf32 = False, True
    x, dictionary = (t.requires_grad_() for t in tensors(stem, dtype))
    if cut:
        device.shared_limit = least_shared(stem, True, x.element_size())
    z = solve(stem, x, dictionary)
    assert (z != 0).all()
    z.square().sum().backward()
    op, arguments, counted = device.calls[-1]
    assert op == "fista_backward"
    assert_cut(stem, arguments["plan"], cut)
    counts = backward(stem, list(arguments["plan"]), x.element_size())
    assert counted.loaded["x"] == counts.x
    assert counted.loaded["dictionary"] == counts.dictionary
    assert counted.loaded["z"] == counts.z
    assert counted.loaded["grad"] == counts.grad
    assert counted.stored["grad_x"] + counted.stored["partials"] == counts.stored
    assert counted.products == counts.products


NUMBER = torch.tensor(0.1)
LAYERS = {
    "stem": Stem((2, 3, 9, 11), 20, 3, 1, 1, 1),
    "wide": Stem((2, 70, 5, 6), 66, 3, 1, 1, 1),
    "strided": Stem((1, 5, 13, 12), 9, 3, 2, 1, 1),
    "padding_past_kernel": Stem((1, 2, 5, 6), 3, 2, 1, 3, 1),
    "padding_past_stride": Stem((5, 3, 9, 7), 18, 7, 2, 3, 1),
    "stride_past_kernel": Stem((3, 2, 10, 7), 5, 2, 3, 1, 1),
    "several_tiles": Stem((3, 4, 20, 39), 17, 3, 1, 1, 1),
}


def one_step(module: ModuleType, stem: Stem, dtype: torch.dtype, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual and a step by kernels or by cudnn's passes; `whole`: with a mask, and with momentum. r and z."""
    x, dictionary = tensors(stem, dtype)
    convolution = (dictionary, (stem.stride,) * 2, (stem.padding,) * 4)
    z = torch.randn(kernels.code_shape(x, *convolution)).to(dtype)
    r = module.synthesis(z, *convolution, x, x=x, mask=torch.ones_like(x) if whole else None)
    previous, beta = (z, 0.5) if whole else (None, None)
    module.step(r, *convolution, NUMBER, z if whole else None, NUMBER, NUMBER, True, previous, beta)
    return r, z


def assert_counted(device, expected: dict[str, Pass], element: int) -> None:
    """What the device counted of its calls."""
    assert [op for op, _, _ in device.calls] == list(expected)
    for op, _, counted in device.calls:
        single = ("partials", "result") if op == "correlation" else ()  # float32 in any case.
        for found, wanted in ((counted.loaded, expected[op].loaded), (counted.stored, expected[op].stored)):
            bytes_of = {n: c * (4 if n in single else element) for n, c in wanted.items()}
            assert {name: count for name, count in found.items() if count} == bytes_of, op
        assert counted.products == expected[op].products, op


@pytest.mark.parametrize("whole_step", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_of_the_passes_of_a_step_formula_and_count_agree(
    device, layer: str, dtype: torch.dtype, whole_step: bool
) -> None:
    stem = LAYERS[layer]
    device.device_numbers, device.tf32 = False, True
    r, z = one_step(kernels, stem, dtype, whole_step)
    dictionary = tensors(stem, dtype)[1]
    kernels.correlation(r, z, dictionary, (stem.stride,) * 2, (stem.padding,) * 4, NUMBER)
    expected = {
        "synthesis": synthesis(stem, True, whole_step, dtype.itemsize),
        "analysis": analysis(stem, whole_step, whole_step, dtype.itemsize),
        "correlation": correlation(stem, splits(z[:, 0].numel())),
    }
    assert_counted(device, expected, dtype.itemsize)


@pytest.mark.parametrize("whole_step", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_of_the_tails_formula_and_count_agree(device, layer: str, dtype: torch.dtype, whole_step: bool) -> None:
    """Every entry once: what a perfect fusion of everything but the convolution moves."""
    stem = LAYERS[layer]
    device.device_numbers = False
    one_step(passes, stem, dtype, whole_step)
    expected = {
        "residual_tail": residual_tail(stem, True, whole_step),
        "step_tail": step_tail(stem, whole_step, whole_step),
    }
    assert_counted(device, expected, dtype.itemsize)


def test_a_solve_moves_at_most_a_quarter_more_than_x_and_z(emulated_process) -> None:
    """Of every stem, in 16 and 32 bits, with every halo, on every architecture where a tile fits."""
    found = [row for row in predictions() if row.kernels == 1]
    assert {row.case for row in found} == set(STEMS)
    assert [row for row in found if row.megabytes > 1.25 * row.floor_megabytes] == []


@pytest.mark.parametrize("element", (2, 4))
@pytest.mark.parametrize("shape", ((64, 64, 32, 32), STEMS["CIFAR stem"].x), ids=str)
def test_a_step_kernel_moves_at_most_a_tenth_more_than_its_tensors(
    emulated_process, shape: tuple[int, int, int, int], element: int
) -> None:
    """Of 64 atoms, halo included; the dictionary never leaves the caches and is counted once."""
    layer = Stem(shape, 64, 3, 1, 1, 2)
    s = sizes(layer)
    image, code = s.pixels * s.channels, s.codes * s.atoms
    dictionary = s.atoms * s.channels * s.taps
    for given in (False, True):
        for found, floor in (
            (synthesis(layer, True, given, element), code + (3 if given else 2) * image),
            (analysis(layer, given, False, element), image + (2 if given else 1) * code),
            (analysis(layer, given, True, element), image + (4 if given else 3) * code),
        ):
            assert found.moved(1) + dictionary <= 1.1 * (floor + dictionary)


def test_the_committed_table_is_what_the_formulas_give(emulated_process) -> None:
    with traffic.FILE.open() as file:
        committed = [row for row in csv.DictReader(file) if row["kind"] == "cuda"]
    assert committed == [{name: str(value) for name, value in vars(row).items()} for row in predictions()]
