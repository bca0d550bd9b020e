"""Which way a layer's convolutions are computed: the one place where that is decided."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# "direct": oneDNN's or torch's convolutions. "f2", "f4": Winograd's with tiles of 2 x 2 and 4 x 4 outputs.
PATHS = ("direct", "f2", "f4")
_forced: str | None = None


@contextmanager
def use_path(name: str) -> Iterator[None]:
    """Compute every wide layer that a path fits with that path until the context ends, in the whole process.

    For tests and benchmarks: neither speed nor the precision that torch was asked for is looked at. Winograd's
    then serve float64 as well. "direct" computes the code rows of a stem one by one, the others in pairs.
    """
    global _forced
    if name not in PATHS:
        raise ValueError(f"path must be one of {PATHS}, got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def forces_float64() -> bool:
    """Whether wide layers serve float64: only where one of Winograd's paths is forced."""
    return _forced in ("f2", "f4")


def takes_pairs() -> bool:
    """Whether a stem's kernels take code rows two by two, with fewer products: csrc/cpu/pairs.h and tiles.h."""
    return _forced != "direct"


def fits_winograd(dictionary: Tensor, stride: Sequence[int], gradient: bool = False) -> bool:
    """Whether a dictionary has the shape that Winograd's tiles are made for, and a precision that has kernels."""
    if tuple(dictionary.shape[2:]) != (3, 3) or list(stride) != [1, 1]:
        return False
    if dictionary.dtype is torch.bfloat16:
        return not gradient and torch.ops.csc_native.winograd_bfloat16()
    return dictionary.dtype is torch.float32 or (dictionary.dtype is torch.float64 and forces_float64())


def choose_path(
    dictionary: Tensor, stride: Sequence[int], batch: int, z_size: Sequence[int], gradient: bool = False
) -> str:
    """The fastest path that the caller allows, for `batch` codes of `z_size`; of the dictionary's gradient too.

    F(2x2, 3x3) is as precise as a direct convolution. F(4x4, 3x3) loses a decimal digit, and is for those who allow
    it with torch.set_float32_matmul_precision("high") or "medium", in float32. bfloat16 has F(2x2, 3x3) alone, on
    processors with AVX512_BF16 and without AMX, and takes its dictionary's gradient directly.
    """
    if not fits_winograd(dictionary, stride, gradient):
        return "direct"
    rounded = dictionary.dtype == torch.bfloat16
    if _forced is not None:
        return "direct" if rounded and _forced == "f4" else _forced
    if rounded and has_tile_units():
        return "direct"
    if min(z_size) < 2:  # Of a row of pixels a direct convolution leaves out the taps in the padding.
        return "direct"
    allowed = PATHS if torch.get_float32_matmul_precision() != "highest" and not rounded else PATHS[:2]
    channels = (dictionary.shape[0], dictionary.shape[1])
    return min(allowed, key=lambda path: cost(path, channels, batch, z_size, gradient, rounded))


# Measured with bench/bench_wide.py and bench/bench_phases.py, in multiply-adds at the processor's peak: the work
# on a channel of a point of a tile in its transform (by AVX-512's 16 lanes and AVX2's 8, which stand for baseline's
# too; with bfloat16's rounding), on a number that is convolved directly (what few channels cost it, and the pass of
# the relu, which Winograd's convolutions have in their epilogue), on an entry of the dictionary beside its
# products, and around a call.
TRANSFORM = {16: {"f2": 16.0, "f4": 22.0}, 8: {"f2": 13.0, "f4": 25.0}}
ROUNDED_TRANSFORM = 20.0
NUMBER = {16: 50.0, 8: 25.0}
ENTRY = {"direct": 150.0, "f2": 24.0, "f4": 30.0}
CALL = {"direct": 10e6, "f2": 4e6, "f4": 4e6}
TILES_AT_A_TIME = 6  # kTileBlock of csrc/cpu/winograd_kernels.h.
BLOCK = 64  # kWinogradChannels of csrc/cpu/winograd_blocks.h.


def cost(
    path: str,
    channels: tuple[int, int],
    batch: int,
    z_size: Sequence[int],
    gradient: bool,
    rounded: bool = False,
) -> float:
    """Multiply-adds at peak that take as long as one convolution, or as one gradient of the dictionary.

    Products are counted with everything padded to whole tiles and vectors; `rounded`, of bfloat16, two of them take
    the time of one.
    """
    peak = 2.0 if rounded else 1.0
    lanes = torch.ops.csc_native.winograd_lanes()
    kind = 16 if lanes == 16 else 8
    padded = [_up(n, lanes) for n in channels]
    if path == "direct":
        entries, positions = 9 * padded[0] * channels[1], batch * z_size[0] * z_size[1]
        numbers = positions * sum(padded) / 2  # Between those of a synthesis and those of an analysis.
        return entries * (positions / peak + ENTRY[path]) + NUMBER[kind] * numbers + CALL[path]
    side = int(path[1])
    tiles = _up(batch * -(-z_size[0] // side) * -(-z_size[1] // side), TILES_AT_A_TIME)
    products, transformed = padded[0] * padded[1], sum(padded)
    if gradient:  # Each block of atoms transforms the images anew, and each of channels the codes.
        transformed = sum(n * -(-other // BLOCK) for n, other in zip(padded, padded[::-1]))
    points = (side + 2) ** 2
    transform = ROUNDED_TRANSFORM if rounded else TRANSFORM[kind][path]
    return points * (tiles * (products / peak + transform * transformed) + ENTRY[path] * products) + CALL[path]


@functools.cache
def has_tile_units() -> bool:
    """Whether the processor has AMX: oneDNN's products of bfloat16 are then many times as fast as vectors'."""
    return torch.cpu._is_amx_tile_supported()


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
