"""Whether a whole solve fits on chip, and its launch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..geometry import step_weights
from . import blocks as table
from .blocks import Blocks, power_of_two
from .fista_kernels import fista_kernel
from .launch import ceil_div, launch, number, parameter, tensor
from .passes import Geometry

REGION_ROWS = 16
# A tile smaller than this share of its region has so much halo that two kernels a step are faster.
SMALLEST_SHARE = 1 / 3


@dataclass(frozen=True)
class Region:
    """How a code is cut: (rows, columns) of the region of a program, its halo, its tile, and their number."""

    blocks: Blocks
    columns: int
    halo: tuple[int, int]
    tile: tuple[int, int]
    tiles: tuple[int, int]


def plan(g: Geometry, z0: Tensor | None, n_iter: int) -> Region | None:
    """The region of a solve on chip; None where it must go by steps.

    It goes by steps from a z0, with a mask or a stride, with more channels times taps than the table's row has
    columns, with more steps than the table has rows for, and where the halo would be most of the region.
    """
    if z0 is not None or g.mask is not None or g.stride != (1, 1):
        return None
    blocks = table.find("fista", str(n_iter), g.x.dtype, g.x.device)
    if blocks is None or g.dictionary[0].numel() > blocks.channels:
        return None
    region = REGION_ROWS, blocks.pixels // REGION_ROWS
    halo, tile = [], []
    for side, image, code, taps, pad in zip(region, g.x.shape[2:], g.code_size[2:], g.kernel, g.pads):
        # A region that holds the whole image needs no halo: there is nothing but zeros around it. Else a step
        # reaches the code within taps - 1, and the last residual, which lies `pad` before the code.
        halo.append(0 if max(image, code) <= side else (n_iter - 2) * (taps - 1) + max(taps - 1, pad))
        tile.append(side - 2 * halo[-1])
    if min(tile) < 1 or tile[0] * tile[1] < SMALLEST_SHARE * blocks.pixels:
        return None
    tiles = [ceil_div(code, size) for code, size in zip(g.code_size[2:], tile)]
    return Region(blocks, region[1], (halo[0], halo[1]), (tile[0], tile[1]), (tiles[0], tiles[1]))


def solve(
    g: Geometry,
    region: Region,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    n_iter: int,
    nonneg: bool,
    momentum: str,
) -> Tensor:
    """The code after n_iter steps from zero."""
    z = g.code()
    if g.empty:
        return z
    arguments = g.arguments()
    del arguments["STRIDE"]
    arguments |= tensor("x", g.x) | tensor("z", z) | parameter("lmbda", lmbda) | parameter("mu", mu)
    arguments |= {
        "step_size": number(step_size),
        "halo": region.halo,
        "tile_size": region.tile,
        "tiles": region.tiles,
        "N_ITER": n_iter,
        "BETAS": tuple(step_weights(n_iter, momentum)),
        "AT_Z": momentum == "sdnet",
        "NONNEG": nonneg,
        "CHANNELS": g.x.shape[1],
        "COLUMNS": max(16, power_of_two(g.dictionary[0].numel())),
        "REGION_ROWS": REGION_ROWS,
        "REGION_COLUMNS": region.columns,
        "BLOCK_ATOMS": region.blocks.atoms,
    }
    programs = g.x.shape[0] * region.tiles[0] * region.tiles[1]
    launch(fista_kernel, programs, g.x.device, region.blocks, arguments)
    return z
