"""What each kernel of the compiled library takes of a GPU, read from the library: no GPU is needed.

One row for each kernel, kind of product, entry of the plan and architecture. cuobjdump is taken from PATH, from
CUDA_HOME, or from the triton package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from ..geometry import code_size
from ..native.library import unavailable as library_unavailable
from ..resources import ARCHITECTURES, WITHOUT_PRODUCTS, Architecture, Resources
from .plan import direct_plan

PRODUCTS = {
    "Fma": ("float32", 4),
    "WmmaTf32": ("tf32", 4),
    "__half": ("float16", 2),
    "__nv_bfloat16": ("bfloat16", 2),
}
# Patterns of the kernels' symbols. A direct convolution has a form for 64 results of a block and one for 16.
KERNELS = {
    "synthesis_kernel.*Li4E": "residual",
    "synthesis_kernel.*Li1E": "residual, few channels",
    "analysis_kernel.*Li4E": "fista_step",
    "analysis_kernel.*Li1E": "fista_step, few atoms",
    "correlation_kernel": "correlation",
    "sums_kernel": "sums",
    "residual_tail_kernel": "residual_tail",
    "step_tail_kernel": "step_tail",
    "fista_kernel": "fista",
    "fista_backward_kernel": "fista_backward",
}
WARPS = {op: 4 if op in ("correlation", "sums") else 8 for op in KERNELS.values()}


class Stem(NamedTuple):
    """A solve on chip whose plan has rows in the table: x (N, M, H, W), atoms, kernel, stride, padding, steps."""

    x: tuple[int, int, int, int]
    atoms: int
    kernel: int
    stride: int
    padding: int
    n_iter: int

    @property
    def codes(self) -> tuple[int, int]:
        """H' and W'."""
        return code_size(self.x[2:], (self.kernel,) * 2, (self.stride,) * 2, (self.padding,) * 4)

    @property
    def z(self) -> tuple[int, int, int, int]:
        """The shape of the code."""
        return (self.x[0], self.atoms, *self.codes)


STEMS = {
    "CIFAR stem": Stem((64, 3, 32, 32), 64, 3, 1, 1, 2),
    "grey stem": Stem((64, 1, 28, 28), 64, 3, 1, 1, 2),
    "ImageNet stem": Stem((32, 3, 224, 224), 64, 7, 2, 3, 2),
}
# And layers whose direct convolutions have.
LAYERS = STEMS | {
    "wide": Stem((64, 64, 32, 32), 64, 3, 1, 1, 2),
    "wide, 16 atoms": Stem((64, 64, 32, 32), 16, 3, 1, 1, 2),
}


def library() -> Path | None:
    """The compiled library."""
    built = sorted(Path(__file__).parent.parent.glob("_native*.so"))
    return built[0] if built else None


def unreadable() -> str | None:
    """Why the table cannot be made here."""
    reason = library_unavailable()
    if reason is not None:
        return reason
    if not torch.ops.csc_cuda.built():
        return "the library was built without the CUDA kernels"
    return None if cuobjdump() else "there is no cuobjdump"


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
        found = re.search(rf"\d{kernel}", mangled)
        if found is not None:
            symbol = mangled[found.start() :]
            return op, next((p for p in PRODUCTS if f"{len(p)}{p}" in symbol), "Fma")
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
            target = line.removeprefix("arch = ").strip().replace("sm_", "sm")
        elif line.startswith(" Function "):
            name = _name_of(line)
        elif name is not None and "REG:" in line:
            usage = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            found[name[0], name[1], target] = usage["REG"], usage["STACK"] + usage["LOCAL"]
            name = None
    return found


def tensor_core_instructions(architectures: Sequence[str]) -> dict[tuple[str, str, str], int]:
    """(op, product, architecture) -> matrix instructions in the compiled code."""
    found: dict[tuple[str, str, str], int] = {}
    for target in architectures:
        command = [str(cuobjdump()), "-sass", "-arch", target.replace("sm", "sm_"), str(library())]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
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


def plan_of(stem: Stem, backward: bool, element: int, architecture: Architecture) -> list[int]:
    """Rows and columns of the tile, blocks, bytes of shared memory; empty where no tile fits."""
    limits = (architecture.block_bytes, architecture.processors)
    library_unavailable()  # Loads the library.
    return torch.ops.csc_cuda.plan(list(_sizes(stem)), stem.n_iter, False, False, backward, element, *limits)


def direct_plan_of(layer: Stem, synthesis: bool, dtype: str) -> tuple[int, ...]:
    """The tile of a layer's synthesis or analysis, see plan.direct_plan."""
    element = next(size for name, size in PRODUCTS.values() if name == dtype)
    library_unavailable()  # Loads the library.
    return direct_plan(_sizes(layer), synthesis, element, dtype != "float32")


def _sizes(layer: Stem) -> tuple[int, ...]:
    square = (layer.kernel, layer.kernel, layer.stride, layer.stride, layer.padding, layer.padding)
    return (*layer.x, layer.atoms, *layer.codes, *square)


def shared_bytes_of(op: str, dtype: str, architecture: Architecture) -> Iterator[tuple[str, int]]:
    """Every entry of an op, with the bytes of shared memory that its launch asks for."""
    element = next(size for name, size in PRODUCTS.values() if name == dtype)
    if op in ("fista", "fista_backward"):
        for entry, stem in STEMS.items():
            plan = plan_of(stem, op == "fista_backward", element, architecture)
            if plan:
                yield entry, plan[3]
    elif op in WITHOUT_PRODUCTS:
        yield "any", 0
    elif op == "correlation":
        yield "any", torch.ops.csc_cuda.product_bytes(element)
    else:
        synthesis = op.startswith("residual")
        for entry, layer in LAYERS.items():
            channels = layer.x[1] if layer.kernel % layer.stride == 0 else -(-layer.x[1] // 16) * 16
            results = channels * layer.stride**2 if synthesis else layer.atoms
            if (results <= 16) == ("few" in op):
                yield entry, direct_plan_of(layer, synthesis, dtype)[5]


def rows(architectures: Sequence[str] = tuple(ARCHITECTURES)) -> Iterator[Resources]:
    """The table, for architectures that the library holds code for.

    Raises:
        RuntimeError: it cannot be read.
    """
    reason = unreadable()
    if reason is not None:
        raise RuntimeError(reason)
    usage = {key: value for key, value in registers_and_spills().items() if key[2] in architectures}
    instructions = tensor_core_instructions(sorted({name for _, _, name in usage}))
    for (op, product, name), (registers, spills) in sorted(usage.items()):
        dtype, _ = PRODUCTS[product]
        for entry, shared in shared_bytes_of(op, dtype, ARCHITECTURES[name]):
            occupancy = ARCHITECTURES[name].occupancy(registers, shared, WARPS[op])
            yield Resources(
                "cuda", op, dtype, entry, name, registers, spills, shared, round(occupancy, 3),
                instructions[op, product, name],
            )  # fmt: skip
