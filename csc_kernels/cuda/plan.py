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
    shape = (*x.shape, *z_shape[1:], *dictionary.shape[2:], *stride, pads[0], pads[2])
    return _plan(shape, n_iter, from_code, acts, backward, x.element_size(), library.limits(x.device))


def splits(positions: int) -> int:
    """Into how many ranges a sum over positions is split; the same on every device, so that its bits are."""
    return max(1, min(64, positions // 1024))
