"""The analysis A' r as an implicit GEMM, and what is fused behind it.

Rows are code pixels, columns atoms, and the sum runs over taps and channels: a block of it is BLOCK_TAPS taps of
BLOCK_CHANNELS channels, so that the three channels of a colour image fill a product as well as sixty-four do.
"""

import triton
import triton.language as tl

from .tiles import address, number, parameter, tile_pixels


@triton.jit
def analysis_tile(
    r, r_strides, dictionary, dictionary_strides, size, code_size, pads, n, row, column, k,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, BLOCK_TAPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(A' r) at (code pixels, atoms k), in float32."""
    q = tl.arange(0, BLOCK_TAPS * BLOCK_CHANNELS)
    tap_blocks: tl.constexpr = (KERNEL[0] * KERNEL[1] + BLOCK_TAPS - 1) // BLOCK_TAPS
    first_row, first_column = row * STRIDE[0] - pads[0], column * STRIDE[1] - pads[1]
    corner = address(r, r_strides, n, 0, first_row, first_column)[:, None]
    total = tl.zeros((n.shape[0], k.shape[0]), tl.float32)
    # All taps of one block of channels follow each other: its pixels stay in the first-level cache.
    for step in range(tap_blocks * tl.cdiv(size[1], BLOCK_CHANNELS)):
        m = (step // tap_blocks * BLOCK_CHANNELS + q % BLOCK_CHANNELS).to(tl.int64)
        tap = step % tap_blocks * BLOCK_TAPS + q // BLOCK_CHANNELS
        tap_row, tap_column = (tap // KERNEL[1]).to(tl.int64), (tap % KERNEL[1]).to(tl.int64)
        there = (tap < KERNEL[0] * KERNEL[1]) & (m < size[1])
        i, j = first_row[:, None] + tap_row[None, :], first_column[:, None] + tap_column[None, :]
        inside = (i >= 0) & (i < size[2]) & (j >= 0) & (j < size[3]) & (n < size[0])[:, None]
        offset = m * r_strides[1] + tap_row * r_strides[2] + tap_column * r_strides[3]
        pixels = tl.load(corner + offset[None, :], mask=inside & there[None, :], other=0.0)
        atoms = tl.load(
            address(dictionary, dictionary_strides, k[None, :], m[:, None], tap_row[:, None], tap_column[:, None]),
            mask=there[:, None] & (k < code_size[1])[None, :],
            other=0.0,
        )
        total = tl.dot(pixels, atoms, total, input_precision=PRECISION)
    return total


@triton.jit
def shrink(v, threshold, NONNEG: tl.constexpr):
    """Soft threshold, one-sided for nonnegative codes. NaN stays NaN."""
    above = tl.maximum(v - threshold, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if NONNEG:
        return above
    else:
        return above - tl.maximum(-v - threshold, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def fista_step_kernel(
    r, r_strides, dictionary, dictionary_strides, y, y_strides, z, z_strides, lmbda, lmbda_strides, mu, mu_strides,
    step_size, beta, z_next, z_next_strides, y_next, y_next_strides, size, code_size, pads,
    NONNEG: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr, BLOCK_TAPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """z+ = prox(y + t A' r), y+ = z+ + beta (z+ - z). y may be None (zero), and z with y_next (no momentum).

    size is (N, M, H, W), code_size (N, K, H', W'), pads (top, left).
    """
    atom_blocks = tl.cdiv(code_size[1], BLOCK_ATOMS)
    program = tl.program_id(0)
    k = (program % atom_blocks * BLOCK_ATOMS + tl.arange(0, BLOCK_ATOMS)).to(tl.int64)
    n, row, column = tile_pixels(
        program // atom_blocks, code_size[2], code_size[3], BLOCK_SAMPLES, BLOCK_ROWS, BLOCK_COLUMNS
    )
    v = analysis_tile(
        r, r_strides, dictionary, dictionary_strides, size, code_size, pads, n, row, column, k, KERNEL, STRIDE,
        BLOCK_TAPS, BLOCK_CHANNELS, PRECISION,
    )  # fmt: skip
    t = number(step_size)
    n, row, column, k = n[:, None], row[:, None], column[:, None], k[None, :]
    inside = (n < size[0]) & (row < code_size[2]) & (column < code_size[3]) & (k < code_size[1])
    v *= t
    if y is not None:
        v += tl.load(address(y, y_strides, n, k, row, column), mask=inside, other=0.0).to(tl.float32)
    # Parameters are loaded without a mask, at indices that are inside.
    at_n, at_k = tl.minimum(n, size[0] - 1), tl.minimum(k, code_size[1] - 1)
    at_row, at_column = tl.minimum(row, code_size[2] - 1), tl.minimum(column, code_size[3] - 1)
    threshold = t * parameter(lmbda, lmbda_strides, at_n, at_k, at_row, at_column)
    divisor = 1.0 + t * parameter(mu, mu_strides, at_n, at_k, at_row, at_column)
    code = shrink(v, threshold, NONNEG) / divisor
    tl.store(address(z_next, z_next_strides, n, k, row, column), code.to(z_next.dtype.element_ty), mask=inside)
    if y_next is not None:
        before = tl.load(address(z, z_strides, n, k, row, column), mask=inside, other=0.0).to(tl.float32)
        point = code + beta * (code - before)
        tl.store(address(y_next, y_next_strides, n, k, row, column), point.to(y_next.dtype.element_ty), mask=inside)


@triton.jit
def code_gradient_kernel(
    r, r_strides, dictionary, dictionary_strides, base, base_strides, base_scale, gradient, gradient_strides,
    size, code_size, pads,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr, BLOCK_TAPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """gradient = base_scale base - A' r: what dL/dr = -r and the rest of a step pass back. base may be None."""
    atom_blocks = tl.cdiv(code_size[1], BLOCK_ATOMS)
    program = tl.program_id(0)
    k = (program % atom_blocks * BLOCK_ATOMS + tl.arange(0, BLOCK_ATOMS)).to(tl.int64)
    n, row, column = tile_pixels(
        program // atom_blocks, code_size[2], code_size[3], BLOCK_SAMPLES, BLOCK_ROWS, BLOCK_COLUMNS
    )
    v = analysis_tile(
        r, r_strides, dictionary, dictionary_strides, size, code_size, pads, n, row, column, k, KERNEL, STRIDE,
        BLOCK_TAPS, BLOCK_CHANNELS, PRECISION,
    )  # fmt: skip
    v = -v
    n, row, column, k = n[:, None], row[:, None], column[:, None], k[None, :]
    inside = (n < size[0]) & (row < code_size[2]) & (column < code_size[3]) & (k < code_size[1])
    if base is not None:
        v += base_scale * tl.load(address(base, base_strides, n, k, row, column), mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(address(gradient, gradient_strides, n, k, row, column), v.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def threshold_gradient_kernel(
    first, first_strides, first_scale, second, second_strides, second_scale, z, z_strides, mu, mu_strides,
    step_size, gradient, gradient_strides, sums, code_size,
    BLOCK_PIXELS: tl.constexpr, BLOCK_ATOMS: tl.constexpr,
):  # fmt: skip
    """G = (first_scale first + second_scale second) where z != 0, over 1 + t mu: dL/dv of a step.

    second may be None. sums, (pixel blocks, 2, N, K) or None, takes the sums over the program's pixels of
    sign(z) G and z G, from which dL/dlmbda, dL/dmu and dL/dt follow.
    """
    pixels = code_size[2] * code_size[3]
    pixel_blocks = tl.cdiv(pixels, BLOCK_PIXELS)
    atom_blocks = tl.cdiv(code_size[1], BLOCK_ATOMS)
    program = tl.program_id(0)
    block = program // atom_blocks % pixel_blocks
    n = (program // (atom_blocks * pixel_blocks)).to(tl.int64)
    k = (program % atom_blocks * BLOCK_ATOMS + tl.arange(0, BLOCK_ATOMS)).to(tl.int64)[None, :]
    pixel = (block * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)).to(tl.int64)[:, None]
    row, column = pixel // code_size[3], pixel % code_size[3]
    inside = (pixel < pixels) & (k < code_size[1])

    g = first_scale * tl.load(address(first, first_strides, n, k, row, column), mask=inside, other=0.0).to(
        tl.float32
    )
    if second is not None:
        g += second_scale * tl.load(address(second, second_strides, n, k, row, column), mask=inside, other=0.0).to(
            tl.float32
        )
    code = tl.load(address(z, z_strides, n, k, row, column), mask=inside, other=0.0).to(tl.float32)
    at_row, at_column = tl.minimum(row, code_size[2] - 1), tl.minimum(column, code_size[3] - 1)
    at_k = tl.minimum(k, code_size[1] - 1)
    divisor = 1.0 + number(step_size) * parameter(mu, mu_strides, n, at_k, at_row, at_column)
    g = tl.where(code != 0.0, g, 0.0) / divisor
    tl.store(address(gradient, gradient_strides, n, k, row, column), g.to(gradient.dtype.element_ty), mask=inside)
    if sums is not None:
        sign = tl.where(code > 0.0, 1.0, tl.where(code < 0.0, -1.0, code))
        place = sums + ((block.to(tl.int64) * 2 * code_size[0] + n) * code_size[1] + k)
        tl.store(place, tl.sum(sign * g, axis=0)[None, :], mask=k < code_size[1])
        tl.store(
            place + code_size[0].to(tl.int64) * code_size[1],
            tl.sum(code * g, axis=0)[None, :],
            mask=k < code_size[1],
        )
