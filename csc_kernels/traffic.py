"""Predicted times of two-step solves on known GPUs: docs/traffic.csv of a checkout. Nothing in it was measured.

triton/traffic.py and cuda/traffic.py count the bytes and operations of their kernels by formula, and the tests
count them again while the kernels are executed. `python -m csc_kernels.traffic` writes the table.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import reference

FILE = Path(__file__).resolve().parent.parent / "docs" / "traffic.csv"


class GPU(NamedTuple):
    """Its architecture, bytes/s of its memory, and dense operations/s of its tensor cores by dtype."""

    architecture: str
    bandwidth: float
    peaks: dict[str, float]


# Vendors' data sheets.
GPUS = {
    "A100 80GB": GPU("sm80", 2.039e12, {"bfloat16": 312e12, "tf32": 156e12}),
    "H100 SXM": GPU("sm90", 3.35e12, {"bfloat16": 989e12, "tf32": 495e12}),
    "B200": GPU("sm100", 8.0e12, {"bfloat16": 2250e12, "tf32": 1125e12}),
    "RTX 5090": GPU("sm120", 1.792e12, {"bfloat16": 209.5e12, "tf32": 104.8e12}),
}
DTYPES = {"bfloat16": torch.bfloat16, "tf32": torch.float32}


class Solve(NamedTuple):
    """Two steps from zero: its tensors on the device "meta", and its geometry."""

    x: Tensor
    z: Tensor
    dictionary: Tensor
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Row:
    """One solve on one GPU; times are predicted. The floor is one read of x and one write of the code."""

    kind: str
    case: str
    dtype: str
    gpu: str
    kernels: int
    megabytes: float
    floor_megabytes: float
    gigaflop: float
    predicted_us: float
    floor_us: float
    compiled_megabytes: float
    compiled_predicted_us: float
    eager_megabytes: float
    eager_predicted_us: float


def row(kind: str, case: str, dtype: str, gpu: str, solve: Solve, launches: Sequence[tuple[int, int]]) -> Row:
    """From the bytes and operations of each launch: its time is the larger of what the two take."""
    bandwidth, peak = GPUS[gpu].bandwidth, GPUS[gpu].peaks[dtype]
    seconds = sum(max(moved / bandwidth, operations / peak) for moved, operations in launches)
    moved, operations = map(sum, zip(*launches))
    floor = solve.x.nbytes + solve.z.nbytes
    compiled, eager = compiled_bytes(solve), eager_bytes(solve)

    def megabytes(count: int) -> float:
        return round(count / 1e6, 2)

    def microseconds(count: int) -> float:
        return round(1e6 * count / bandwidth, 1)

    return Row(
        kind, case, dtype, gpu, len(launches), megabytes(moved), megabytes(floor), round(operations / 1e9, 2),
        round(1e6 * seconds, 1), microseconds(floor), megabytes(compiled), microseconds(compiled),
        megabytes(eager), microseconds(eager),
    )  # fmt: skip


class _Moved(TorchDispatchMode):
    """Adds up the bytes of every argument and result of the operations of PyTorch, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.bytes += sum(t.nbytes for t in (*args, result) if isinstance(t, Tensor))
        return result


def eager_bytes(solve: Solve) -> int:
    """What the definition moves in PyTorch, one operation after the other."""
    number = torch.zeros((), dtype=torch.float64)
    with _Moved() as moved:
        reference.fista(
            solve.x,
            solve.dictionary,
            number,
            number,
            number,
            None,
            None,
            2,
            solve.stride,
            solve.pads,
            True,
            "fista",
        )
    return moved.bytes


def compiled_bytes(solve: Solve) -> int:
    """What moves where all but the convolutions is fused: 8 codes and 6 images.

    conv writes v, the threshold reads it and writes z; the synthesis reads z and writes an image, which with x
    gives r; conv reads r and writes v, and the threshold reads v and z and writes the code.
    """
    return 8 * solve.z.nbytes + 6 * solve.x.nbytes + 3 * solve.dictionary.nbytes


def table() -> Iterator[Row]:
    """Every row, Triton's first. Needs triton and the compiled library."""
    from .cuda import traffic as cuda
    from .triton import traffic as triton

    yield from triton.predictions()
    yield from cuda.predictions()


def write(file: Path = FILE) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, table()))


if __name__ == "__main__":
    write()
