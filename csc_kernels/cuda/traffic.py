"""Bytes and products of a solve on chip, and of its backward, by formula; step_traffic.py has the other passes.

Loads are counted where a block makes them: the dictionary once, and of x around each tile what the tile before it,
its neighbour in a row, did not have. tests/test_cuda_traffic.py counts the same loads, stores and multiplications
while the kernel is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..resources import ARCHITECTURES
from ..traffic import DTYPES, GPUS, Row, row
from ..traffic import Solve as Tensors
from .plan import CHANNELS
from .resources import LAYERS, STEMS, Stem, plan_of
from .step_traffic import analysis, synthesis


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
    """Bytes loaded of x, the dictionary, z and dL/dz, bytes stored, and multiplications of the matrix products.

    `stored` is z of a forward, and of a backward dL/dx and the partial sums.
    """

    x: int = 0
    dictionary: int = 0
    z: int = 0
    grad: int = 0
    stored: int = 0
    products: int = 0

    @property
    def moved(self) -> int:
        return self.x + self.dictionary + self.z + self.grad + self.stored


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


class Solve:
    """A solve from zero by a plan, cut into tiles, lmbda, mu and the step size in host memory."""

    def __init__(self, stem: Stem, plan: list[int], element: int, halo: int) -> None:
        self.stem, self.element, self.halo = stem, element, halo
        self.batch, self.channels, *self.size = stem.x
        self.codes = stem.codes
        self.rows, self.columns = (
            Axis(s, c, stem.kernel, stem.stride, stem.padding, t)
            for s, c, t in zip(self.size, self.codes, plan[:2])
        )
        self.atoms = round_up(stem.atoms, 16)
        self.taps = round_up(self.channels * stem.kernel**2, 16)
        self.row_taps = round_up(self.channels * stem.kernel, 16)
        self.gradient = stem.atoms * self.channels * stem.kernel**2  # Numbers of a dictionary.

    def tiles(self) -> list[Tile]:
        """Of one sample."""
        return [Tile(self, rows, columns) for rows in self.rows.tiles() for columns in self.columns.tiles()]

    def pixels(self, blocks: int) -> int:
        """Loaded of x by all blocks, each of which takes one range of all samples' tiles."""
        tiles = self.tiles()
        count = self.batch * len(tiles)
        first = {count * block // blocks for block in range(blocks)}
        return sum(
            tiles[i % len(tiles)].pixels(None if i in first or i % len(tiles) == 0 else tiles[i % len(tiles) - 1])
            for i in range(count)
        )


class Tile(NamedTuple):
    """The positions that a tile owns, and what a block loads and multiplies for it."""

    solve: Solve
    rows: Span
    columns: Span

    def around(self, steps: int) -> tuple[Span, Span]:
        s = self.solve
        return (
            self.rows.around(steps * s.rows.reach, s.rows.codes),
            self.columns.around(steps * s.columns.reach, s.columns.codes),
        )

    def held(self) -> tuple[int, Span]:
        """The first row of pixels in shared memory, and the columns: whole lines of 8."""
        s, stem = self.solve, self.solve.stem
        rows, columns = self.around(s.halo)
        pitch = round_up((s.columns.held(s.halo) - 1) * stem.stride + stem.kernel + 7, 8)
        begin = (columns.begin * stem.stride - stem.padding) // 8 * 8
        return rows.begin * stem.stride - stem.padding, Span(begin, begin + pitch)

    def pixels(self, before: Tile | None) -> int:
        """Loaded of x, after the tile that a block took before."""
        s, stem = self.solve, self.solve.stem
        first, (begin, end) = self.held()
        height = (s.rows.held(s.halo) - 1) * stem.stride + stem.kernel
        if before is not None and before.held()[0] == first and before.held()[1].begin <= begin:
            begin = max(begin, before.held()[1].end)
        seen = Span(max(first, 0), min(first + height, s.size[0]))
        across = Span(max(begin, 0), max(min(end, s.size[1]), max(begin, 0)))
        return s.channels * seen.length * across.length

    def positions(self, steps: int) -> int:
        rows, columns = self.around(steps)
        return rows.length * columns.length

    def _lines(self, columns: Span) -> int:
        return _lines(columns, self.around(self.solve.halo)[1].begin)

    def analysis(self, steps: int) -> int:
        """Multiplications for the codes so many steps around the tile."""
        rows, columns = self.around(steps)
        return rows.length * self._lines(columns) * 16 * self.solve.atoms * self.solve.taps

    def synthesis(self, valid: int, steps: int) -> int:
        """Multiplications for the pixels that the codes `steps` around see, of the codes `valid` around."""
        s = self.solve
        rows, columns = self.around(valid)
        meets = _meets(s.rows.window(self.around(steps)[0]), rows, s.rows)
        return meets * self._lines(columns) * 16 * s.row_taps * s.atoms

    def correlation(self) -> int:
        return self.analysis(0)


def forward(stem: Stem, plan: list[int], element: int) -> Counts:
    """The solve."""
    n = stem.n_iter
    s = Solve(stem, plan, element, n - 1)
    counts = Counts(x=s.pixels(plan[2]) * element, dictionary=plan[2] * s.gradient * element)
    for tile in s.tiles():
        counts.stored += s.batch * tile.positions(0) * stem.atoms * element
        for step in range(1, n + 1):
            counts.products += s.batch * tile.analysis(n - step)
            if step > 1:
                counts.products += s.batch * tile.synthesis(n - step + 1, n - step)
    return counts


def backward(stem: Stem, plan: list[int], element: int) -> Counts:
    """Its gradients in x and the dictionary without momentum, of a code without zeros: see fista_backward.cu."""
    n = stem.n_iter
    s = Solve(stem, plan, element, max(n, 2 * (n - 1) - 1))
    counts = Counts(x=s.pixels(plan[2]) * element, dictionary=plan[2] * s.gradient * element)
    counts.stored = s.batch * s.channels * s.size[0] * s.size[1] * element + plan[2] * s.gradient * 4
    for tile in s.tiles():
        counts.z += s.batch * tile.positions(n) * stem.atoms * element
        products = 0
        # How far around the tile each z_k is computed; the last residual is needed for the tile alone.
        extent = [max(2 * (n - 1) - k, 1) if k < n else 0 for k in range(n + 1)]
        for step in range(1, n + 1):
            products += tile.synthesis(extent[step - 1], extent[step]) if step > 1 else 0
            products += tile.analysis(extent[step]) if step < n else 0
            # Then backwards: A G_k, its correlation with z_(k-1), A' of it, and that of the residual with G_k.
            products += tile.synthesis(step, step - 1) + tile.correlation()
            products += tile.correlation() + tile.analysis(step - 1) if step > 1 else 0
        counts.products += s.batch * products
    counts.grad = counts.z
    return counts


def _lines(columns: Span, first: int) -> int:
    """Lines of 16 positions, counted from `first`, that hold the columns."""
    return -(-(columns.end - first) // 16) - (columns.begin - first) // 16


def _meets(pixels: Span, codes: Span, rows: Axis) -> int:
    """Pairs of a row of pixels and a tap that meet a row of codes."""
    places = (h + rows.pad - dy for h in range(*pixels) for dy in range(rows.kernel))
    return sum(p >= 0 and p % rows.stride == 0 and codes.has(p // rows.stride) for p in places)


def _step_by_step(layer: Stem, element: int) -> list[tuple[int, int]]:
    """Bytes and operations of the kernels of two steps from zero: the residual of the first is x itself."""
    passes = (
        analysis(layer, False, False, element),
        synthesis(layer, True, False, element),
        analysis(layer, True, False, element),
    )
    dictionary = layer.atoms * layer.x[1] * layer.kernel**2 * element
    return [(p.moved(element) + dictionary, 2 * p.products) for p in passes]


def predictions() -> Iterator[Row]:
    """The rows of the table of predicted times; a solve of which no tile fits goes step by step."""
    for case, stem in (STEMS | {"wide": LAYERS["wide"]}).items():
        for dtype, kind in DTYPES.items():
            x, z, dictionary = (
                torch.empty(shape, dtype=kind, device="meta")
                for shape in (stem.x, stem.z, (stem.atoms, stem.x[1], *(stem.kernel,) * 2))
            )
            pad, stride = stem.padding, stem.stride
            solve = Tensors(x, z, dictionary, (stride, stride), (pad, pad, pad, pad))
            for gpu, facts in GPUS.items():
                element = kind.itemsize
                few = stem.x[1] <= CHANNELS
                plan = plan_of(stem, False, element, ARCHITECTURES[facts.architecture]) if few else []
                if plan:
                    counts = forward(stem, plan, element)
                    launches = [(counts.moved, 2 * counts.products)]
                else:
                    launches = _step_by_step(stem, element)
                yield row("cuda", case, dtype, gpu, solve, launches)
