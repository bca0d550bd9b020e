"""What the passes of a solve step by step load, store and multiply, by formula.

They are csrc/cuda/residual.cu and fista_step.cu, direct convolutions (direct_product.cuh); correlation.cu, an
implicit product (implicit_product.cuh); and tails.cu, which follows a library's convolutions.

Loads are counted where threads make them. A direct convolution loads what a tile's windows cover once, halo
included, for every 64 of its results. A correlation loads a pixel once for every tap that meets it: the caches
serve those after the first, so that this is no count of what the memory moves. The dictionary is loaded by every
block, from the caches but for the first time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .resources import Stem, direct_plan_of

# implicit_product.cuh: a block's tile of results, and the depth that passes through shared memory at a time.
TILE, DEPTH = 64, 32
# direct_layout.h: bytes of a position's channels at a time, of which products on tensor cores take all.
CHUNK_BYTES = 32


@dataclass
class Pass:
    """Elements loaded from and stored to each argument, and multiplications of the matrix products."""

    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    products: int = 0

    def moved(self, element: int) -> int:
        """Bytes without those of the dictionary, which stays in the caches."""
        loaded = sum(count for name, count in self.loaded.items() if name != "dictionary")
        return (loaded + sum(self.stored.values())) * element


@dataclass(frozen=True)
class Sizes:
    """Elements of what a layer's passes touch."""

    pixels: int  # N H W
    channels: int
    codes: int  # N H' W'
    atoms: int
    taps: int  # kH kW
    meetings: int  # Triples of a sample, a code position and a tap that meet a pixel of the image.


def sizes(layer: Stem) -> Sizes:
    batch, channels, *size = layer.x
    meetings = [
        sum(0 <= i * layer.stride - layer.padding + tap < side for i in range(count) for tap in range(layer.kernel))
        for side, count in zip(size, layer.codes)
    ]
    return Sizes(
        batch * size[0] * size[1], channels, batch * math.prod(layer.codes), layer.atoms, layer.kernel**2,
        batch * meetings[0] * meetings[1],
    )  # fmt: skip


