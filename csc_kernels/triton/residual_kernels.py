"""The synthesis A z as an implicit GEMM, and what is fused behind it.

Rows are pixels, columns channels, and the sum runs over atoms and taps. With strides a pixel meets only the taps
of its phase (row + top) mod stride; a product holds pixels of one phase, so that none is with a zero.
"""

import triton
import triton.language as tl

from .tiles import address, number, tile_pixels


@triton.jit
def synthesis_tile(
    z, z_strides, dictionary, dictionary_strides, size, code_size, pads, row_phase, column_phase, n, row, column, m,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, BLOCK_ATOMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(A z) at (pixels, channels m), in float32."""
    k = tl.arange(0, BLOCK_ATOMS).to(tl.int64)
    # Row and column of the code that meets tap 0 of the phase; tap a reaches a rows further up.
    code_row = (row + pads[0] - row_phase) // STRIDE[0]
    code_column = (column + pads[1] - column_phase) // STRIDE[1]
    tap_rows = tl.maximum(tl.cdiv(KERNEL[0] - row_phase, STRIDE[0]), 0)
    tap_columns = tl.maximum(tl.cdiv(KERNEL[1] - column_phase, STRIDE[1]), 0)
    taps = tap_rows * tap_columns
    codes = address(z, z_strides, n[:, None], k[None, :], code_row[:, None], code_column[:, None])
    atoms = address(dictionary, dictionary_strides, k[:, None], m[None, :], row_phase, column_phase)
    total = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
    # All taps of one block of atoms follow each other: its codes stay in the first-level cache.
    for step in range(taps * tl.cdiv(code_size[1], BLOCK_ATOMS)):
        step = tl.to_tensor(step).to(tl.int64)
        first = step // taps * BLOCK_ATOMS
        tap_row = step % taps // tap_columns
        tap_column = step % taps % tap_columns
        i, j = code_row - tap_row, code_column - tap_column
        inside = (n < size[0]) & (i >= 0) & (i < code_size[2]) & (j >= 0) & (j < code_size[3])
        there = first + k < code_size[1]
        code = tl.load(
            codes + (first * z_strides[1] - tap_row * z_strides[2] - tap_column * z_strides[3]),
            mask=inside[:, None] & there[None, :],
            other=0.0,
        )
        atom = tl.load(
            atoms + (first * dictionary_strides[0] + tap_row * STRIDE[0] * dictionary_strides[2]
                     + tap_column * STRIDE[1] * dictionary_strides[3]),
            mask=there[:, None] & (m < size[1])[None, :],
            other=0.0,
        )  # fmt: skip
        total = tl.dot(code, atom, total, input_precision=PRECISION)
    return total


@triton.jit
def phase_pixels(i, phase, pad, STRIDE: tl.constexpr):
    """The i-th row (column) of a phase: those with (row + pad) mod stride = phase."""
    return i * STRIDE + (phase + pad * (STRIDE - 1)) % STRIDE


@triton.jit
def residual_kernel(
    x, x_strides, z, z_strides, dictionary, dictionary_strides, mask, mask_strides, r, r_strides,
    size, code_size, pads,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_ATOMS: tl.constexpr,
):  # fmt: skip
    """r = mask (x - A z). size is (N, M, H, W), code_size (N, K, H', W'), pads (top, left)."""
    channel_blocks = tl.cdiv(size[1], BLOCK_CHANNELS)
    program = tl.program_id(0)
    channel = (program % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)).to(tl.int64)
    sample, i, j = tile_pixels(
        program // channel_blocks, tl.cdiv(size[2], STRIDE[0]), tl.cdiv(size[3], STRIDE[1]),
        BLOCK_SAMPLES, BLOCK_ROWS, BLOCK_COLUMNS,
    )  # fmt: skip
    # All phases of a tile meet the same codes: the first brings them into the cache.
    for phase in range(STRIDE[0] * STRIDE[1]):
        row_phase, column_phase = phase // STRIDE[1], phase % STRIDE[1]
        row = phase_pixels(i, row_phase, pads[0], STRIDE[0])
        column = phase_pixels(j, column_phase, pads[1], STRIDE[1])
        image = synthesis_tile(
            z, z_strides, dictionary, dictionary_strides, size, code_size, pads, row_phase, column_phase,
            sample, row, column, channel, KERNEL, STRIDE, BLOCK_ATOMS, PRECISION,
        )  # fmt: skip
        n, u, v, m = sample[:, None], row[:, None], column[:, None], channel[None, :]
        inside = (n < size[0]) & (u < size[2]) & (v < size[3]) & (m < size[1])
        value = tl.load(address(x, x_strides, n, m, u, v), mask=inside, other=0.0).to(tl.float32) - image
        if mask is not None:
            value *= tl.load(address(mask, mask_strides, n, m, u, v), mask=inside, other=0).to(tl.float32)
        tl.store(address(r, r_strides, n, m, u, v), value.to(r.dtype.element_ty), mask=inside)


@triton.jit
def image_gradient_kernel(
    g, g_strides, dictionary, dictionary_strides, mask, mask_strides, r, r_strides, step_size,
    grad_r, grad_r_strides, grad_x, grad_x_strides, products, size, code_size, pads,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_ATOMS: tl.constexpr,
):  # fmt: skip
    """grad_r = t mask A(G), which is dL/dx of a step; added to grad_x too, and <r, A G> of the tile to products.

    grad_x, and r with products, may be None. <r, A G> = <A' r, G> is what dL/dt needs.
    """
    channel_blocks = tl.cdiv(size[1], BLOCK_CHANNELS)
    program = tl.program_id(0)
    channel = (program % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)).to(tl.int64)
    sample, i, j = tile_pixels(
        program // channel_blocks, tl.cdiv(size[2], STRIDE[0]), tl.cdiv(size[3], STRIDE[1]),
        BLOCK_SAMPLES, BLOCK_ROWS, BLOCK_COLUMNS,
    )  # fmt: skip
    product = tl.zeros((1,), tl.float32)
    for phase in range(STRIDE[0] * STRIDE[1]):
        row_phase, column_phase = phase // STRIDE[1], phase % STRIDE[1]
        row = phase_pixels(i, row_phase, pads[0], STRIDE[0])
        column = phase_pixels(j, column_phase, pads[1], STRIDE[1])
        image = synthesis_tile(
            g, g_strides, dictionary, dictionary_strides, size, code_size, pads, row_phase, column_phase,
            sample, row, column, channel, KERNEL, STRIDE, BLOCK_ATOMS, PRECISION,
        )  # fmt: skip
        n, u, v, m = sample[:, None], row[:, None], column[:, None], channel[None, :]
        inside = (n < size[0]) & (u < size[2]) & (v < size[3]) & (m < size[1])
        if products is not None:
            left = tl.load(address(r, r_strides, n, m, u, v), mask=inside, other=0.0).to(tl.float32)
            product += tl.sum(tl.where(inside, left * image, 0.0))
        value = image * number(step_size)
        if mask is not None:
            value *= tl.load(address(mask, mask_strides, n, m, u, v), mask=inside, other=0).to(tl.float32)
        tl.store(address(grad_r, grad_r_strides, n, m, u, v), value.to(grad_r.dtype.element_ty), mask=inside)
        if grad_x is not None:
            # Every element belongs to one program: read, add and write are not a race.
            target = address(grad_x, grad_x_strides, n, m, u, v)
            value += tl.load(target, mask=inside, other=0.0).to(tl.float32)
            tl.store(target, value.to(grad_x.dtype.element_ty), mask=inside)
    if products is not None:
        tl.store(products + program + tl.arange(0, 1), product)
