"""The bytes and products of a solve on chip: by formula, and counted while it runs on the emulated device."""

from __future__ import annotations

import csv

import pytest
import torch
from emulation.fixtures import device, emulated_process  # noqa: F401

import csc_kernels as csc
from csc_kernels import traffic
from csc_kernels.cuda.resources import STEMS, Stem, plan_of
from csc_kernels.cuda.traffic import forward, predictions
from csc_kernels.resources import ARCHITECTURES, Architecture

# The solve, and whether it is cut into tiles.
CASES = {
    "whole": (Stem((2, 3, 8, 16), 8, 3, 1, 1, 2), False),
    "tiled": (Stem((2, 3, 13, 24), 20, 3, 1, 1, 2), True),
    "three_steps": (Stem((1, 1, 11, 48), 16, 3, 1, 1, 3), True),
    "strided": (Stem((1, 3, 33, 41), 8, 7, 2, 3, 2), True),
    "one_step": (Stem((2, 2, 9, 8), 5, 3, 1, 1, 1), False),
}


def least_shared(stem: Stem, element: int) -> int:
    """Bytes with which the solve fits in small tiles."""

    def plan(kilobytes: int) -> list[int]:
        return plan_of(stem, False, element, Architecture(kilobytes * 1024, 0, 0, 3))

    return 1024 * (6 + next(kilobytes for kilobytes in range(30, 228, 2) if plan(kilobytes)))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", CASES)
def test_formula_and_count_agree(device, case: str, dtype: torch.dtype) -> None:  # noqa: F811
    stem, cut = CASES[case]
    device.device_numbers, device.tf32 = False, True
    x = torch.randn(stem.x).to(dtype)
    dictionary = torch.randn(stem.atoms, stem.x[1], stem.kernel, stem.kernel).to(dtype)
    if cut:
        device.shared_limit = least_shared(stem, x.element_size())
    csc.fista(x, dictionary, 0.1, 0.01, stem.n_iter, stride=stem.stride, padding=stem.padding, momentum="none")
    ((op, arguments, counted),) = device.calls
    assert op == "fista"
    rows, columns, _ = arguments["plan"]
    assert not cut or rows < stem.x[2] // stem.stride or columns < stem.x[3] // stem.stride
    counts = forward(stem, list(arguments["plan"]), x.element_size())
    assert counted.loaded["x"] == counts.x and counted.stored["x"] == 0
    assert counted.stored["z"] == counts.z and counted.loaded["z"] == 0
    assert counted.loaded["dictionary"] == counts.dictionary
    assert counted.products == counts.products


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"gfx942"}))
def test_the_cifar_stem_moves_at_most_a_quarter_more_than_x_and_z(emulated_process, architecture: str) -> None:  # noqa: F811
    """In 16 bits, with every halo, on every architecture."""
    stem = STEMS["CIFAR stem"]
    counts = forward(stem, plan_of(stem, False, 2, ARCHITECTURES[architecture]), 2)
    assert counts.moved <= 1.25 * 2 * (torch.Size(stem.x).numel() + 64 * 64 * 32 * 32)


def test_the_committed_table_is_what_the_formulas_give(emulated_process) -> None:  # noqa: F811
    with traffic.FILE.open() as file:
        committed = [row for row in csv.DictReader(file) if row["kind"] == "cuda"]
    assert committed == [{name: str(value) for name, value in vars(row).items()} for row in predictions()]
