"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): torchvision's download, or picture files in a folder or archive."""

from __future__ import annotations

from pathlib import Path

import numpy
from torchvision import datasets

from ..errors import DataError
from .arrays import Arrays, Split
from .decode import decoded

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_CLASSES = 100
_TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def load(name: str, root: Path, download: bool) -> Arrays:
    """CIFAR under `root`.

    root is torchvision's folder (which holds cifar-10-batches-py or cifar-100-python), a folder that holds
    train/<class>/ and test/<class>/, or, for CIFAR-10, a tar archive of that.

    Raises:
        DataError: it is none of these, or damaged; the message says what to put where.
    """
    kind = _TORCHVISION[name]
    if root.is_file():
        return _from_pictures(name, root)
    for folder in (root, root / name):
        if (folder / "train").is_dir():
            return _from_pictures(name, folder)
    try:
        train, test = (kind(root, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(
            f"no {name} in {root} ({error}). Put there {kind.url} ({kind.filename}) unpacked as "
            f"{root / kind.base_folder}, or pass --data.download true, or point --data.root to a folder "
            f"{'or tar archive ' if name == 'cifar10' else ''}of pictures train/<class>/*.png, test/<class>/*.png"
        ) from None
    splits = [Split(part.data, numpy.asarray(part.targets, dtype=numpy.int64)) for part in (train, test)]
    return Arrays(tuple(train.classes), *splits)


def _from_pictures(name: str, source: Path) -> Arrays:
    if name == "cifar10":
        classes = CIFAR10_CLASSES
    elif source.is_file():
        raise DataError(f"{name} is read from a folder of pictures, not from an archive: unpack {source}")
    else:
        classes = tuple(sorted(path.name for path in (source / "train").iterdir() if path.is_dir()))
        if len(classes) != CIFAR100_CLASSES:
            raise DataError(f"{source / 'train'} has {len(classes)} classes, {name} has {CIFAR100_CLASSES}")
    splits = decoded(source, classes, (32, 32))
    missing = {"train", "test"} - set(splits)
    if missing:
        raise DataError(f"{source} has no pictures under {' and '.join(sorted(missing))}/<class>/")
    return Arrays(tuple(classes), splits["train"], splits["test"])
