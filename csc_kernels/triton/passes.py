"""One function per kernel: allocates what it writes, chooses its blocks and its grid, and launches it.

An op is composed of these passes. `Geometry` holds what all passes of a call share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops.library import empty
from . import blocks as table
from .blocks import Blocks, tile
from .correlation_kernels import correlation_kernel
from .fista_step_kernels import code_gradient_kernel, fista_step_kernel, threshold_gradient_kernel
from .launch import ceil_div, launch, number, parameter, precision, tensor
from .residual_kernels import image_gradient_kernel, residual_kernel

PARTS = 256  # Programs that a correlation is split for, at least, where there are pixels enough.


@dataclass(frozen=True)
class Geometry:
    """The shapes of a call, and the dictionary with the mask of the image."""

    x: Tensor  # gives dtype, device and layout
    dictionary: Tensor
    code_size: tuple[int, int, int, int]  # (N, K, H', W')
    stride: tuple[int, int]
    pads: tuple[int, int]  # top, left
    mask: Tensor | None

    @classmethod
    def of(
        cls, x: Tensor, dictionary: Tensor, z_shape: Sequence[int], stride: Sequence[int], pads: Sequence[int],
        mask: Tensor | None,
    ) -> Geometry:  # fmt: skip
        expanded = None if mask is None else mask.expand(x.shape)
        n, atoms, rows, columns = z_shape
        return cls(x, dictionary, (n, atoms, rows, columns), (stride[0], stride[1]), (pads[0], pads[2]), expanded)

    @property
    def kernel(self) -> tuple[int, int]:
        return self.dictionary.shape[2], self.dictionary.shape[3]

    @property
    def empty(self) -> bool:
        return self.x.numel() == 0

    @property
    def floats(self) -> dict[str, Any]:
        """What kernels sum in, whatever torch's default dtype is."""
        return {"dtype": torch.float32, "device": self.x.device}

    def blocks(self, kernel: str) -> Blocks:
        found = table.find(kernel, table.shape_class(self.x.shape[1]), self.x.dtype, self.x.device)
        if found is None:
            raise RuntimeError(f"the table of block sizes has no row for {kernel} in {self.x.dtype}")
        return found

    def arguments(self) -> dict[str, Any]:
        """What every convolution takes."""
        return {
            **tensor("dictionary", self.dictionary),
            "size": tuple(self.x.shape),
            "code_size": self.code_size,
            "pads": self.pads,
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
            "PRECISION": precision(self.x.dtype),
        }

    def image(self) -> Tensor:
        return empty(self.x, self.x.shape)

    def code(self) -> Tensor:
        return empty(self.x, self.code_size)


