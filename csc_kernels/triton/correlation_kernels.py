"""The gradient of <A' image, code> with respect to the dictionary, as an implicit GEMM.

Rows are atoms, columns taps and channels, and the sum runs over the pixels of all codes. It is split among
programs that each write their own part; the parts are added afterwards, always in the same order.
"""

import triton
import triton.language as tl

from .tiles import address, number


@triton.jit
def correlation_tile(
    total, image, image_strides, code, code_strides, size, code_size, pads, first, last, k, q, m, tap_row,
    tap_column, STRIDE: tl.constexpr, BLOCK_PIXELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + the sum over code pixels first .. last - 1, at (atoms k, columns of channel m and a tap)."""
    for start in range(first, last, BLOCK_PIXELS):
        pixel = start + tl.arange(0, BLOCK_PIXELS).to(tl.int64)
        column = pixel % code_size[3]
        row = pixel // code_size[3] % code_size[2]
        n = pixel // (code_size[2] * code_size[3])
        i = row[:, None] * STRIDE[0] - pads[0] + tap_row[None, :]
        j = column[:, None] * STRIDE[1] - pads[1] + tap_column[None, :]
        inside = (i >= 0) & (i < size[2]) & (j >= 0) & (j < size[3]) & (pixel < last)[:, None]
        pixels = tl.load(
            address(image, image_strides, n[:, None], m[None, :], i, j), mask=inside & q[None, :], other=0.0
        )
        codes = tl.load(
            address(code, code_strides, n[None, :], k[:, None], row[None, :], column[None, :]),
            mask=(k < code_size[1])[:, None] & (pixel < last)[None, :],
            other=0.0,
        )
        total = tl.dot(codes, pixels, total, input_precision=PRECISION)
    return total


@triton.jit
def correlation_kernel(
    image, image_strides, code, code_strides, scale, other_image, other_image_strides, other_code,
    other_code_strides, parts, size, code_size, pads, pixels_per_part,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr, BLOCK_TAPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """scale corr(image, code) - corr(other_image, other_code), the second without scale; it may be None.

    parts is (parts, K, M, kH, kW), float32; a program writes the block of one part.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    tap_blocks: tl.constexpr = (TAPS + BLOCK_TAPS - 1) // BLOCK_TAPS
    channel_blocks = tl.cdiv(size[1], BLOCK_CHANNELS)
    atom_blocks = tl.cdiv(code_size[1], BLOCK_ATOMS)
    program = tl.program_id(0)
    tap_block = program % tap_blocks
    channel_block = program // tap_blocks % channel_blocks
    atom_block = program // (tap_blocks * channel_blocks) % atom_blocks
    part = (program // (tap_blocks * channel_blocks * atom_blocks)).to(tl.int64)

    q = tl.arange(0, BLOCK_TAPS * BLOCK_CHANNELS)
    k = (atom_block * BLOCK_ATOMS + tl.arange(0, BLOCK_ATOMS)).to(tl.int64)
    m = (channel_block * BLOCK_CHANNELS + q % BLOCK_CHANNELS).to(tl.int64)
    tap = tap_block * BLOCK_TAPS + q // BLOCK_CHANNELS
    tap_row, tap_column = (tap // KERNEL[1]).to(tl.int64), (tap % KERNEL[1]).to(tl.int64)
    there = (tap < TAPS) & (m < size[1])

    first = part * pixels_per_part
    last = tl.minimum(
        first + pixels_per_part, tl.to_tensor(code_size[0]).to(tl.int64) * code_size[2] * code_size[3]
    )
    total = correlation_tile(
        tl.zeros((BLOCK_ATOMS, BLOCK_TAPS * BLOCK_CHANNELS), tl.float32), image, image_strides, code, code_strides,
        size, code_size, pads, first, last, k, there, m, tap_row, tap_column, STRIDE, BLOCK_PIXELS, PRECISION,
    )  # fmt: skip
    total *= number(scale)
    if other_image is not None:
        total = -correlation_tile(
            -total, other_image, other_image_strides, other_code, other_code_strides, size, code_size, pads, first,
            last, k, there, m, tap_row, tap_column, STRIDE, BLOCK_PIXELS, PRECISION,
        )  # fmt: skip
    place = ((part * code_size[1] + k[:, None]) * size[1] + m[None, :]) * TAPS + tap[None, :]
    tl.store(parts + place, total, mask=(k < code_size[1])[:, None] & there[None, :])
