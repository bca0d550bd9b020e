"""Labelled pictures for evaluation and for calibration."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy
import torch
from torch import Tensor, nn

from ..data.arrays import Arrays, Split
from ..data.load import load_arrays
from ..errors import DataError
from ..training.recipe import DataName, DataRecipe

KNOWN = ("digits", "fashion_mnist", "cifar10", "cifar100")


@dataclass(frozen=True)
class Labelled:
    """Pictures, uint8 (N, C, H, W), and labels (N,)."""

    pictures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the pictures and labels: rows of others are not of these."""
        found = hashlib.sha256()
        for tensor in (self.pictures, self.labels):
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:12]


def arrays(name: str, root: Path | None) -> Arrays:
    """A data set by name; digits need no root.

    Raises:
        DataError: no such data set, or it is not there.
    """
    if name not in KNOWN:
        raise DataError(f"no data set {name!r}; there is {', '.join(KNOWN)}")
    return load_arrays(DataRecipe(name=cast(DataName, name), root=root))


def spread(split: Split, count: int) -> Labelled:
    """`count` pictures at even distances, as splits may be sorted by class; all where there are no more."""
    chosen = spread_numbers(len(split), count)
    pictures = torch.from_numpy(numpy.array(split.images[chosen])).permute(0, 3, 1, 2).contiguous()
    return Labelled(pictures, torch.from_numpy(split.labels[chosen]))


def spread_numbers(size: int, count: int) -> numpy.ndarray:
    """Numbers below `size` at even distances, the first one included."""
    if count < 1:
        raise DataError(f"the number of pictures must be at least 1, got {count}")
    count = min(count, size)
    return numpy.arange(count) * size // count


def check_classes(model: nn.Module, data: Arrays) -> None:
    """Raises DataError where a model knows other classes than the data."""
    known = getattr(model, "classes", ())
    if known and tuple(known) != tuple(data.classes):
        raise DataError(f"the model knows {', '.join(known[:4])}..., the data {', '.join(data.classes[:4])}...")


def batches(pictures: Tensor, size: int = 250) -> list[Tensor]:
    """Batches of floating point in [0, 1], channels last, of uint8 pictures."""
    return [part.contiguous(memory_format=torch.channels_last) / 255 for part in pictures.split(size)]
