"""Budgets of the compiled CUDA kernels, read from the library that was built."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

import csc_kernels as csc
from csc_kernels.cuda import resources

TABLE = Path(__file__).resolve().parents[1] / "docs" / "resources-cuda.csv"

if csc.backends.unavailable("native") is not None or not torch.ops.csc_cuda.built():
    pytest.skip("the library was built without the CUDA kernels", allow_module_level=True)
if resources.cuobjdump() is None:
    pytest.skip("cuobjdump is not there", allow_module_level=True)

USAGE = resources.registers_and_spills()
BUILT = sorted({target for _, _, target in USAGE})


def test_no_kernel_spills() -> None:
    assert USAGE
    assert {key: spills for key, (_, spills) in USAGE.items() if spills} == {}


def test_every_op_has_a_kernel_for_every_kind_of_product() -> None:
    products = [p for p in resources.PRODUCTS]
    wanted = {(op, p, t) for op in resources.KERNELS.values() if op != "sums" for p in products for t in BUILT}
    assert wanted | {("sums", "Fma", target) for target in BUILT} == set(USAGE)


@pytest.mark.parametrize("target", BUILT)
def test_products_in_16_bits_and_tf32_run_on_tensor_cores(target: str) -> None:
    if target != BUILT[0] and not os.environ.get("CSC_PROVE"):
        pytest.skip("make prove reads the code of every architecture")
    for (op, product, _), count in resources.tensor_core_instructions([target]).items():
        assert (count > 0) == (product != "Fma"), (op, product)


@pytest.mark.parametrize("target", BUILT)
def test_a_block_fits_into_its_architecture(target: str) -> None:
    limits = resources.TARGETS[target]
    for op, product, _ in USAGE:
        registers, _ = USAGE[op, product, target]
        assert registers <= 255
        for entry, shared in resources.shared_bytes_of(op, resources.PRODUCTS[product][1], limits):
            assert shared <= limits.block_bytes, (op, entry)
            warps = resources.STEM_WARPS if op in ("fista", "fista_backward") else resources.OTHER_WARPS
            assert resources.occupancy(registers, shared, warps, limits) > 0, (op, entry)


def test_the_committed_table_names_every_kernel_and_its_shared_memory() -> None:
    """Registers and instructions are those of one compiler; what the sources decide must be up to date."""
    with TABLE.open() as file:
        committed = {
            (row["kernel"], row["dtype"], row["entry"], row["target"]): int(row["shared_bytes"])
            for row in csv.DictReader(file)
        }
    for op, product, target in USAGE:
        dtype, element = resources.PRODUCTS[product]
        for entry, shared in resources.shared_bytes_of(op, element, resources.TARGETS[target]):
            assert committed[op, dtype, entry, target] == shared
