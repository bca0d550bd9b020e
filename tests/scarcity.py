"""Memory that runs out in the middle of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def memory_for(allocations: int) -> Iterator[None]:
    """torch.empty runs out of memory after so many calls."""
    empty, left = torch.empty, iter(range(allocations))

    def scarce(*shape: Any, **options: Any) -> Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("played")
        return empty(*shape, **options)

    with mock.patch.object(torch, "empty", scarce):
        yield


def assert_unchanged_by_scarcity(compute: Callable[[], Sequence[Tensor]]) -> None:
    """Whichever allocation fails, the same call computes the same afterwards."""
    expected, allocations = compute(), 0
    while True:
        try:
            with memory_for(allocations):
                compute()
            break
        except torch.OutOfMemoryError:
            allocations += 1
    assert allocations > 1
    for found, wanted in zip(compute(), expected):
        assert torch.equal(found, wanted)
