"""Picture files that do not fit into memory: ImageNet as a folder of classes or as shards, decoded as needed."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..errors import DataError
from ..files import written_aside
from .batches import mixed, random_order
from .decode import SUFFIXES, cache_folder, read_picture

# Shards whose pictures are mixed with one another: so many are read from at a time.
WINDOW = 8
# The test picture is the centre of one whose short side is 256/224 of it, as published.
RESIZE = 256 / 224


class Source(Protocol):
    """Encoded pictures by number."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def keep(self, numbers: numpy.ndarray) -> None:
        """Only these pictures from now on."""
        ...

    def read(self, number: int) -> tuple[bytes, int, str]:
        """Content, label and name."""
        ...

    def order(self, seed: int, epoch: int) -> numpy.ndarray: ...


class Folder:
    """Pictures <root>/<class>/<file>."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root} is no folder: put the pictures there as {root}/<class>/<file>.JPEG")
        self.classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
        found = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted(Path(entry) for entry in os.scandir(root / name) if not entry.is_dir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            raise DataError(f"{root} holds no pictures <class>/<file> ({', '.join(SUFFIXES)})")
        # One array of names instead of a million objects, which every worker would copy page by page.
        self.names = numpy.array([str(path) for path, _ in found])
        self.labels = numpy.array([label for _, label in found], dtype=numpy.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def keep(self, numbers: numpy.ndarray) -> None:
        self.names, self.labels = self.names[numbers], self.labels[numbers]

    def read(self, number: int) -> tuple[bytes, int, str]:
        name = str(self.names[number])
        try:
            return Path(name).read_bytes(), int(self.labels[number]), name
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error.strerror}") from None

    def order(self, seed: int, epoch: int) -> numpy.ndarray:
        return random_order(len(self), seed, epoch)


class Shards:
    """WebDataset shards: tar files in which <key>.jpg and <key>.cls, a number, follow one another.

    The headers are read once, at first use, and kept as an index; pictures are then read by their place, so that
    a run can go on anywhere without reading what it has seen.
    """

    def __init__(self, root: Path, num_classes: int) -> None:
        self.paths = sorted(root.glob("*.tar")) if root.is_dir() else []
        if not self.paths:
            raise DataError(f"{root} holds no shards: put WebDataset's *.tar there, with <key>.jpg and <key>.cls")
        self.classes = tuple(map(str, range(num_classes)))
        parts = [_indexed(path) for path in self.paths]
        self.shard = numpy.concatenate([numpy.full(len(part), i) for i, part in enumerate(parts)])
        self.places = numpy.concatenate(parts)  # start, length, label
        for label in (self.places[:, 2].min(), self.places[:, 2].max()):
            if not 0 <= label < num_classes:
                raise DataError(f"{root} has the label {label}, expected 0 to data.classes - 1 = {num_classes - 1}")

    def __len__(self) -> int:
        return len(self.places)

    def keep(self, numbers: numpy.ndarray) -> None:
        self.shard, self.places = self.shard[numbers], self.places[numbers]

    def read(self, number: int) -> tuple[bytes, int, str]:
        start, length, label = map(int, self.places[number])
        path = self.paths[self.shard[number]]
        try:
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(length)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        return content, label, f"{path}, at byte {start}"

    def order(self, seed: int, epoch: int) -> numpy.ndarray:
        """Shards in random order, and the pictures of every WINDOW of them mixed: reads stay in few files."""
        shards = random_order(len(self.paths), seed, epoch)
        mixed_up = random_order(len(self), seed, epoch)
        rank = numpy.empty(len(self.paths), dtype=numpy.int64)
        rank[shards] = numpy.arange(len(shards)) // WINDOW
        return mixed_up[numpy.argsort(rank[self.shard[mixed_up]], kind="stable")]


def _indexed(path: Path) -> numpy.ndarray:
    """Start, length and label of every picture of a shard, (N, 3); kept in the cache."""
    stat = path.stat()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    kept = cache_folder() / "shards" / f"{path.name}-{place}-{stat.st_size}-{stat.st_mtime_ns}.npy"
    if kept.exists():
        return numpy.load(kept)
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.rpartition(".")
                if f".{suffix.lower()}" in SUFFIXES:
                    pictures[key] = (member.offset_data, member.size)
                elif suffix == "cls":
                    labels[key] = int(archive.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from None
    lacking = sorted(pictures.keys() ^ labels.keys())
    if lacking or not pictures:
        raise DataError(f"{path} is damaged: {lacking[0] if lacking else 'no key'} lacks its picture or its .cls")
    index = numpy.array([(*pictures[key], labels[key]) for key in pictures], dtype=numpy.int64)
    with written_aside(kept) as aside:
        numpy.save(aside, index)
    return index


def limit(source: Source, count: int | None) -> Source:
    """Leave so many pictures, from all over the source: they are sorted by class, or by shard."""
    if count is not None and count < len(source):
        source.keep(numpy.arange(count) * len(source) // count)
    return source


class EncodedTraining(Dataset):
    """Random crops of the pictures, resized to size x size, half of them mirrored."""

    def __init__(self, source: Source, seed: int, size: int, flip: bool) -> None:
        self.source, self.seed = source, seed
        self.transform = v2.Compose(
            [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
        )

    def __len__(self) -> int:
        return len(self.source)

    def order(self, epoch: int) -> numpy.ndarray:
        return self.source.order(self.seed, epoch)

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> tuple[Tensor, Tensor]:
        epoch, numbers = batch

        def transformed(picture: Tensor, number: int) -> Tensor:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(mixed(mixed(self.seed, epoch), number))
                return self.transform(picture)

        return _batch(self.source, numbers, transformed)


class EncodedEvaluation(Dataset):
    """Centre crops of size x size."""

    def __init__(self, source: Source, size: int) -> None:
        self.source = source
        self.transform = v2.Compose([v2.Resize(round(RESIZE * size), antialias=True), v2.CenterCrop(size)])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        return _batch(self.source, numbers, lambda picture, number: self.transform(picture))


def _batch(
    source: Source, numbers: Sequence[int], transformed: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    pictures, labels = [], []
    for number in numbers:
        content, label, name = source.read(number)
        picture = torch.from_numpy(numpy.array(read_picture(content, name))).permute(2, 0, 1)
        pictures.append(transformed(picture, int(number)))
        labels.append(label)
    return torch.stack(pictures), torch.tensor(labels)
