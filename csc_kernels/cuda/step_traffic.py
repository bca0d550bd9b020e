"""What the passes of a solve step by step load, store and multiply, by formula.

They are csrc/cuda/residual.cu, fista_step.cu and correlation.cu, each one implicit product (implicit_product.cuh),
and tails.cu, which follows a library's convolutions.

Loads are counted where threads make them. A pixel or a code is loaded once for every tap that meets it: the caches
serve those after the first, so that this is no count of what the memory moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..geometry import code_size
from .resources import Stem

# implicit_product.cuh: a block's tile of results, and the depth that passes through shared memory at a time.
TILE, DEPTH = 64, 32


@dataclass
class Pass:
    """Elements loaded from and stored to each argument, and multiplications of the matrix products."""

    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    products: int = 0


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
    positions = code_size(size, (layer.kernel,) * 2, (layer.stride,) * 2, (layer.padding,) * 4)
    meetings = [
        sum(0 <= i * layer.stride - layer.padding + tap < side for i in range(count) for tap in range(layer.kernel))
        for side, count in zip(size, positions)
    ]
    return Sizes(
        batch * size[0] * size[1], channels, batch * positions[0] * positions[1], layer.atoms, layer.kernel**2,
        batch * meetings[0] * meetings[1],
    )  # fmt: skip


def _tiles(count: int) -> int:
    return -(-count // TILE)


def _products(rows: int, columns: int, depths: Iterable[int]) -> int:
    """Of a grid of tiles: rows padded to 16, columns to a tile, each depth to what passes at a time."""
    padded = sum(-(-depth // DEPTH) * DEPTH for depth in depths)
    return -(-rows // 16) * 16 * _tiles(columns) * TILE * padded


def synthesis(layer: Stem, with_x: bool, with_mask: bool) -> Pass:
    """r = mask (x - A z): rows are channels, columns pixels, the depth atoms and taps."""
    s = sizes(layer)
    image, depth = s.pixels * s.channels, s.atoms * s.taps
    found = Pass({"z": _tiles(s.channels) * s.atoms * s.meetings}, {"result": image})
    found.loaded["dictionary"] = _tiles(s.pixels) * s.channels * depth
    found.loaded |= {name: image for name, given in (("x", with_x), ("mask", with_mask)) if given}
    found.products = _products(s.channels, s.pixels, [depth])
    return found


def analysis(layer: Stem, with_base: bool, with_point: bool) -> Pass:
    """A step: rows are atoms, columns positions of the code, the depth channels and taps."""
    s = sizes(layer)
    code, depth = s.codes * s.atoms, s.channels * s.taps
    found = Pass({"image": _tiles(s.atoms) * s.channels * s.meetings}, {"code": code})
    found.loaded["dictionary"] = _tiles(s.codes) * s.atoms * depth
    if with_base:
        found.loaded["base"] = code
    if with_point:
        found.loaded["previous"] = found.stored["point"] = code
    found.products = _products(s.atoms, s.codes, [depth])
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
