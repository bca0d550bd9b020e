"""Labelled pictures as arrays, and batches of them that depend on nothing but (seed, epoch, position).

A loader that holds no state can go on anywhere: which pictures batch b of epoch e holds, and how each is
cropped, follows from their numbers alone, for any number of workers and processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError


@dataclass(frozen=True)
class Split:
    """Pictures (N, H, W, C), uint8 and possibly memory-mapped, and their labels (N,), int64."""

    images: numpy.ndarray
    labels: numpy.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int) -> Split:
        """The first `count` pictures."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Arrays:
    """A data set that fits into memory or into one mapped file."""

    classes: tuple[str, ...]
    train: Split
    test: Split


def random_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch, a function of seed and epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mixed(seed, epoch)))


def _mixed(seed: int, epoch: int) -> int:
    """One seed for each (seed, epoch) below 2^31 epochs; generators spread it over their state."""
    return (seed << 31) + epoch


def crop_and_flip(images: Tensor, draws: Tensor, pad: int, flip: bool) -> Tensor:
    """Each picture (N, C, H, W), with `pad` zeros around it, cut at its own place, and half of them mirrored.

    draws: (N, 3) in [0, 1): of the row, the column and the mirror.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (pad,) * 4)
    top, left = (draws[:, :2] * (2 * pad + 1)).long().unbind(1)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    if flip:
        columns = torch.where(draws[:, 2, None] < 0.5, columns.flip(1), columns)
    sample = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


class TrainingPictures(Dataset):
    """Batches of a split by (epoch, numbers of the pictures): uint8 pictures (N, C, H, W) and labels."""

    def __init__(self, split: Split, seed: int, pad: int, flip: bool) -> None:
        self.split, self.seed, self.pad, self.flip = split, seed, pad, flip
        self._epoch = -1
        self._draws = torch.empty(0)

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> tuple[Tensor, Tensor]:
        epoch, numbers = batch
        images, labels = gather(self.split, numbers)
        if self.pad == 0 and not self.flip:
            return images, labels
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
            self._epoch, self._draws = epoch, torch.rand(len(self.split), 3, generator=generator)
        return crop_and_flip(images, self._draws[torch.as_tensor(numbers)], self.pad, self.flip), labels


def gather(split: Split, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pictures by number, (N, C, H, W), and their labels."""
    images = torch.from_numpy(numpy.ascontiguousarray(split.images[numbers]))
    return images.permute(0, 3, 1, 2), torch.from_numpy(split.labels[numbers])


class TrainingBatches:
    """The batches of one epoch after another.

    Args:
        batch: pictures of one step over all processes; every process gets its share of each batch. What is
            left of an epoch after whole batches is not seen in it.
        rank, processes: which share.
        workers: processes that prepare batches; 0 prepares them in the training process.
    """

    def __init__(
        self, pictures: TrainingPictures, batch: int, workers: int, rank: int = 0, processes: int = 1
    ) -> None:
        if batch % processes:
            raise DataError(f"a batch of {batch} pictures cannot be shared equally by {processes} processes")
        if batch > len(pictures.split):
            raise DataError(f"a batch of {batch} pictures is more than the {len(pictures.split)} of the data set")
        self.pictures, self.batch, self.workers = pictures, batch, workers
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.pictures.split) // self.batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `first` on."""
        order = random_order(len(self.pictures.split), self.pictures.seed, epoch).numpy()
        batches = [
            (epoch, order[start : start + self.batch][self.rank :: self.processes])
            for start in range(first * self.batch, len(self) * self.batch, self.batch)
        ]
        return iter(_loader(self.pictures, batches, self.workers))


class EvaluationPictures(Dataset):
    """Batches of a split as they are, by the numbers of the pictures."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        return gather(self.split, numbers)


def evaluation_batches(split: Split, batch: int, rank: int = 0, processes: int = 1) -> DataLoader:
    """A process's share of a split, in order."""
    numbers = numpy.arange(len(split))[rank::processes]
    return _loader(EvaluationPictures(split), [numbers[i : i + batch] for i in range(0, len(numbers), batch)], 0)


def _loader(pictures: Dataset, batches: list[Any], workers: int) -> DataLoader:
    """Whole batches are the items: one gather each, instead of one per picture."""
    return DataLoader(pictures, sampler=batches, batch_size=None, num_workers=workers)
