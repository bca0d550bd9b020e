"""What each GPU kernel takes of each architecture: docs/resources.csv of a checkout.

triton/resources.py compiles its kernels ahead of time, cuda/resources.py reads the compiled library: neither needs
a GPU.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).resolve().parent.parent / "docs" / "resources.csv"


class Architecture(NamedTuple):
    """Bytes of shared memory of a block and of a multiprocessor, its warps, and a device's multiprocessors."""

    block_bytes: int
    processor_bytes: int
    warps: int
    processors: int

    def occupancy(self, registers: int, shared_bytes: int, warps: int) -> float:
        """The share of its warps that a multiprocessor can hold, of blocks of so many warps.

        Registers go to a warp in units of 8 a thread; a warp's threads can have 2048 of them together, whatever
        the architecture. What a block may not have of a multiprocessor's shared memory is taken for each block.
        """
        by_registers = 2048 // (-(-max(registers, 1) // 8) * 8) // warps
        taken = shared_bytes + self.processor_bytes - self.block_bytes
        by_shared = self.processor_bytes // taken if taken else by_registers
        return min(by_registers, by_shared, self.warps // warps) * warps / self.warps


# A100, H100, B200, RTX 5090: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". MI300X:
# CDNA 3 ISA guide, 4 SIMDs of 512 registers and 8 waves, 64 KiB of local memory.
ARCHITECTURES = {
    "sm80": Architecture(163 * 1024, 164 * 1024, 64, 108),
    "sm90": Architecture(227 * 1024, 228 * 1024, 64, 132),
    "sm100": Architecture(227 * 1024, 228 * 1024, 64, 148),
    "sm120": Architecture(99 * 1024, 100 * 1024, 48, 170),
    "gfx942": Architecture(64 * 1024, 64 * 1024, 32, 304),
}
# Kernels that multiply no matrices.
WITHOUT_PRODUCTS = ("threshold_gradient_kernel", "sums", "residual_tail", "step_tail")


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture. registers are a thread's, shared_bytes and spill_bytes a block's.

    `kind` is the backend, `entry` the row of its table of block sizes or the case whose plan sets shared_bytes.
    """

    kind: str
    kernel: str
    dtype: str
    entry: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float
    tensor_core_instructions: int


def read(file: Path = FILE) -> list[Resources]:
    """The committed rows.

    Raises:
        FileNotFoundError: there is no table, as in an installed wheel.
    """
    if not file.exists():
        raise FileNotFoundError(f"no table {file}: it is part of the source, not of an installed package")
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Resources)}
    with file.open(newline="") as table:
        values: list[dict[str, Any]] = [{n: kinds[n](v) for n, v in row.items()} for row in csv.DictReader(table)]
    return [Resources(**value) for value in values]


def write(file: Path, rows: Sequence[Resources]) -> None:
    """Replace the rows of the kinds that `rows` has; those of others stay."""
    kinds = {row.kind for row in rows}
    kept = [row for row in read(file) if row.kind not in kinds] if file.exists() else []
    with file.open("w", newline="") as table:
        writer = csv.DictWriter(table, [field.name for field in fields(Resources)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, sorted([*kept, *rows], key=lambda row: row.kind)))


def lines(file: Path = FILE) -> Iterator[str]:
    """The table for people, its columns aligned."""
    names = [field.name for field in fields(Resources)]
    rows = [names, *(list(map(str, asdict(row).values())) for row in read(file))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip()


def problems(row: Resources) -> list[str]:
    """What is wrong with a row: it must not spill, must fit, and must use the tensor cores where it multiplies."""
    architecture = ARCHITECTURES[row.target]
    found = []
    if row.spill_bytes:
        found.append(f"spills {row.spill_bytes} bytes")
    if row.shared_bytes > architecture.block_bytes:
        found.append(f"takes {row.shared_bytes} bytes of shared memory")
    if not row.occupancy:
        found.append("cannot be resident")
    if not row.tensor_core_instructions and row.kernel not in WITHOUT_PRODUCTS and row.dtype != "float32":
        found.append("has no tensor core instructions")
    return found


def regenerate(file: Path = FILE) -> list[str]:
    """Measure the kernels again, which takes minutes, and replace their rows.

    Returns:
        What is wrong with them, and which kinds cannot be measured here and are as they were; one line each.
    """
    from .cuda import resources as cuda

    found = []
    if find_spec("triton") is None:
        found.append("triton is not installed: its rows are as they were")
    else:
        from .triton import resources as triton

        write(file, list(triton.rows()))
    reason = cuda.unreadable()
    if reason is not None:
        found.append(f"{reason}: the rows of cuda are as they were")
    else:
        write(file, list(cuda.rows()))
    for row in read(file):
        found += [f"{row.kernel} {row.dtype} {row.entry} {row.target}: {problem}" for problem in problems(row)]
    return found
