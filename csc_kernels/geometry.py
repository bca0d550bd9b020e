"""Sizes of a convolutional dictionary: strides, paddings and the shapes that they imply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Union

import torch

Padding = Union[int, Sequence[int], str]
Stride = Union[int, Sequence[int]]
# The largest stride and padding: from some 2^15 on convolutions in oneDNN end the process.
MOST = 1 << 14
# The most rows or columns of an image that is described by its size alone: products of them fit into int64.
MOST_PIXELS = 1 << 20


class Pads(NamedTuple):
    """Zeros added on each side of the image before the analysis convolution."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def symmetric(self) -> bool:
        return self.top == self.bottom and self.left == self.right


def _is_int(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _pair(name: str, value: Any, minimum: int, maximum: int | None = None) -> tuple[int, int]:
    pair = (value, value) if _is_int(value) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(_is_int, pair)):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if min(pair) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    if maximum is not None and max(pair) > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value!r}")
    return pair[0], pair[1]


def normalize_kernel_size(kernel_size: Stride) -> tuple[int, int]:
    """kernel_size as (rows, columns), each at least 1."""
    return _pair("kernel_size", kernel_size, 1)


def normalize_stride(stride: Stride) -> tuple[int, int]:
    """stride as (rows, columns), each at least 1 and at most MOST."""
    return _pair("stride", stride, 1, MOST)


def normalize_size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of an image, each at least 1 and, where they are no symbols, at most MOST_PIXELS."""
    pair = _pair(name, size, 1)
    if any(isinstance(length, int) and length > MOST_PIXELS for length in pair):
        raise ValueError(f"{name} must be at most {MOST_PIXELS}, got {size!r}")
    return pair


def normalize_padding(padding: Padding, kernel: Sequence[int], stride: tuple[int, int]) -> Pads:
    """padding as four sides.

    "same" (stride 1 only) splits kernel - 1 zeros as torch.nn.Conv2d does: an even kernel has one
    more zero at the bottom and at the right.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return Pads(0, 0, 0, 0)
        if padding != "same":
            raise ValueError(f'padding must be "same", "valid", an int or a pair, got {padding!r}')
        if stride != (1, 1):
            raise ValueError(f'padding="same" needs stride 1, got stride {stride}')
        (rows, columns) = (kernel[0] - 1, kernel[1] - 1)
        return Pads(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    if isinstance(padding, Pads):
        return padding
    rows, columns = _pair("padding", padding, 0, MOST)
    return Pads(rows, rows, columns, columns)


def code_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int]
) -> tuple[int, int]:
    """Rows and columns of the code of an image with `size` rows and columns."""
    top, bottom, left, right = pads
    return (
        (size[0] + top + bottom - kernel[0]) // stride[0] + 1,
        (size[1] + left + right - kernel[1]) // stride[1] + 1,
    )


def step_weights(n_iter: int, momentum: str) -> list[float]:
    """beta_1 .. beta_n of y_(k+1) = z_k + beta_k (z_k - z_(k-1)).

    Beck & Teboulle 2009, (4.2-4.3): t_1 = 1, t_(k+1) = (1 + sqrt(1 + 4 t_k^2)) / 2 and
    beta_k = (t_k - 1) / t_(k+1), so beta_1 is 0. With momentum "none" all are 0.
    """
    if momentum == "none":
        return [0.0] * n_iter
    weights = []
    t = 1.0
    for _ in range(n_iter):
        t_next = (1.0 + (1.0 + 4.0 * t * t) ** 0.5) / 2.0
        weights.append((t - 1.0) / t_next)
        t = t_next
    return weights
