"""Which kernel serves a solve: the whole of it on chip, or step after step. The one table of this backend."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import step_weights
from . import library

# The kernels on chip hold x's channels beside each other; more channels are bound by arithmetic, not by memory.
CHANNELS = 4


class Plan(NamedTuple):
    """A tile of codes, the persistent blocks that share them, and a block's bytes of shared memory."""

    rows: int
    columns: int
    blocks: int
    shared_bytes: int


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], n_iter: int, from_code: bool, momentum: bool, backward: bool, element: int,
    limits: tuple[int, int],
) -> Plan | None:  # fmt: skip
    found = torch.ops.csc_cuda.plan(list(shape), n_iter, from_code, momentum, backward, element, *limits)
    return Plan(*found) if found else None


def plan(
    x: Tensor,
    dictionary: Tensor,
    z_shape,
    stride,
    pads,
    n_iter: int,
    momentum: str,
    from_code: bool,
    backward: bool,
) -> Plan | None:
    """How a solve, or its backward, runs on chip; None where it has to go step by step.

    The backward follows no momentum: that acts from the third step on, or the second of a given code.
    """
    if x.shape[1] > CHANNELS:
        return None
    acts = any(step_weights(n_iter, momentum)[:-1])
    if backward and acts:
        return None
    shape = _shape(x, z_shape, dictionary, stride, pads)
    return _plan(shape, n_iter, from_code, acts, backward, x.element_size(), library.limits(x.device))


def _shape(x: Tensor, z_shape, dictionary: Tensor, stride, pads) -> tuple[int, ...]:
    return (*x.shape, *z_shape[1:], *dictionary.shape[2:], *stride, pads[0], pads[2])


@functools.lru_cache(maxsize=1024)
def direct_plan(shape: tuple[int, ...], synthesis: bool, element: int, tensor_cores: bool) -> tuple[int, ...]:
    """Samples, rows and columns of a tile, whether its rows are joined, whether all its taps are met at once, and
    bytes of shared memory: csrc/cuda/direct_layout.h."""
    return tuple(torch.ops.csc_cuda.direct_plan(list(shape), synthesis, element, tensor_cores))


def direct(synthesis: bool, x: Tensor, z: Tensor, dictionary: Tensor, stride, pads, tf32: bool) -> list[int]:
    """The tile of a synthesis or analysis, of images and codes with the shapes of x and z."""
    shape = _shape(x, z.shape, dictionary, stride, pads)
    found = direct_plan(shape, synthesis, x.element_size(), tf32 or x.dtype is not torch.float32)
    if not found:
        tensors = f"an image of {tuple(x.shape)} and a dictionary of {tuple(dictionary.shape)}"
        raise ValueError(f"no tile fits {tensors} at stride {tuple(stride)}")
    return list(found[:5])


def splits(positions: int) -> int:
    """Into how many ranges a sum over positions is split; the same on every device, so that its bits are."""
    return max(1, min(64, positions // 1024))
