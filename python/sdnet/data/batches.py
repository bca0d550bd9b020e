"""Batches that depend on nothing but (seed, epoch, position).

A loader that holds no state can go on anywhere: which pictures batch b of epoch e holds, and how each of them is
cropped, follows from these numbers alone, for any number of workers and processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import DataError


class Training(Protocol):
    """Training pictures: batches by (epoch, numbers), uint8 (N, C, H, W) and labels (N,)."""

    def __len__(self) -> int: ...

    def order(self, epoch: int) -> numpy.ndarray: ...

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> tuple[Tensor, Tensor]: ...


class Evaluation(Protocol):
    """Test pictures: batches by numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]: ...


def mixed(seed: int, epoch: int) -> int:
    """One seed for each seed and epoch (below 2^31); generators spread it over their state."""
    value = (seed << 31) + epoch
    # Generators take 64 bits.
    return value if value < 2**64 else int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:8], "little")


def random_order(count: int, seed: int, epoch: int) -> numpy.ndarray:
    """The numbers below `count` in the order of an epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed(seed, epoch))).numpy()


class TrainingBatches:
    """The batches of one epoch after another.

    Args:
        batch: pictures of one step over all processes; every process gets its share of each batch. What is
            left of an epoch after whole batches is not seen in it.
        workers: processes that prepare batches; 0 prepares them in the training process.
        rank, processes: which share.

    Raises:
        DataError: the batch is larger than the data set, or cannot be shared equally.
    """

    def __init__(self, pictures: Training, batch: int, workers: int, rank: int = 0, processes: int = 1) -> None:
        if batch < 1 or batch % processes:
            raise DataError(f"a batch of {batch} pictures cannot be shared equally by {processes} processes")
        if batch > len(pictures):
            raise DataError(f"a batch of {batch} pictures is more than the {len(pictures)} of the data set")
        if workers < 0:
            raise DataError(f"data.workers must be at least 0, got {workers}")
        self.pictures, self.batch, self.workers = pictures, batch, workers
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.pictures) // self.batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the batches of an epoch from number `first` on."""
        order = self.pictures.order(epoch)
        batches = [
            (epoch, order[start : start + self.batch][self.rank :: self.processes])
            for start in range(first * self.batch, len(self) * self.batch, self.batch)
        ]
        yield from _loaded(self.pictures, batches, self.workers)


class EvaluationBatches:
    """A process's share of the test pictures, in order."""

    def __init__(self, pictures: Evaluation, batch: int, workers: int, rank: int = 0, processes: int = 1) -> None:
        numbers = numpy.arange(len(pictures))[rank::processes]
        self.batches = [numbers[i : i + batch] for i in range(0, len(numbers), batch)]
        self.pictures, self.workers = pictures, workers

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from _loaded(self.pictures, self.batches, self.workers)


def _loaded(pictures: Any, batches: list[Any], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches are the items of the loader: one gather each, instead of one per picture."""
    # With its own generator the loader leaves the global one alone, which the network's dropout goes on with.
    generator = torch.Generator()
    try:
        yield from DataLoader(pictures, sampler=batches, batch_size=None, num_workers=workers, generator=generator)
    except DataError as error:
        # A worker's error comes with the worker's trace before its message.
        raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from None
