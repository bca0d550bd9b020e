"""Bytes and operations of every kernel by formula, and the times that they allow on known GPUs.

The bytes of a program are those of the images and codes that its tile touches, each counted once for the program: a
halo is counted for every tile that has it, although the second-level cache will serve much of it. The dictionary
is counted once for the launch: it never leaves the caches. Operations are those of the products, padding included,
two for a multiply and add. tests/test_triton_traffic.py counts both in triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..traffic import DTYPES, GPUS, Row, Solve, row
from .blocks import pretending
from .cases import CASES, Case
from .fista import fista
from .launch import Launch, ceil_div, recorded


@dataclass(frozen=True)
class Traffic:
    """What a launch moves and computes."""

    read: int  # bytes
    written: int  # bytes
    operations: int

    @property
    def moved(self) -> int:
        return self.read + self.written


def covered(count: int, tile: int, low: int, high: int, scale: int, bound: int) -> int:
    """The sum over tiles of `tile` of `count` indices of how much of 0 .. bound - 1 each reaches.

    Indices first .. last reach scale first + low .. scale last + high.
    """
    total = 0
    for first in range(0, count, tile):
        last = min(first + tile, count) - 1
        total += max(0, min(scale * last + high, bound - 1) - max(scale * first + low, 0) + 1)
    return total


def _bytes(value: Tensor | None) -> int:
    return 0 if value is None else value.numel() * value.element_size()


def _synthesis(a: dict) -> tuple[int, int, int]:
    """Blocks of channels, elements of the code that programs read, and operations."""
    n, channels, *image = a["size"]
    _, atoms, *code = a["code_size"]
    tiles = a["BLOCK_ROWS"], a["BLOCK_COLUMNS"]
    reached, programs, steps = 1, ceil_div(n, a["BLOCK_SAMPLES"]), 1
    for side, limit, tile, taps, stride, pad in zip(image, code, tiles, a["KERNEL"], a["STRIDE"], a["pads"]):
        phase = ceil_div(side, stride)
        # Pixel i of phase p is at row stride i + offset_p; tap a < taps_p meets code row i + shift_p - a.
        offsets = [(p + pad * (stride - 1)) % stride for p in range(stride)]
        meets = [((o + pad - p) // stride, ceil_div(taps - p, stride)) for p, o in enumerate(offsets) if p < taps]
        low = min((shift - count + 1 for shift, count in meets), default=0)
        high = max((shift for shift, _ in meets), default=-1)
        reached *= covered(phase, tile, low, high, 1, limit)
        programs *= ceil_div(phase, tile)
        steps *= sum(count for _, count in meets)
    channel_blocks = ceil_div(channels, a["BLOCK_CHANNELS"])
    pixels = a["BLOCK_SAMPLES"] * tiles[0] * tiles[1]
    product = 2 * pixels * a["BLOCK_ATOMS"] * a["BLOCK_CHANNELS"]
    operations = programs * channel_blocks * steps * ceil_div(atoms, a["BLOCK_ATOMS"]) * product
    return channel_blocks, reached * n * atoms * channel_blocks, operations


def _residual(a: dict) -> Traffic:
    _, code, operations = _synthesis(a)
    element = a["x"].element_size()
    read = _bytes(a["x"]) + code * element + _bytes(a["dictionary"])
    if a["mask"] is not None:
        read += a["x"].numel() * a["mask"].element_size()
    return Traffic(read, _bytes(a["r"]), operations)


def _image_gradient(a: dict) -> Traffic:
    _, code, operations = _synthesis(a)
    element = a["g"].element_size()
    read = code * element + _bytes(a["dictionary"]) + _bytes(a["r"]) + _bytes(a["grad_x"])
    if a["mask"] is not None:
        read += a["grad_r"].numel() * a["mask"].element_size()
    return Traffic(read, _bytes(a["grad_r"]) + _bytes(a["grad_x"]) + _bytes(a["products"]), operations)


def _analysis(a: dict) -> tuple[int, int]:
    """Elements of the image that programs read, and operations."""
    n, channels, *image = a["size"]
    _, atoms, *code = a["code_size"]
    tiles = a["BLOCK_ROWS"], a["BLOCK_COLUMNS"]
    reached, programs = 1, ceil_div(n, a["BLOCK_SAMPLES"])
    for side, count, tile, taps, stride, pad in zip(image, code, tiles, a["KERNEL"], a["STRIDE"], a["pads"]):
        if stride <= taps:
            reached *= covered(count, tile, -pad, taps - 1 - pad, stride, side)
        else:  # Rows between the kernels are not touched.
            reached *= sum(0 <= stride * i - pad + tap < side for i in range(count) for tap in range(taps))
        programs *= ceil_div(count, tile)
    atom_blocks = ceil_div(atoms, a["BLOCK_ATOMS"])
    columns = a["BLOCK_TAPS"] * a["BLOCK_CHANNELS"]
    steps = ceil_div(a["KERNEL"][0] * a["KERNEL"][1], a["BLOCK_TAPS"]) * ceil_div(channels, a["BLOCK_CHANNELS"])
    pixels = a["BLOCK_SAMPLES"] * tiles[0] * tiles[1]
    return reached * n * channels * atom_blocks, programs * atom_blocks * steps * 2 * pixels * columns * a[
        "BLOCK_ATOMS"
    ]


def _fista_step(a: dict) -> Traffic:
    image, operations = _analysis(a)
    read = image * a["r"].element_size() + _bytes(a["dictionary"]) + _bytes(a["y"])
    if a["y_next"] is not None and a["z"] is not a["y"]:
        read += _bytes(a["z"])
    return Traffic(read, _bytes(a["z_next"]) + _bytes(a["y_next"]), operations)


def _code_gradient(a: dict) -> Traffic:
    image, operations = _analysis(a)
    read = image * a["r"].element_size() + _bytes(a["dictionary"]) + _bytes(a["base"])
    return Traffic(read, _bytes(a["gradient"]), operations)


def _threshold_gradient(a: dict) -> Traffic:
    read = _bytes(a["first"]) + _bytes(a["second"]) + _bytes(a["z"])
    return Traffic(read, _bytes(a["gradient"]) + _bytes(a["sums"]), 0)


def _correlation(a: dict) -> Traffic:
    """A part's pixels are consecutive ones of the code; a program reads what its taps reach from them."""
    n, channels, height, width = a["size"]
    _, atoms, *code = a["code_size"]
    (stride_rows, stride_columns), (top, left) = a["STRIDE"], a["pads"]
    taps = torch.arange(a["KERNEL"][0] * a["KERNEL"][1])
    pixels = torch.arange(n * code[0] * code[1])
    reached = blocks = 0
    for part in pixels.split(a["pixels_per_part"]):
        blocks += ceil_div(len(part), a["BLOCK_PIXELS"])
        for block in taps.split(a["BLOCK_TAPS"]):
            i = part[:, None] // code[1] % code[0] * stride_rows - top + block // a["KERNEL"][1]
            j = part[:, None] % code[1] * stride_columns - left + block % a["KERNEL"][1]
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            sample = (part // (code[0] * code[1]))[:, None].expand_as(i)
            reached += ((sample * height + i) * width + j)[inside].unique().numel()
    atom_blocks, channel_blocks = ceil_div(atoms, a["BLOCK_ATOMS"]), ceil_div(channels, a["BLOCK_CHANNELS"])
    column_blocks = ceil_div(len(taps), a["BLOCK_TAPS"]) * channel_blocks
    pairs = 1 if a["other_image"] is None else 2
    read = reached * channels * atom_blocks + len(pixels) * atoms * column_blocks
    product = 2 * a["BLOCK_ATOMS"] * a["BLOCK_TAPS"] * a["BLOCK_CHANNELS"] * a["BLOCK_PIXELS"]
    operations = pairs * blocks * product * column_blocks * atom_blocks
    return Traffic(pairs * read * a["image"].element_size(), _bytes(a["parts"]), operations)


def _fista(a: dict) -> Traffic:
    n, channels, *image = a["size"]
    _, atoms, *code = a["code_size"]
    reached = 1
    region = a["REGION_ROWS"], a["REGION_COLUMNS"]
    for side, count, tile, halo, span, taps, pad in zip(
        image, code, a["tile_size"], a["halo"], region, a["KERNEL"], a["pads"]
    ):
        # Tile i works on the region from tile i - halo on, and unfolds x a kernel further.
        reached *= sum(
            max(0, min(i * tile - halo + span - 1 + taps - 1 - pad, side - 1) - max(i * tile - halo - pad, 0) + 1)
            for i in range(ceil_div(count, tile))
        )
    programs = n * a["tiles"][0] * a["tiles"][1]
    product = 2 * region[0] * region[1] * a["COLUMNS"] * a["BLOCK_ATOMS"]
    # Step s computes s iterates again and adds one synthesis; the last has none.
    products = sum(s + 1 for s in range(1, a["N_ITER"])) + a["N_ITER"]
    read = reached * n * channels * a["x"].element_size() + _bytes(a["dictionary"])
    return Traffic(read, _bytes(a["z"]), programs * products * ceil_div(atoms, a["BLOCK_ATOMS"]) * product)


_FORMULAS = {
    "residual_kernel": _residual,
    "image_gradient_kernel": _image_gradient,
    "fista_step_kernel": _fista_step,
    "code_gradient_kernel": _code_gradient,
    "threshold_gradient_kernel": _threshold_gradient,
    "correlation_kernel": _correlation,
    "fista_kernel": _fista,
}


def traffic(launch: Launch) -> Traffic:
    """What a launch moves and computes, by formula. Penalties that are tensors are not counted."""
    return _FORMULAS[launch.kernel.fn.__name__](launch.arguments)


def solve_launches(case: Case, dtype: torch.dtype, architecture: str) -> list[Launch]:
    """The launches of two steps from zero."""
    x, _, dictionary = case.tensors(dtype, "meta", "contiguous")
    scalar = torch.zeros((), dtype=torch.float64)
    with recorded() as found, pretending(architecture):
        fista(x, dictionary, scalar, scalar, scalar, None, None, 2, *case.geometry, True, "fista", False)
    return found


def predictions() -> Iterator[Row]:
    """The rows of the table of predicted times."""
    for name, case in CASES.items():
        for dtype, kind in DTYPES.items():
            x, z, dictionary = case.tensors(kind, "meta", "contiguous")
            solve = Solve(x, z, dictionary, *case.geometry)
            for gpu, facts in GPUS.items():
                each = [traffic(launch) for launch in solve_launches(case, kind, facts.architecture)]
                yield row("triton", name, dtype, gpu, solve, [(t.moved, t.operations) for t in each])
