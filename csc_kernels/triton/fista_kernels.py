"""A whole solve of few input channels on chip: x is read once, z written once, nothing else touches memory.

A program owns a tile of the code and works on a region around it: the tile and a halo of kernel - 1 pixels on
every side for each step after the first. Image and code share the region's index: (A' r)[i] is the sum of D[a]
r[i + a - top] over the taps a, and (A z)[u] that of D[a] z[u + top - a]. Both are products of (pixels, columns)
with a (columns, atoms) matrix, a column being a channel and a tap, and a shift of every column by its tap.

Only residuals are kept, as (pixels, columns) operands. The iterates of a block of atoms are computed again from
them whenever they are needed, which costs products and saves the registers of a code of all atoms.
"""

import triton
import triton.language as tl

from .fista_step_kernels import shrink
from .tiles import address, number, parameter


@triton.jit
def shift(values, rows, columns, REGION_ROWS: tl.constexpr, REGION_COLUMNS: tl.constexpr):
    """(pixels, columns) with every column moved: the value at pixel (i + rows, j + columns), zero outside."""
    pixel = tl.arange(0, REGION_ROWS * REGION_COLUMNS)
    i = (pixel // REGION_COLUMNS)[:, None] + rows[None, :]
    j = (pixel % REGION_COLUMNS)[:, None] + columns[None, :]
    inside = (i >= 0) & (i < REGION_ROWS) & (j >= 0) & (j < REGION_COLUMNS)
    moved = tl.gather(values, tl.where(inside, i * REGION_COLUMNS + j, 0), axis=0)
    return tl.where(inside, moved, 0.0)


@triton.jit
def sum_channels(values, channel, CHANNELS: tl.constexpr):
    """Every column replaced by the sum of the columns of its channel."""
    sums = tl.zeros_like(values)
    for c in tl.static_range(CHANNELS):
        own = (channel == c)[None, :]
        sums = tl.where(own, tl.sum(tl.where(own, values, 0.0), axis=1)[:, None], sums)
    return sums


@triton.jit
def iterate(
    operands, atoms, inside, lmbda, mu, t, BETAS: tl.constexpr, STEPS: tl.constexpr, NONNEG: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """z and y after STEPS steps of a block of atoms, from the residual of every step; zero outside the code."""
    divisor = 1.0 + t * mu
    z = tl.zeros((operands[0].shape[0], atoms.shape[1]), tl.float32)
    y = z
    for s in tl.static_range(STEPS):
        v = y + t * tl.dot(operands[s], atoms, input_precision=PRECISION)
        z_next = tl.where(inside, shrink(v, t * lmbda, NONNEG) / divisor, 0.0)
        y = z_next + BETAS[s] * (z_next - z)
        z = z_next
    return z, y


@triton.jit
def fista_kernel(
    x, x_strides, dictionary, dictionary_strides, lmbda, lmbda_strides, mu, mu_strides, step_size, z, z_strides,
    size, code_size, pads, halo, tile_size, tiles,
    N_ITER: tl.constexpr, BETAS: tl.constexpr, AT_Z: tl.constexpr, NONNEG: tl.constexpr, KERNEL: tl.constexpr,
    PRECISION: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
    REGION_ROWS: tl.constexpr, REGION_COLUMNS: tl.constexpr, BLOCK_ATOMS: tl.constexpr,
):  # fmt: skip
    """z after N_ITER steps from zero, stride 1.

    size is (N, M, H, W), code_size (N, K, H', W'), pads (top, left); halo, tile_size and tiles (rows, columns).
    The residual is taken at the last code with AT_Z (the published SDNet), else at the extrapolated point.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    program = tl.program_id(0)
    first_row = program // tiles[1] % tiles[0] * tile_size[0] - halo[0]
    first_column = program % tiles[1] * tile_size[1] - halo[1]
    n = (program // (tiles[0] * tiles[1])).to(tl.int64)
    pixel = tl.arange(0, REGION_ROWS * REGION_COLUMNS)
    i, j = pixel // REGION_COLUMNS, pixel % REGION_COLUMNS
    row, column = (first_row + i).to(tl.int64)[:, None], (first_column + j).to(tl.int64)[:, None]
    in_image = (row >= 0) & (row < size[2]) & (column >= 0) & (column < size[3])
    in_code = (row >= 0) & (row < code_size[2]) & (column >= 0) & (column < code_size[3])
    owned = (i >= halo[0]) & (i < halo[0] + tile_size[0]) & (j >= halo[1]) & (j < halo[1] + tile_size[1])

    q = tl.arange(0, COLUMNS)
    channel, tap = (q // TAPS).to(tl.int64), q % TAPS
    there = q < CHANNELS * TAPS
    tap_row, tap_column = tap // KERNEL[1], tap % KERNEL[1]
    rows, columns = tap_row - pads[0], tap_column - pads[1]
    t = number(step_size)

    # The first operand is x, unfolded; its pixels outside the region are read too, so that z_1 is right everywhere.
    u, v = row + rows[None, :], column + columns[None, :]
    image = tl.load(
        address(x, x_strides, n, channel[None, :], u, v),
        mask=(u >= 0) & (u < size[2]) & (v >= 0) & (v < size[3]) & there[None, :],
        other=0.0,
    )
    operands = (image,)
    at_row, at_column = tl.minimum(tl.maximum(row, 0), code_size[2] - 1), tl.maximum(column, 0)
    at_column = tl.minimum(at_column, code_size[3] - 1)
    for s in tl.static_range(1, N_ITER):
        folded = tl.zeros((REGION_ROWS * REGION_COLUMNS, COLUMNS), tl.float32)
        for start in range(0, code_size[1], BLOCK_ATOMS):
            k = (start + tl.arange(0, BLOCK_ATOMS)).to(tl.int64)
            atoms = tl.load(
                address(
                    dictionary,
                    dictionary_strides,
                    k[None, :],
                    channel[:, None],
                    tap_row[:, None],
                    tap_column[:, None],
                ),
                mask=there[:, None] & (k < code_size[1])[None, :],
                other=0.0,
            )
            at_k = tl.minimum(k, code_size[1] - 1)[None, :]
            weight = parameter(lmbda, lmbda_strides, n, at_k, at_row, at_column)
            ridge = parameter(mu, mu_strides, n, at_k, at_row, at_column)
            code, point = iterate(operands, atoms, in_code, weight, ridge, t, BETAS, s, NONNEG, PRECISION)
            if AT_Z:
                point = code
            folded = tl.dot(point.to(atoms.dtype), tl.trans(atoms), folded, input_precision=PRECISION)
        synthesis = sum_channels(shift(folded, -rows, -columns, REGION_ROWS, REGION_COLUMNS), channel, CHANNELS)
        picture = tl.load(
            address(x, x_strides, n, channel[None, :], row, column), mask=in_image & there[None, :], other=0.0
        )
        residual = tl.where(in_image & there[None, :], picture.to(tl.float32) - synthesis, 0.0)
        unfolded = shift(residual.to(image.dtype), rows, columns, REGION_ROWS, REGION_COLUMNS)
        operands = operands + (unfolded.to(image.dtype),)  # type: ignore[assignment]

    for start in range(0, code_size[1], BLOCK_ATOMS):
        k = (start + tl.arange(0, BLOCK_ATOMS)).to(tl.int64)
        atoms = tl.load(
            address(
                dictionary, dictionary_strides, k[None, :], channel[:, None], tap_row[:, None], tap_column[:, None]
            ),
            mask=there[:, None] & (k < code_size[1])[None, :],
            other=0.0,
        )
        at_k = tl.minimum(k, code_size[1] - 1)[None, :]
        weight = parameter(lmbda, lmbda_strides, n, at_k, at_row, at_column)
        ridge = parameter(mu, mu_strides, n, at_k, at_row, at_column)
        code, point = iterate(operands, atoms, in_code, weight, ridge, t, BETAS, N_ITER, NONNEG, PRECISION)
        tl.store(
            address(z, z_strides, n, k[None, :], row, column),
            code.to(z.dtype.element_ty),
            mask=in_code & owned[:, None] & (k < code_size[1])[None, :],
        )
