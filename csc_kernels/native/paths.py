"""Which way a wide layer's convolutions are computed: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# "direct": oneDNN's or torch's convolutions. "f2", "f4": Winograd's with tiles of 2 x 2 and 4 x 4 outputs.
PATHS = ("direct", "f2", "f4")
_forced: str | None = None


@contextmanager
def use_path(name: str) -> Iterator[None]:
    """Compute every wide layer that a path fits with that path until the context ends, in the whole process.

    For tests and benchmarks: neither speed nor the precision that torch was asked for is looked at. Winograd's
    then serve float64 as well.
    """
    global _forced
    if name not in PATHS:
        raise ValueError(f"path must be one of {PATHS}, got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def forces_float64() -> bool:
    """Whether wide layers serve float64: only where one of Winograd's paths is forced."""
    return _forced in ("f2", "f4")


def fits_winograd(dictionary: Tensor, stride: Sequence[int]) -> bool:
    """Whether a dictionary has the shape that Winograd's tiles are made for."""
    dtypes = (torch.float32, torch.float64) if forces_float64() else (torch.float32,)
    return dictionary.dtype in dtypes and tuple(dictionary.shape[2:]) == (3, 3) and list(stride) == [1, 1]


def choose_path(dictionary: Tensor, stride: Sequence[int], z_size: Sequence[int]) -> str:
    """The fastest path that the caller allows, for codes of `z_size`.

    F(2x2, 3x3) is as precise as a direct convolution. Its tiles and vectors are padded to whole ones; measured, it
    does 1.7 times as many useful products a second where nothing is.
    """
    if not fits_winograd(dictionary, stride):
        return "direct"
    if _forced is not None:
        return _forced
    lanes = torch.ops.csc_native.winograd_lanes()
    done = needed = 1
    for channels in dictionary.shape[:2]:
        done, needed = done * -(-channels // lanes) * lanes, needed * channels
    for size in z_size:
        done, needed = done * -(-size // 2) * 2, needed * size
    return "f2" if done < 1.5 * needed else "direct"
