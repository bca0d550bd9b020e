"""Bytes and products of a solve on chip by formula.

Loads are counted where a block makes them: the halo of x for each tile that has it, the dictionary twice for each
block. tests/test_cuda_traffic.py counts the same loads, stores and multiplications while the kernel is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..geometry import code_size
from ..resources import ARCHITECTURES
from ..traffic import DTYPES, GPUS, Row, Solve, row
from .resources import STEMS, Stem, plan_of


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


def predictions() -> Iterator[Row]:
    """The rows of the table of predicted times."""
    for case, stem in STEMS.items():
        size = code_size(stem.x[2:], (stem.kernel,) * 2, (stem.stride,) * 2, (stem.padding,) * 4)
        for dtype, kind in DTYPES.items():
            x, z, dictionary = (
                torch.empty(shape, dtype=kind, device="meta")
                for shape in (stem.x, (stem.x[0], stem.atoms, *size), (stem.atoms, stem.x[1], *(stem.kernel,) * 2))
            )
            pad, stride = stem.padding, stem.stride
            solve = Solve(x, z, dictionary, (stride, stride), (pad, pad, pad, pad))
            for gpu, facts in GPUS.items():
                plan = plan_of(stem, False, kind.itemsize, ARCHITECTURES[facts.architecture])
                if plan:
                    counts = forward(stem, plan, kind.itemsize)
                    yield row("cuda", case, dtype, gpu, solve, [(counts.moved, 2 * counts.products)])
