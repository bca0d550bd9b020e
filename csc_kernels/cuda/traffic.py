"""Bytes and products of a solve on chip by formula, and the times that they allow on known GPUs.

Loads are counted where a block makes them: the halo of x for each tile that has it, the dictionary twice for each
block. tests/test_cuda_traffic.py counts the same loads, stores and multiplications while the kernel is executed.

`python -m csc_kernels.cuda.traffic FILE` writes the table of predicted times. Nothing in it was measured.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from ..geometry import code_size
from .resources import STEMS, TARGETS, Stem, plan_of


class Span(NamedTuple):
    """Indices begin .. end - 1."""

    begin: int
    end: int

    def around(self, more: int, size: int) -> Span:
        return Span(max(self.begin - more, 0), min(self.end + more, size))

    def has(self, index: int) -> bool:
        return self.begin <= index < self.end

    @property
    def length(self) -> int:
        return self.end - self.begin


@dataclass
class Counts:
    """Bytes loaded of x and the dictionary, bytes stored of z, and multiplications of the matrix products."""

    x: int = 0
    dictionary: int = 0
    z: int = 0
    products: int = 0

    @property
    def moved(self) -> int:
        return self.x + self.dictionary + self.z


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Axis(NamedTuple):
    """Rows or columns of a problem: pixels, codes, kernel, stride, the padding before, the tile."""

    size: int
    codes: int
    kernel: int
    stride: int
    pad: int
    tile: int

    @property
    def reach(self) -> int:
        return (self.kernel - 1) // self.stride

    def tiles(self) -> Iterator[Span]:
        for begin in range(0, self.codes, self.tile):
            yield Span(begin, min(begin + self.tile, self.codes))

    def held(self, halo: int) -> int:
        """Codes of the region that shared memory has room for."""
        return min(self.codes, self.tile + 2 * halo * self.reach)

    def window(self, codes: Span) -> Span:
        """The pixels, padding included, that codes see."""
        begin = codes.begin * self.stride - self.pad
        return Span(begin, (codes.end - 1) * self.stride - self.pad + self.kernel)


def forward(stem: Stem, plan: list[int], element: int) -> Counts:
    """A solve from zero, with lmbda, mu and the step size in host memory."""
    batch, channels, *size = stem.x
    codes = code_size(size, (stem.kernel,) * 2, (stem.stride,) * 2, (stem.padding,) * 4)
    rows, columns = (
        Axis(s, c, stem.kernel, stem.stride, stem.padding, t) for s, c, t in zip(size, codes, plan[:2])
    )
    halo = stem.n_iter - 1
    atoms, taps = round_up(stem.atoms, 16), round_up(channels * stem.kernel**2, 16)
    row_taps = round_up(channels * stem.kernel, 16)
    image_rows = (rows.held(halo) - 1) * stem.stride + stem.kernel
    image_pitch = round_up((columns.held(halo) - 1) * stem.stride + stem.kernel + 7, 8)
    counts = Counts(z=batch * stem.atoms * codes[0] * codes[1] * element)
    counts.dictionary = plan[2] * 2 * stem.atoms * channels * stem.kernel**2 * element
    for r in rows.tiles():
        for c in columns.tiles():
            top, left = r.around(halo * rows.reach, rows.codes), c.around(halo * columns.reach, columns.codes)
            first = top.begin * stem.stride - stem.padding
            begin = (left.begin * stem.stride - stem.padding) // 8 * 8
            seen = Span(max(first, 0), min(first + image_rows, size[0]))
            across = Span(max(begin, 0), min(begin + image_pitch, size[1]))
            counts.x += batch * channels * seen.length * across.length * element
            for step in range(1, stem.n_iter + 1):
                more = stem.n_iter - step
                own = r.around(more * rows.reach, rows.codes), c.around(more * columns.reach, columns.codes)
                lines = _lines(own[1], left.begin)
                counts.products += batch * own[0].length * lines * 16 * atoms * taps
                if step > 1:
                    valid = r.around((more + 1) * rows.reach, rows.codes)
                    lines = _lines(c.around((more + 1) * columns.reach, columns.codes), left.begin)
                    meets = _meets(rows.window(own[0]), valid, rows)
                    counts.products += batch * meets * lines * 16 * row_taps * atoms
    return counts


def _lines(columns: Span, first: int) -> int:
    """Lines of 16 positions, counted from `first`, that hold the columns."""
    return -(-(columns.end - first) // 16) - (columns.begin - first) // 16


def _meets(pixels: Span, codes: Span, rows: Axis) -> int:
    """Pairs of a row of pixels and a tap that meet a row of codes."""
    places = (h + rows.pad - dy for h in range(*pixels) for dy in range(rows.kernel))
    return sum(p >= 0 and p % rows.stride == 0 and codes.has(p // rows.stride) for p in places)


# Vendors' data sheets: bytes/s of the memory, and dense operations/s of the tensor cores by dtype.
GPUS = {
    "A100 80GB": ("sm_80", 2.039e12, {"bfloat16": 312e12, "tf32": 156e12}),
    "H100 SXM": ("sm_90", 3.35e12, {"bfloat16": 989e12, "tf32": 495e12}),
    "B200": ("sm_100", 8.0e12, {"bfloat16": 2250e12, "tf32": 1125e12}),
    "RTX 5090": ("sm_120", 1.792e12, {"bfloat16": 209.5e12, "tf32": 104.8e12}),
}
# Codes read and written by two steps from zero, DESIGN's count: eager, and perfectly compiled. One is the floor.
EAGER, COMPILED = 22, 8


@dataclass(frozen=True)
class Row:
    """One solve on one GPU. Times are predicted: the larger of bytes over bandwidth and operations over peak."""

    kernel: str
    case: str
    dtype: str
    gpu: str
    tile: str
    bytes_moved: int
    floor_bytes: int
    share_of_floor: float
    operations: int
    predicted_us: float
    predicted_eager_us: float
    predicted_compiled_us: float


def rows() -> Iterator[Row]:
    for case, stem in STEMS.items():
        for gpu, (target, bandwidth, peaks) in GPUS.items():
            for dtype, peak in peaks.items():
                element = 2 if dtype == "bfloat16" else 4
                plan = plan_of(stem, False, element, TARGETS[target])
                if not plan:
                    continue
                counts = forward(stem, plan, element)
                batch, channels, height, width = stem.x
                floor = counts.z + batch * channels * height * width * element
                time = max(counts.moved / bandwidth, 2 * counts.products / peak)
                yield Row(
                    "cuda fista", case, dtype, gpu, f"{plan[0]}x{plan[1]}", counts.moved, floor,
                    round(counts.moved / floor, 4), 2 * counts.products, round(1e6 * time, 2),
                    round(1e6 * EAGER * counts.z / bandwidth, 2), round(1e6 * COMPILED * counts.z / bandwidth, 2),
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
