"""What the kernels share: the pixels of a tile, addresses, and parameters that broadcast.

Indices are int64 from the start, so that no product with a stride can overflow.
"""

import triton
import triton.language as tl


@triton.jit
def tile_pixels(
    tile, rows, columns, BLOCK_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Sample, row and column of every pixel of a tile; tiles follow each other along columns, rows and samples."""
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    pixel = tl.arange(0, BLOCK_SAMPLES * BLOCK_ROWS * BLOCK_COLUMNS)
    column = tile % column_tiles * BLOCK_COLUMNS + pixel % BLOCK_COLUMNS
    row = tile // column_tiles % row_tiles * BLOCK_ROWS + pixel // BLOCK_COLUMNS % BLOCK_ROWS
    sample = tile // (column_tiles * row_tiles) * BLOCK_SAMPLES + pixel // (BLOCK_ROWS * BLOCK_COLUMNS)
    return sample.to(tl.int64), row.to(tl.int64), column.to(tl.int64)


@triton.jit
def address(tensor, strides, n, channel, row, column):
    """Pointers to (pixels, channels); with taps among the channels, row and column are (pixels, taps)."""
    return tensor + n * strides[0] + channel * strides[1] + row * strides[2] + column * strides[3]


@triton.jit
def parameter(value, strides, n, channel, row, column):
    """A number, or a tensor that broadcasts against a code, at (pixels, 1) x (1, atoms), in float32.

    The stride of a broadcast dimension is None: what does not vary is loaded once. Indices must be inside.
    """
    value = tl.to_tensor(value)
    if value.dtype.is_ptr():
        offset = tl.zeros((1, 1), tl.int64)
        if strides[0] is not None:
            offset = offset + n * strides[0]
        if strides[1] is not None:
            offset = offset + channel * strides[1]
        if strides[2] is not None:
            offset = offset + row * strides[2]
        if strides[3] is not None:
            offset = offset + column * strides[3]
        return tl.load(value + offset).to(tl.float32)
    else:
        return value.to(tl.float32)


@triton.jit
def number(value):
    """A number, or the one element of a tensor, in float32."""
    value = tl.to_tensor(value)
    if value.dtype.is_ptr():
        return tl.load(value).to(tl.float32)
    else:
        return value.to(tl.float32)
