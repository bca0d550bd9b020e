"""What each kernel of the compiled library takes of a GPU, read from the library: no GPU is needed.

`python -m csc_kernels.cuda.resources FILE` writes the table, one row for each kernel, kind of product, entry of the
plan and architecture. cuobjdump is taken from PATH, from CUDA_HOME, or from the triton package.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from ..geometry import code_size


class Target(NamedTuple):
    """An architecture: bytes of shared memory of a block and of a processor, its warps, a device's processors."""

    block_bytes: int
    processor_bytes: int
    warps: int
    processors: int


# Compute capabilities 8.0 (A100), 9.0 (H100), 10.0 (B200), 12.0 (RTX 5090): CUDA C++ Programming Guide, table
# "Technical Specifications per Compute Capability".
TARGETS = {
    "sm_80": Target(163 * 1024, 164 * 1024, 64, 108),
    "sm_90": Target(227 * 1024, 228 * 1024, 64, 132),
    "sm_100": Target(227 * 1024, 228 * 1024, 64, 148),
    "sm_120": Target(99 * 1024, 100 * 1024, 48, 170),
}
REGISTERS = 65536
PRODUCTS = {
    "Fma": ("float32", 4),
    "WmmaTf32": ("tf32", 4),
    "__half": ("float16", 2),
    "__nv_bfloat16": ("bfloat16", 2),
}
KERNELS = {
    "synthesis_kernel": "residual",
    "analysis_kernel": "fista_step",
    "correlation_kernel": "correlation",
    "sums_kernel": "sums",
    "fista_kernel": "fista",
    "fista_backward_kernel": "fista_backward",
}
STEM_WARPS, OTHER_WARPS = 8, 4


class Stem(NamedTuple):
    """A solve on chip whose plan has rows in the table: x (N, M, H, W), atoms, kernel, stride, padding, steps."""

    x: tuple[int, int, int, int]
    atoms: int
    kernel: int
    stride: int
    padding: int
    n_iter: int


STEMS = {
    "3->64 32x32 k3, 2 steps": Stem((64, 3, 32, 32), 64, 3, 1, 1, 2),
    "1->64 28x28 k3, 2 steps": Stem((64, 1, 28, 28), 64, 3, 1, 1, 2),
    "3->64 224x224 k7 s2, 2 steps": Stem((8, 3, 224, 224), 64, 7, 2, 3, 2),
}


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture; `entry` is the case whose plan sets the bytes of shared memory."""

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


def library() -> Path | None:
    """The compiled library."""
    built = sorted(Path(__file__).parent.parent.glob("_native*.so"))
    return built[0] if built else None


@cache
def cuobjdump() -> str | None:
    """NVIDIA's reader of compiled kernels."""
    folders = [os.environ.get("PATH", "")]
    if "CUDA_HOME" in os.environ:
        folders.append(str(Path(os.environ["CUDA_HOME"]) / "bin"))
    triton = find_spec("triton")
    if triton is not None and triton.submodule_search_locations:
        folders.append(str(Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


def _name_of(mangled: str) -> tuple[str, str] | None:
    """The op and the key of PRODUCTS of a kernel's symbol."""
    for kernel, op in KERNELS.items():
        if re.search(rf"\d{kernel}", mangled):
            product = next((p for p in PRODUCTS if f"{len(p)}{p}" in mangled.split(kernel, 1)[1]), "Fma")
            return op, product
    return None


def registers_and_spills() -> dict[tuple[str, str, str], tuple[int, int]]:
    """(op, product, architecture) -> registers of a thread, and bytes of its stack."""
    report = subprocess.run(
        [str(cuobjdump()), "--dump-resource-usage", str(library())], capture_output=True, text=True, check=True
    ).stdout
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    target, name = "", None
    for line in report.splitlines():
        if line.startswith("arch = "):
            target = line.removeprefix("arch = ").strip()
        elif line.startswith(" Function "):
            name = _name_of(line)
        elif name is not None and "REG:" in line:
            usage = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            found[name[0], name[1], target] = usage["REG"], usage["STACK"] + usage["LOCAL"]
            name = None
    return found


def tensor_core_instructions(targets: Sequence[str]) -> dict[tuple[str, str, str], int]:
    """(op, product, architecture) -> matrix instructions in the compiled code."""
    found: dict[tuple[str, str, str], int] = {}
    for target in targets:
        code = subprocess.run(
            [str(cuobjdump()), "-sass", "-arch", target, str(library())], capture_output=True, text=True, check=True
        ).stdout
        key = None
        for line in code.splitlines():
            if "Function :" in line:
                name = _name_of(line)
                key = None if name is None else (*name, target)
                if key is not None:
                    found[key] = 0
            elif key is not None and re.search(r"\b(HMMA|HGMMA|UTC\w*MMA)\b", line):
                found[key] += 1
    return found


def plan_of(stem: Stem, backward: bool, element: int, target: Target) -> list[int]:
    """Rows and columns of the tile, blocks, bytes of shared memory; empty where no tile fits."""
    size = code_size(stem.x[2:], (stem.kernel,) * 2, (stem.stride,) * 2, (stem.padding,) * 4)
    square = (stem.kernel, stem.kernel, stem.stride, stem.stride, stem.padding, stem.padding)
    shape = [*stem.x, stem.atoms, *size, *square]
    limits = (target.block_bytes, target.processors)
    return torch.ops.csc_cuda.plan(shape, stem.n_iter, False, False, backward, element, *limits)


def shared_bytes_of(op: str, element: int, target: Target) -> Iterator[tuple[str, int]]:
    """Every entry of an op, with the bytes of shared memory that its launch asks for."""
    if op in ("fista", "fista_backward"):
        for entry, stem in STEMS.items():
            plan = plan_of(stem, op == "fista_backward", element, target)
            if plan:
                yield entry, plan[3]
    elif op == "sums":
        yield "any", 0
    else:
        yield "any", torch.ops.csc_cuda.product_bytes(element)


def occupancy(registers: int, shared_bytes: int, warps: int, target: Target) -> float:
    """The share of its warps that a multiprocessor can hold; registers go to warps in units of 256."""
    of_warp = -(-32 * registers // 256) * 256
    reserved = target.processor_bytes - target.block_bytes
    blocks = min(
        target.warps // warps, REGISTERS // of_warp // warps, target.processor_bytes // (shared_bytes + reserved)
    )
    return blocks * warps / target.warps


def rows(targets: Sequence[str] = tuple(TARGETS)) -> Iterator[Row]:
    """The table, for architectures that the library holds code for."""
    usage, instructions = registers_and_spills(), tensor_core_instructions(targets)
    for (op, product, target), (registers, spills) in sorted(usage.items()):
        if target not in targets:
            continue
        dtype, element = PRODUCTS[product]
        limits = TARGETS[target]
        warps = STEM_WARPS if op.startswith("fista") and op != "fista_step" else OTHER_WARPS
        for entry, shared in shared_bytes_of(op, element, limits):
            yield Row(
                "cuda", op, dtype, entry, target, registers, spills, shared,
                round(occupancy(registers, shared, warps, limits), 3), instructions[op, product, target],
            )  # fmt: skip


def main(path: str) -> None:
    from .library import unavailable

    unavailable()  # Loads the library.
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows()))


if __name__ == "__main__":
    main(sys.argv[1])
