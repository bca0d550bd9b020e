"""What each kernel takes of a GPU, from compiling it ahead of time: no GPU is needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..resources import ARCHITECTURES, Resources
from .cases import CIFAR_STEM, WIDE, Case, launches
from .launch import Launch

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "sm120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
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
    return triton.compile(source(launch), target=TARGETS[architecture], options=options)


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
        occupancy=round(ARCHITECTURES[architecture].occupancy(registers, shared, row.warps), 3),
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


def rows(
    architectures: Sequence[str] = tuple(TARGETS), dtypes: Sequence[str] = tuple(DTYPES)
) -> Iterator[Resources]:
    """Every kernel with every row of the table of block sizes, in every dtype, for every architecture."""
    for architecture in architectures:
        for dtype in dtypes:
            for case in (CIFAR_STEM, WIDE):
                for layout in layouts(case, dtype):
                    for launch in launches(case, DTYPES[dtype][0], layout, architecture):
                        yield measure(launch, dtype, layout, architecture)
