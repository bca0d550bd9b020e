"""No Triton kernel spills, leaves its architecture's shared memory, or loses its tensor core instructions.

Kernels are compiled ahead of time, which needs no GPU: some of docs/resources.csv, with --whole all of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from csc_kernels import cli
from csc_kernels import resources as committed
from csc_kernels.resources import ARCHITECTURES, Resources

pytest.importorskip("triton")

DTYPES = ("float32", "tf32", "float16", "bfloat16")
KERNELS = {
    "residual_kernel", "image_gradient_kernel", "fista_step_kernel", "code_gradient_kernel",
    "threshold_gradient_kernel", "correlation_kernel", "fista_kernel",
}  # fmt: skip


def table() -> list[Resources]:
    return [row for row in committed.read() if row.kind == "triton"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    whole = metafunc.config.getoption("--whole")
    if {"target", "dtype"} <= set(metafunc.fixturenames):
        some = [("sm90", "bfloat16"), ("gfx942", "tf32")]
        every = [(target, dtype) for target in ARCHITECTURES for dtype in DTYPES]
        metafunc.parametrize("target, dtype", every if whole else some)
    elif "target" in metafunc.fixturenames:
        metafunc.parametrize("target", ("sm90", "gfx942") if whole else ("sm90",))


def test_kernels_compile_within_their_budget(target: str, dtype: str) -> None:
    from csc_kernels.triton import resources

    known = {(row.kernel, row.dtype, row.entry, row.target) for row in table()}
    for row in resources.rows([target], [dtype]):
        assert committed.problems(row) == [], row
        assert (row.kernel, row.dtype, row.entry, row.target) in known, f"{row} is not in {committed.FILE.name}"


def test_the_committed_table_has_every_kernel_in_every_dtype_for_every_architecture() -> None:
    found = {(row.kernel, row.dtype, row.target) for row in table()}
    assert found == {(k, d, t) for k in KERNELS for d in DTYPES for t in ARCHITECTURES}


def test_no_committed_row_is_over_budget() -> None:
    assert {row: committed.problems(row) for row in committed.read() if committed.problems(row)} == {}


OWN = Resources("triton", "residual_kernel", "tf32", "", "sm80", 100, 0, 1000, 0.5, 8)


@pytest.mark.parametrize(
    "change",
    ({"spill_bytes": 4}, {"shared_bytes": 164 * 1024}, {"tensor_core_instructions": 0}, {"occupancy": 0.0}),
)
def test_a_row_over_budget_is_a_problem(change: dict) -> None:
    assert committed.problems(OWN) == []
    assert len(committed.problems(replace(OWN, **change))) == 1


@pytest.mark.parametrize(
    "registers, shared, warps, expected",
    # Of 64 warps: 65536 registers are 8 blocks of 4 warps of 64, 2 of 255; 228 KiB are 4 blocks of 50 KiB + 1.
    [(64, 0, 4, 0.5), (255, 0, 4, 0.125), (32, 0, 4, 1.0), (32, 50 * 1024, 4, 0.25)],
)
def test_occupancy_is_what_the_registers_and_the_shared_memory_allow(
    registers: int, shared: int, warps: int, expected: float
) -> None:
    assert ARCHITECTURES["sm90"].occupancy(registers, shared, warps) == expected


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resources"]) == 0
    first, *printed = capsys.readouterr().out.splitlines()
    assert first.split()[:4] == ["kind", "kernel", "dtype", "entry"]
    assert {line.split()[0] for line in printed} == {"triton", "cuda"} and len(printed) == len(committed.read())


def test_without_a_table_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(committed.lines, "__defaults__", (tmp_path / "resources.csv",))
    assert cli.main(["resources"]) == 1
    assert "no table" in capsys.readouterr().err


def test_writing_keeps_the_rows_of_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "resources.csv"
    other = replace(OWN, kind="cuda", kernel="residual")
    committed.write(file, [OWN])
    committed.write(file, [other])
    committed.write(file, [replace(OWN, registers=90)])
    assert committed.read(file) == [other, replace(OWN, registers=90)]


def test_variants_of_the_arguments_compile(target: str) -> None:
    """Penalties and masks that are tensors, a stride, absent tensors: what the table's launches do not have."""
    import torch

    from csc_kernels.triton import blocks, resources
    from csc_kernels.triton.cases import Case
    from csc_kernels.triton.fista import fista, fista_backward
    from csc_kernels.triton.launch import recorded
    from csc_kernels.triton.residual import residual, residual_backward

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    stem, strided = Case(2, 3, 32, 20), Case(2, 3, 33, 20, kernel=7, stride=2)
    with recorded() as launches, blocks.pretending(target):
        for case in (stem, strided):
            x, z, dictionary = case.tensors(torch.bfloat16, "meta", "contiguous")
            lmbda, mu = meta(1, 20, 1, 1, dtype=torch.float32), meta(*z.shape)
            options = (lmbda, mu, meta(dtype=torch.float64))
            how = (3, *case.geometry, False, "sdnet")
            fista(x, dictionary, *options, None, None, 2, *how[1:], False)
            z, codes, residuals = fista(x, dictionary, *options, None, None, *how, True)
            fista_backward(
                z, x, dictionary, *options, None, None, z, codes, residuals, *how, [True] * 5 + [False] * 2
            )
            for mask in (meta(*x.shape, dtype=torch.bool), meta(1, 1, *x.shape[2:])):
                residual(x, z, dictionary, *case.geometry, mask)
            residual_backward(x, x, z, dictionary, *case.geometry, None, [True] * 3 + [False])
    variants = {}
    for launch in launches:
        present = tuple(value is not None for value in launch.arguments.values())
        kinds = tuple(str(getattr(value, "dtype", "")) for value in launch.arguments.values())
        variants[launch.kernel, present, kinds, launch.arguments.get("STRIDE")] = launch
    assert len(variants) > 15
    for launch in variants.values():
        resources.compiled(launch, target)
