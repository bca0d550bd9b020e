# ruff: noqa: E501 (a mutation is one line)
"""Ways to break the Triton kernels, for mutate_triton.py.

Of each kernel: its file, the tests of test_triton.py that must notice, and pairs of a piece of text with what it is
replaced by. A text that is there several times is replaced where it is first.
"""

from __future__ import annotations

Battery = list[tuple[str, dict[str, object]]]


def cases(test: str, argument: str, *values: str) -> Battery:
    return [(test, {argument: value}) for value in values]


# Tests of test_triton.py with their arguments, the quick ones first.
TILES = cases(
    "test_tiles_meet_without_a_seam_in_one_step", "tile", "samples", "odd", "stride", "stride_pair", "two_blocks"
)
RESIDUAL = [
    *TILES,
    *cases("test_a_residual_and_its_gradients", "case", "rgb"),
    ("test_not_finite_residuals", {}),
]
STEP = [
    *TILES,
    ("test_numbers_may_lie_on_the_device", {"channels": 3}),
    *cases("test_the_gradients_of_a_step", "case", "sdnet", "signed", "full", "per_atom", "per_sample"),
    ("test_what_is_not_finite_reaches_what_it_reaches_in_pytorch", {"channels": 3, "value": float("nan")}),
    *cases("test_the_gradients_of_a_solve", "case", "three_steps"),
]
SOLVE = [
    *cases("test_a_solve_on_chip", "case", "tiles", "tall", "signed", "same_even", "full_penalties"),
    ("test_more_steps_on_chip_where_a_table_has_them", {"n_iter": 3, "momentum": "fista"}),
    ("test_more_steps_on_chip_where_a_table_has_them", {"n_iter": 3, "momentum": "sdnet"}),
    *cases("test_a_solve_on_chip", "case", "many_atoms", "padding_past_kernel"),
]