def _tiles(shape: Sequence[int], pixels: int) -> tuple[int, dict[str, int]]:
    """How many tiles cover (samples, rows, columns), and the tile."""
    samples, rows, columns = tile(pixels, *shape[1:])
    count = ceil_div(shape[0], samples) * ceil_div(shape[1], rows) * ceil_div(shape[2], columns)
    return count, {"BLOCK_SAMPLES": samples, "BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns}


def _image_grid(g: Geometry, blocks: Blocks) -> tuple[int, dict[str, int]]:
    """Programs and blocks of a synthesis: tiles of a phase's pixels, times blocks of channels."""
    n, channels, height, width = g.x.shape
    phase = ceil_div(height, g.stride[0]), ceil_div(width, g.stride[1])
    count, sizes = _tiles((n, *phase), blocks.pixels)
    programs = count * ceil_div(channels, blocks.channels)
    return programs, sizes | {"BLOCK_CHANNELS": blocks.channels, "BLOCK_ATOMS": blocks.atoms}


def _code_grid(g: Geometry, blocks: Blocks) -> tuple[int, dict[str, int]]:
    """Programs and blocks of an analysis: tiles of the code times blocks of atoms."""
    n, atoms, height, width = g.code_size
    count, sizes = _tiles((n, height, width), blocks.pixels)
    return count * ceil_div(atoms, blocks.atoms), sizes | {
        "BLOCK_ATOMS": blocks.atoms,
        "BLOCK_TAPS": blocks.taps,
        "BLOCK_CHANNELS": blocks.channels,
    }


def residual(g: Geometry, z: Tensor, out: Tensor | None = None) -> Tensor:
    """mask (x - A z), written to `out` where that is given."""
    r = g.image() if out is None else out
    if not g.empty:
        blocks = g.blocks("residual")
        programs, sizes = _image_grid(g, blocks)
        images = tensor("x", g.x) | tensor("mask", g.mask) | tensor("r", r)
        launch(residual_kernel, programs, g.x.device, blocks, images | tensor("z", z) | g.arguments() | sizes)
    return r


def step(
    g: Geometry, r: Tensor, y: Tensor | None, z: Tensor | None, lmbda: Tensor, mu: Tensor, step_size: Tensor,
    nonneg: bool, beta: float | None, out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """z+ = prox(y + t A' r), written to `out` where that is given, and y+ = z+ + beta (z+ - z) with a beta.

    y None is zero.
    """
    z_next = g.code() if out is None else out
    y_next = None if beta is None else g.code()
    if not g.empty:
        blocks = g.blocks("fista_step")
        programs, sizes = _code_grid(g, blocks)
        codes = tensor("y", y) | tensor("z", None if beta is None else z)
        codes |= tensor("z_next", z_next) | tensor("y_next", y_next)
        scalars = {"step_size": number(step_size), "beta": float(beta or 0.0), "NONNEG": nonneg}
        scalars |= parameter("lmbda", lmbda) | parameter("mu", mu)
        arguments = tensor("r", r) | codes | scalars | g.arguments() | sizes
        launch(fista_step_kernel, programs, g.x.device, blocks, arguments)
    return z_next, y_next


def threshold_gradient(
    g: Geometry, first: Tensor, first_scale: float, second: Tensor | None, second_scale: float, z: Tensor,
    mu: Tensor, step_size: Tensor, with_sums: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """G, the gradient before the threshold, and (2, N, K): the sums of sign(z) G and of z G over each plane."""
    gradient = g.code()
    if g.empty:
        return gradient, torch.zeros(2, *g.code_size[:2], **g.floats) if with_sums else None
    blocks = g.blocks("threshold_gradient")
    n, atoms, height, width = g.code_size
    pixel_blocks = ceil_div(height * width, blocks.pixels)
    sums = torch.empty(pixel_blocks, 2, n, atoms, **g.floats) if with_sums else None
    arguments = {
        **tensor("first", first),
        "first_scale": float(first_scale),
        **tensor("second", second),
        "second_scale": float(second_scale),
        **tensor("z", z),
        **parameter("mu", mu),
        "step_size": number(step_size),
        **tensor("gradient", gradient),
        "sums": sums,
        "code_size": g.code_size,
        "BLOCK_PIXELS": blocks.pixels,
        "BLOCK_ATOMS": blocks.atoms,
    }
    programs = n * pixel_blocks * ceil_div(atoms, blocks.atoms)
    launch(threshold_gradient_kernel, programs, g.x.device, blocks, arguments)
    return gradient, None if sums is None else sums.sum(0)


def image_gradient(
    g: Geometry, gradient: Tensor, step_size: Tensor, grad_x: Tensor | None, r: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """t mask A(G), added to grad_x too where there is one; and <r, A G> where there is an r."""
    grad_r = g.image()
    if g.empty:
        return grad_r, None if r is None else torch.zeros((), **g.floats)
    blocks = g.blocks("image_gradient")
    programs, sizes = _image_grid(g, blocks)
    products = None if r is None else torch.empty(programs, **g.floats)
    images = tensor("mask", g.mask) | tensor("r", r) | tensor("grad_r", grad_r) | tensor("grad_x", grad_x)
    scalars = {"step_size": number(step_size), "products": products}
    arguments = tensor("g", gradient) | images | scalars | g.arguments() | sizes
    launch(image_gradient_kernel, programs, g.x.device, blocks, arguments)
    return grad_r, None if products is None else products.sum()


def code_gradient(g: Geometry, r: Tensor, base: Tensor | None, base_scale: float) -> Tensor:
    """base_scale base - A' r."""
    gradient = g.code()
    if not g.empty:
        blocks = g.blocks("code_gradient")
        programs, sizes = _code_grid(g, blocks)
        codes = tensor("base", base) | {"base_scale": float(base_scale)} | tensor("gradient", gradient)
        launch(code_gradient_kernel, programs, g.x.device, blocks, tensor("r", r) | codes | g.arguments() | sizes)
    return gradient


def correlation(
    g: Geometry, image: Tensor, code: Tensor, scale: float | Tensor, other: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """scale corr(image, code) - corr(*other), in float32: products that share their reduction."""
    if g.empty:
        return torch.zeros(g.dictionary.shape, **g.floats)
    blocks = g.blocks("correlation")
    n, atoms, height, width = g.code_size
    channels, taps = g.dictionary.shape[1], g.kernel[0] * g.kernel[1]
    products = ceil_div(atoms, blocks.atoms) * ceil_div(channels, blocks.channels) * ceil_div(taps, blocks.taps)
    pixels = n * height * width
    # By shape alone, so that the order of additions, and every bit, is the same at every call.
    wanted = max(1, min(ceil_div(PARTS, products), ceil_div(pixels, 4 * blocks.pixels)))
    pixels_per_part = ceil_div(ceil_div(pixels, wanted), blocks.pixels) * blocks.pixels
    count = ceil_div(pixels, pixels_per_part)
    parts = torch.empty(count, *g.dictionary.shape, **g.floats)
    other_image, other_code = other or (None, None)
    arguments = {
        **tensor("image", image),
        **tensor("code", code),
        "scale": scale,
        **tensor("other_image", other_image),
        **tensor("other_code", other_code),
        "parts": parts,
        "pixels_per_part": pixels_per_part,
        **g.arguments(),
        "BLOCK_ATOMS": blocks.atoms,
        "BLOCK_TAPS": blocks.taps,
        "BLOCK_CHANNELS": blocks.channels,
        "BLOCK_PIXELS": blocks.pixels,
    }
    for name in ("dictionary", "dictionary_strides"):
        del arguments[name]
    launch(correlation_kernel, products * count, g.x.device, blocks, arguments)
    return parts.sum(0)
