"""What each kernel takes of a GPU, from compiling it ahead of time: no GPU is needed.

`csc-kernels resources --write` writes the table of every row of the table of block sizes.
"""

from __future__ import annotations

import csv
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .cases import CIFAR_STEM, WIDE, Case, launches
from .launch import Launch


@dataclass(frozen=True)
class Target:
    """An architecture: how triton calls it, and what one multiprocessor (compute unit) has."""

    target: GPUTarget
    shared_per_block: int  # bytes
    shared: int  # bytes
    reserved: int  # bytes of shared memory that the system takes for each block
    warps: int
    registers: int  # per thread of one warp, times the warps that can have as many: in units of warps x registers

    def occupancy(self, registers: int, shared_bytes: int, warps: int) -> float:
        """The share of its warps that can be resident at once."""
        rounded = -(-max(registers, 1) // 8) * 8
        by_registers = self.registers // rounded // warps
        by_shared = self.shared // (shared_bytes + self.reserved) if shared_bytes + self.reserved else by_registers
        blocks = min(by_registers, by_shared, self.warps // warps)
        return blocks * warps / self.warps


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; for AMD the CDNA 3 ISA guide:
# 4 SIMDs of 512 registers and 8 waves each, 64 KiB of local memory.
_KIB = 1024
TARGETS = {
    "sm80": Target(GPUTarget("cuda", 80, 32), 163 * _KIB, 164 * _KIB, _KIB, 64, 2048),
    "sm90": Target(GPUTarget("cuda", 90, 32), 227 * _KIB, 228 * _KIB, _KIB, 64, 2048),
    "sm100": Target(GPUTarget("cuda", 100, 32), 227 * _KIB, 228 * _KIB, _KIB, 64, 2048),
    "sm120": Target(GPUTarget("cuda", 120, 32), 99 * _KIB, 100 * _KIB, _KIB, 48, 2048),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * _KIB, 64 * _KIB, 0, 32, 2048),
}
# name: the dtype of the tensors and how float32 is multiplied.
DTYPES = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float16": (torch.float16, "ieee"),
    "bfloat16": (torch.bfloat16, "ieee"),
}
TRITON_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bool: "i1",
}
TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|v_mfma_\w+)")


@dataclass(frozen=True)
class Resources:
    """One kernel for one architecture. registers are a thread's, shared_bytes and spill_bytes a block's."""

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


def source(launch: Launch) -> ASTSource:
    """The kernel specialised as triton's launcher would: None and 1 are constants, multiples of 16 are known."""
    kernel = launch.kernel
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}

    def kind(path: tuple[int, ...], value: Any, fixed: bool) -> Any:
        if isinstance(value, Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return f"*{TRITON_NAMES[value.dtype]}"
        if isinstance(value, tuple) and not fixed:
            return tuple(kind((*path, i), element, False) for i, element in enumerate(value))
        if fixed or value is None or (isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if value < 2**31 else "i64"

    fixed = {kernel.arg_names[i] for i in kernel.constexprs}
    signature = {name: kind((i,), launch.arguments[name], name in fixed) for i, name in enumerate(kernel.arg_names)}
    return ASTSource(kernel, signature, constants, attributes)


def compiled(launch: Launch, architecture: str) -> Any:
    options = {"num_warps": launch.blocks.warps, "num_stages": launch.blocks.stages}
    return triton.compile(source(launch), target=TARGETS[architecture].target, options=options)


def measure(launch: Launch, dtype: str, layout: str, architecture: str) -> Resources:
    """Compile a launch for an architecture and read its resources from the machine code."""
    launch.arguments["PRECISION"] = DTYPES[dtype][1]
    binary = compiled(launch, architecture)
    read = _read_cubin if "cubin" in binary.asm else _read_amdgcn
    registers, spill_bytes, instructions = read(binary)
    shared, row = binary.metadata.shared, launch.blocks
    return Resources(
        kind="triton",
        kernel=launch.kernel.fn.__name__,
        dtype=dtype,
        entry=f"{row.shape} {layout} {row.pixels}/{row.atoms}/{row.channels}/{row.taps} {row.warps}w{row.stages}s",
        target=architecture,
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=shared,
        occupancy=round(TARGETS[architecture].occupancy(registers, shared, row.warps), 2),
        tensor_core_instructions=instructions,
    )


def _read_cubin(binary: Any) -> tuple[int, int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path

        def ask(*options: str) -> str:
            return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout

        usage, sass = ask("--dump-resource-usage"), ask("-sass")
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return found["REG"], found["STACK"] + found["LOCAL"], len(TENSOR_CORES.findall(sass))


def _read_amdgcn(binary: Any) -> tuple[int, int, int]:
    text = binary.asm["amdgcn"]
    found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", text)}
    # Spilled scalar registers go to lanes of vector registers and cost no memory.
    return found["vgpr_count"], found["private_segment_fixed_size"], len(TENSOR_CORES.findall(text))


def layouts(case: Case, dtype: str) -> tuple[str, ...]:
    """Stems as images come; wide layers in both layouts, but those of two dtypes only: the others differ little."""
    if case.shape == "wide" and dtype in ("bfloat16", "tf32"):
        return "contiguous", "channels_last"
    return ("contiguous",)


def table(
    architectures: Sequence[str] = tuple(TARGETS), dtypes: Sequence[str] = tuple(DTYPES)
) -> Iterator[Resources]:
    """Every kernel with every row of the table of block sizes, in every dtype, for every architecture."""
    for architecture in architectures:
        for dtype in dtypes:
            for case in (CIFAR_STEM, WIDE):
                for layout in layouts(case, dtype):
                    for launch in launches(case, DTYPES[dtype][0], layout, architecture):
                        yield measure(launch, dtype, layout, architecture)


def problems(row: Resources) -> list[str]:
    """What is wrong with a row: it must not spill, must fit, and must use the tensor cores where it multiplies."""
    found = []
    if row.spill_bytes:
        found.append(f"spills {row.spill_bytes} bytes")
    if row.shared_bytes > TARGETS[row.target].shared_per_block:
        found.append(f"takes {row.shared_bytes} bytes of shared memory")
    if not row.tensor_core_instructions and row.kernel != "threshold_gradient_kernel" and row.dtype != "float32":
        found.append("has no tensor core instructions")
    return found


def write(file: Path, rows: Sequence[Resources]) -> None:
    """Replace the rows of kind "triton" in a table; those of other kinds stay."""
    names = [field.name for field in fields(Resources)]
    kept: list[dict[str, Any]] = []
    if file.exists():
        with file.open(newline="") as lines:
            kept = [row for row in csv.DictReader(lines) if row["kind"] != "triton"]
    with file.open("w", newline="") as lines:
        table = csv.DictWriter(lines, names, lineterminator="\n")
        table.writeheader()
        table.writerows([asdict(row) for row in rows] + kept)