MUTATIONS: dict[str, tuple[str, Battery, list[tuple[str, str]]]] = {
    "tile_pixels, address and parameter": (
        "tiles.py",
        STEP,
        [
            ("tile % column_tiles * BLOCK_COLUMNS", "tile % row_tiles * BLOCK_COLUMNS"),
            ("tile // column_tiles % row_tiles * BLOCK_ROWS", "tile // column_tiles * BLOCK_ROWS"),
            ("pixel // BLOCK_COLUMNS % BLOCK_ROWS", "pixel // BLOCK_COLUMNS"),
            ("* BLOCK_SAMPLES + pixel", "+ pixel"),
            ("n * strides[0] + channel * strides[1]", "n * strides[1] + channel * strides[0]"),
            ("row * strides[2] + column * strides[3]", "column * strides[2] + row * strides[3]"),
            ("offset = offset + n * strides[0]", "offset = offset"),
            ("offset = offset + channel * strides[1]", "offset = offset + n * strides[1]"),
            ("offset = offset + row * strides[2]", "offset = offset + column * strides[2]"),
            ("offset = offset + column * strides[3]", "offset = offset"),
            ("return tl.load(value).to(tl.float32)", "return tl.load(value).to(tl.float32) * 2"),
        ],
    ),
    "residual_kernel": (
        "residual_kernels.py",
        RESIDUAL,
        [
            ("KERNEL[0] - row_phase", "KERNEL[0] - 1 - row_phase"),
            ("KERNEL[1] - column_phase", "KERNEL[1] + 1 - column_phase"),
            ("i, j = code_row - tap_row, code_column - tap_column", "i, j = code_row - tap_row, code_column"),
            ("- tap_row * z_strides[2]", "+ tap_row * z_strides[2]"),
            ("tap_row * STRIDE[0] * dictionary_strides[2]", "tap_row * dictionary_strides[2]"),
            ("first + k < code_size[1]", "first + k <= code_size[1]"),
            ("(j < code_size[3])", "(j < code_size[3] - 1)"),
            ("(i >= 0) & (i < code_size[2])", "(i > 0) & (i < code_size[2])"),
            ("first * z_strides[1]", "first * z_strides[1] * 0"),
            ("row + pads[0] - row_phase", "row + pads[1] - row_phase"),
            ("step // taps * BLOCK_ATOMS", "step % taps * BLOCK_ATOMS"),
            ("(phase + pad * (STRIDE - 1)) % STRIDE", "phase"),
            ("range(STRIDE[0] * STRIDE[1])", "range(STRIDE[0])"),
            ("phase // STRIDE[1], phase % STRIDE[1]", "phase // STRIDE[0], phase % STRIDE[0]"),
            ("other=0.0).to(tl.float32) - image", "other=0.0).to(tl.float32) + image"),
            ("(u < size[2]) & (v < size[3])", "(u < size[2] - 1) & (v < size[3])"),
            ("value *= tl.load", "value += tl.load"),
        ],
    ),
    "image_gradient_kernel": (
        "residual_kernels.py",
        STEP,
        [
            ("product += tl.sum", "product = tl.sum"),
            ("left * image, 0.0", "left * image * number(step_size), 0.0"),
            ("tl.where(inside, left * image, 0.0)", "left"),
            ("value = image * number(step_size)", "value = image"),
            ("value = image * number(step_size)", "value = -image * number(step_size)"),
            ("products + program", "products + 0 * program"),
            ("        if mask is not None:\n            value *= tl.load(address(mask, mask_strides, n, m, u, v), "
             "mask=inside, other=0).to(tl.float32)\n        tl.store(address(grad_r", "        tl.store(address(grad_r"),
            ("value += tl.load(target", "value -= tl.load(target"),
            ("tl.store(target, value.to", "tl.store(target, image.to"),
            ("grad_r_strides, n, m, u, v), value", "grad_r_strides, n, m, v, u), value"),
        ],
    ),
    "fista_step_kernel": (
        "fista_step_kernels.py",
        STEP,
        [
            ("row * STRIDE[0] - pads[0], column", "row * STRIDE[0] + pads[0], column"),
            ("column * STRIDE[1] - pads[1]", "column * STRIDE[0] - pads[1]"),
            ("q % BLOCK_CHANNELS).to", "q // BLOCK_TAPS).to"),
            ("step % tap_blocks * BLOCK_TAPS", "step % tap_blocks"),
            ("(tap < KERNEL[0] * KERNEL[1]) & (m < size[1])", "(tap < KERNEL[0] * KERNEL[1])"),
            ("tap // KERNEL[1]", "tap // KERNEL[0]"),
            ("(j < size[3]) & (n < size[0])", "(j < size[3] - 1) & (n < size[0])"),
            ("(i >= 0) & (i < size[2])", "(i >= 1) & (i < size[2])"),
            ("    v *= t\n", ""),
            ("threshold = t * parameter", "threshold = parameter"),
            ("divisor = 1.0 + t *", "divisor = 1.0 - t *"),
            ("- tl.maximum(-v - threshold", "- tl.maximum(-v + threshold"),
            ("propagate_nan=tl.PropagateNan.ALL", "propagate_nan=tl.PropagateNan.NONE"),
            ("code + beta * (code - before)", "code + beta * (before - code)"),
            ("code = shrink(v, threshold, NONNEG) / divisor", "code = shrink(v / divisor, threshold, NONNEG)"),
            ("v += tl.load(address(y", "v -= tl.load(address(y"),
            ("(column < code_size[3]) & (k < code_size[1])", "(column < code_size[3]) & (k < code_size[1] - 1)"),
        ],
    ),
    "code_gradient_kernel": (
        "fista_step_kernels.py",
        STEP,
        [
            ("    v = -v\n", ""),
            ("v += base_scale * tl.load", "v += tl.load"),
            ("v += base_scale * tl.load", "v -= base_scale * tl.load"),
            ("v += base_scale * tl.load", "v = base_scale * tl.load"),
            ("gradient_strides, n, k, row, column), v.to", "gradient_strides, n, k, column, row), v.to"),
            ("base_strides, n, k, row, column)", "gradient_strides, n, k, column, row)"),
            ("address(gradient, gradient_strides, n, k, row, column), v", "address(gradient, gradient_strides, n, k, row, 0 * column), v"),
            ("v.to(gradient.dtype.element_ty), mask=inside)", "v.to(gradient.dtype.element_ty), mask=inside & (row > 0))"),
            ("v.to(gradient.dtype.element_ty), mask=inside)", "v.to(gradient.dtype.element_ty), mask=inside & (k > 0))"),
            ("v.to(gradient.dtype.element_ty), mask=inside)", "tl.abs(v).to(gradient.dtype.element_ty), mask=inside)"),
        ],
    ),
    "threshold_gradient_kernel": (
        "fista_step_kernels.py",
        STEP,
        [
            ("g = first_scale * tl.load", "g = tl.load"),
            ("g += second_scale", "g -= second_scale"),
            ("tl.where(code != 0.0, g, 0.0)", "g"),
            ("tl.where(code != 0.0, g, 0.0)", "tl.where(code > 0.0, g, 0.0)"),
            ("g, 0.0) / divisor", "g, 0.0)"),
            ("tl.where(code < 0.0, -1.0, code)", "tl.where(code < 0.0, 1.0, code)"),
            ("tl.sum(code * g, axis=0)", "tl.sum(g, axis=0)"),
            ("pixel // code_size[3], pixel % code_size[3]", "pixel // code_size[2], pixel % code_size[2]"),
            ("block * BLOCK_PIXELS + tl.arange", "tl.arange"),
            ("block.to(tl.int64) * 2 * code_size[0] + n", "n"),
            ("program // atom_blocks % pixel_blocks", "program % pixel_blocks"),
            ("1.0 + number(step_size) * parameter(mu, mu_strides, n, at_k", "1.0 + parameter(mu, mu_strides, n, at_k"),
        ],
    ),
    "correlation_kernel": (
        "correlation_kernels.py",
        STEP,
        [
            ("- pads[0] + tap_row[None, :]", "+ pads[0] + tap_row[None, :]"),
            ("column[:, None] * STRIDE[1]", "column[:, None] * STRIDE[0]"),
            ("pixel // code_size[3] % code_size[2]", "pixel // code_size[3]"),
            ("(j < size[3]) & (pixel < last)", "(j < size[3] - 1) & (pixel < last)"),
            ("(i >= 0) & (i < size[2])", "(i > 0) & (i < size[2])"),
            ("program // tap_blocks % channel_blocks", "program % channel_blocks"),
            ("program // (tap_blocks * channel_blocks) % atom_blocks", "program // (tap_blocks * channel_blocks)"),
            ("total *= number(scale)", "total += number(scale)"),
            ("        total = -correlation_tile(\n            -total", "        total = correlation_tile(\n            total"),
            ("first = part * pixels_per_part", "first = 0 * part * pixels_per_part"),
            ("q % BLOCK_CHANNELS).to", "q // BLOCK_TAPS).to"),
            ("tap_block * BLOCK_TAPS", "tap_block"),
            ("part * code_size[1] + k[:, None]", "k[:, None]"),
            ("(tap < TAPS) & (m < size[1])", "(tap < TAPS - 1) & (m < size[1])"),
        ],
    ),
    "fista_kernel": (
        "fista_kernels.py",
        SOLVE,
        [
            ("(i >= 0) & (i < REGION_ROWS)", "(i >= 1) & (i < REGION_ROWS)"),
            ("return tl.where(inside, moved, 0.0)", "return moved"),
            ("i * REGION_COLUMNS + j, 0)", "j * REGION_COLUMNS + i, 0)"),
            ("own = (channel == c)[None, :]", "own = (channel >= c)[None, :]"),
            ("y = z_next + BETAS[s]", "y = z_next - BETAS[s]"),
            ("v = y + t * tl.dot", "v = z + t * tl.dot"),
            ("t * lmbda, NONNEG)", "lmbda, NONNEG)"),
            ("/ divisor, 0.0)", ", 0.0)"),
            ("tl.where(inside, shrink", "tl.where(inside | True, shrink"),
            ("* tile_size[0] - halo[0]", "* tile_size[0]"),
            ("* tile_size[1] - halo[1]", "* tile_size[1] - halo[1] + 1"),
            ("(i < halo[0] + tile_size[0])", "(i < halo[0] + tile_size[0] - 1)"),
            ("(i >= halo[0])", "(i > halo[0])"),
            ("-rows, -columns, REGION", "rows, columns, REGION"),
            ("tap_row - pads[0], tap_column - pads[1]", "tap_row - pads[1], tap_column - pads[0]"),
            ("tl.where(in_image & there[None, :], picture", "tl.where(there[None, :], picture"),
            ("point = code\n", "point = point\n"),
            ("picture.to(tl.float32) - synthesis", "picture.to(tl.float32) + synthesis"),
            ("program // tiles[1] % tiles[0]", "program % tiles[0]"),
            ("(start + tl.arange(0, BLOCK_ATOMS))", "(tl.arange(0, BLOCK_ATOMS))"),
        ],
    ),
    "the halo and the tiles of a solve": (
        "solve.py",
        SOLVE,
        [
            ("max(taps - 1, pad)", "max(taps - 2, pad)"),
            ("(n_iter - 2) * (taps - 1)", "0"),
            ("max(taps - 1, pad)", "taps - 1"),
            ("max(image, code) <= side", "code <= side + 1"),
            ("side - 2 * halo[-1]", "side - halo[-1]"),
        ],
    ),
}  # fmt: skip
