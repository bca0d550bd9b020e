"""Budgets of the compiled CUDA kernels, read from the library: of one architecture, with --whole of all."""

from __future__ import annotations

import pytest

from csc_kernels import resources as committed
from csc_kernels.cuda import resources

if resources.unreadable() is not None:
    pytest.skip(f"{resources.unreadable()}", allow_module_level=True)

USAGE = resources.registers_and_spills()
BUILT = sorted({architecture for _, _, architecture in USAGE})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", BUILT if metafunc.config.getoption("--whole") else BUILT[:1])


def test_no_kernel_spills() -> None:
    assert USAGE
    assert {key: spills for key, (_, spills) in USAGE.items() if spills} == {}


def test_every_op_has_a_kernel_for_every_kind_of_product() -> None:
    def products(op: str) -> set[str]:
        if op == "sums":
            return {"Fma"}
        return set(resources.PRODUCTS) - ({"WmmaTf32"} if op in committed.WITHOUT_PRODUCTS else set())

    wanted = {(op, p, name) for op in resources.KERNELS.values() for p in products(op) for name in BUILT}
    assert wanted == set(USAGE)


def test_kernels_are_within_their_budget_and_in_the_committed_table(architecture: str) -> None:
    """Registers and instructions are those of one compiler; what the sources decide must be up to date."""
    shared = {
        (row.kernel, row.dtype, row.entry, row.target): row.shared_bytes
        for row in committed.read()
        if row.kind == "cuda"
    }
    for row in resources.rows([architecture]):
        assert committed.problems(row) == [], row
        assert shared[row.kernel, row.dtype, row.entry, row.target] == row.shared_bytes, row
        if row.dtype == "float32":
            assert row.tensor_core_instructions == 0, row