def _tiles(count: int) -> int:
    return -(-count // TILE)


def _products(rows: int, columns: int, depths: Iterable[int]) -> int:
    """Of a grid of tiles: rows padded to 16, columns to a tile, each depth to what passes at a time."""
    padded = sum(-(-depth // DEPTH) * DEPTH for depth in depths)
    return -(-rows // 16) * 16 * _tiles(columns) * TILE * padded


class Axis(NamedTuple):
    """Rows or columns of a direct convolution: positions, taps and their planes, the source and its padding."""

    positions: int
    taps: int
    period: int
    source: int
    pad: int

    @property
    def windows(self) -> int:
        """How far the taps of a plane are shifted, and 1."""
        return -(-self.taps // self.period)

    def seen(self, tile: int, whole: bool) -> int:
        """Entries of the source that all tiles fetch, with all taps at once or tap by tap."""
        bands = [(u, a) for u in range(self.windows) for a in range(self.period) if u * self.period + a < self.taps]
        regions = (
            [(r, a) for r in range(tile + self.windows - 1) for a in range(min(self.period, self.taps))]
            if whole
            else [(r + u, a) for r in range(tile) for u, a in bands]
        )
        begins = range(0, self.positions, tile)
        return sum(0 <= (b + r) * self.period + a - self.pad < self.source for b in begins for r, a in regions)


class Direct(NamedTuple):
    """One direct convolution of a layer."""

    axes: tuple[Axis, Axis]
    channels: int
    results: int
    taps: int  # Products of 16 results and 16 positions, for a depth of one.

    @classmethod
    def synthesis(cls, layer: Stem) -> Direct:
        _, channels, *size = layer.x
        stride, shift = layer.stride, layer.padding // layer.stride
        taps = -(-layer.kernel // stride)
        rows, columns = (
            Axis((s - 1 + layer.padding) // stride - shift + 1, taps, 1, c, taps - 1 - shift)
            for s, c in zip(size, layer.codes)
        )
        if layer.kernel % stride:  # Each of the pixels that share a position has its own taps and 16 results.
            padded = -(-channels // 16) * 16
            return cls((rows, columns), layer.atoms, padded * stride**2, padded // 16 * layer.kernel**2)
        results = channels * stride**2
        return cls((rows, columns), layer.atoms, results, -(-results // 16) * taps**2)

    @classmethod
    def analysis(cls, layer: Stem) -> Direct:
        _, channels, *size = layer.x
        rows, columns = (Axis(c, layer.kernel, layer.stride, s, layer.padding) for s, c in zip(size, layer.codes))
        return cls((rows, columns), channels, layer.atoms, -(-layer.atoms // 16) * layer.kernel**2)

    def counts(self, layer: Stem, element: int, plan: tuple[int, ...]) -> tuple[int, int, int]:
        """Loads of the source and of the dictionary, and products; on tensor cores."""
        rows, columns = self.axes
        batch, channels, *_ = layer.x
        samples, tile_rows, tile_columns, joined, whole, _ = plan
        tiles = -(-batch // samples) * -(-rows.positions // tile_rows) * -(-columns.positions // tile_columns)
        blocks = -(-self.results // (64 if self.results > 16 else 16))
        # The columns are met all at once in any case.
        seen = rows.seen(tile_rows, bool(whole)) * columns.seen(tile_columns, True)
        region_columns = tile_columns + columns.windows - 1
        region_rows = tile_rows + (rows.windows - 1 if whole else 0)
        run = ((samples - 1) * region_rows + tile_rows - 1) * region_columns + tile_columns
        segments = -(-run // 16) if joined else -(-tile_columns // 16) * samples * tile_rows
        depth = -(-self.channels * element // CHUNK_BYTES) * CHUNK_BYTES // element
        return (
            batch * seen * self.channels * blocks,
            tiles * layer.atoms * channels * layer.kernel**2,
            tiles * segments * 16 * 16 * self.taps * depth,
        )


def _plan(layer: Stem, is_synthesis: bool, element: int) -> tuple[int, ...]:
    return direct_plan_of(layer, is_synthesis, "tf32" if element == 4 else "bfloat16")


def synthesis(layer: Stem, with_x: bool, with_mask: bool, element: int) -> Pass:
    """r = mask (x - A z)."""
    s = sizes(layer)
    image = s.pixels * s.channels
    codes, dictionary, products = Direct.synthesis(layer).counts(layer, element, _plan(layer, True, element))
    found = Pass({"z": codes, "dictionary": dictionary}, {"result": image}, products)
    found.loaded |= {name: image for name, given in (("x", with_x), ("mask", with_mask)) if given}
    return found


def analysis(layer: Stem, with_base: bool, with_point: bool, element: int) -> Pass:
    """A step."""
    s = sizes(layer)
    code = s.codes * s.atoms
    pixels, dictionary, products = Direct.analysis(layer).counts(layer, element, _plan(layer, False, element))
    found = Pass({"image": pixels, "dictionary": dictionary}, {"code": code}, products)
    if with_base:
        found.loaded["base"] = code
    if with_point:
        found.loaded["previous"] = found.stored["point"] = code
    return found


def residual_tail(layer: Stem, with_x: bool, with_mask: bool) -> Pass:
    """What is left of a synthesis, whose result it replaces."""
    s = sizes(layer)
    image = s.pixels * s.channels
    given = {"result": True, "x": with_x, "mask": with_mask}
    return Pass({name: image for name in given if given[name]}, {"result": image})


def step_tail(layer: Stem, with_base: bool, with_point: bool) -> Pass:
    """What is left of a step after the convolution, whose result it replaces."""
    s = sizes(layer)
    code = s.codes * s.atoms
    given = {"code": True, "base": with_base, "previous": with_point}
    stored = {"code": code} | ({"point": code} if with_point else {})
    return Pass({name: code for name in given if given[name]}, stored)


def correlation(layer: Stem, splits: int) -> Pass:
    """The dictionary's gradient: rows are atoms, columns channels and taps, the depth a range of positions."""
    s = sizes(layer)
    columns = s.channels * s.taps
    ranges = [s.codes * (split + 1) // splits - s.codes * split // splits for split in range(splits)]
    gradient = s.atoms * columns
    return Pass(
        {
            "code": _tiles(columns) * s.atoms * s.codes,
            "image": _tiles(s.atoms) * s.channels * s.meetings,
            "partials": splits * gradient,
        },
        {"partials": splits * gradient, "result": gradient},
        _products(s.atoms, columns, ranges),
    )
