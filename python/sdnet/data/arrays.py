"""Labelled pictures as arrays in memory or in one mapped file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from .batches import mixed, random_order


@dataclass(frozen=True)
class Split:
    """Pictures (N, H, W, C), uint8 and possibly memory-mapped, and their labels (N,), int64."""

    images: numpy.ndarray
    labels: numpy.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, count: int | None) -> Split:
        """So many pictures drawn from all over, the same ones every time; None: all of them."""
        if count is None or count >= len(self):
            return self
        kept = numpy.sort(numpy.random.default_rng(0).permutation(len(self))[:count])
        return Split(self.images[kept], self.labels[kept])


@dataclass(frozen=True)
class Arrays:
    """A data set that fits into memory or into one mapped file."""

    classes: tuple[str, ...]
    train: Split
    test: Split


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

    def __len__(self) -> int:
        return len(self.split)

    def order(self, epoch: int) -> numpy.ndarray:
        """The numbers of all pictures in the order of an epoch."""
        return random_order(len(self.split), self.seed, epoch)

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> tuple[Tensor, Tensor]:
        epoch, numbers = batch
        images, labels = gather(self.split, numbers)
        if self.pad == 0 and not self.flip:
            return images, labels
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
            self._epoch, self._draws = epoch, torch.rand(len(self.split), 3, generator=generator)
        return crop_and_flip(images, self._draws[torch.as_tensor(numbers)], self.pad, self.flip), labels


def gather(split: Split, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pictures by number, (N, C, H, W), and their labels."""
    images = torch.from_numpy(numpy.ascontiguousarray(split.images[numbers]))
    return images.permute(0, 3, 1, 2), torch.from_numpy(split.labels[numbers])


class EvaluationPictures(Dataset):
    """Batches of a split as they are, by the numbers of the pictures."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        return gather(self.split, numbers)
