"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): Debian's package dataset-fashion-mnist, or a download."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy
from torchvision.datasets import FashionMNIST

from ..errors import DataError
from .arrays import Arrays, Split

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# An idx file begins with zero, zero, the type (8: uint8), the number of axes, and their lengths, big-endian int32.
UINT8 = 8


def load(root: Path | None, download: bool) -> Arrays:
    """70,000 grey pictures of 28x28 pixels, as RGB.

    Args:
        root: folder of the four *-ubyte.gz files, or what torchvision downloads to; None: Debian's.

    Raises:
        DataError: they are not there or damaged; the message says what to put where.
    """
    folder = DEBIAN if root is None else root
    if download and root is not None:
        try:
            FashionMNIST(root, download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f"Fashion-MNIST could not be downloaded to {root}: {error}") from None
    for below in (folder, folder / "FashionMNIST" / "raw"):
        if (below / "train-images-idx3-ubyte.gz").exists():
            splits = [_split(below, name) for name in ("train", "t10k")]
            return Arrays(tuple(FashionMNIST.classes), *splits)
    raise DataError(
        f"no Fashion-MNIST in {folder}: install Debian's package dataset-fashion-mnist, or pass "
        "--data.root DIR --data.download true, or put the four files *-ubyte.gz of "
        f"{FashionMNIST.mirrors[0]} into --data.root"
    )


def _split(folder: Path, name: str) -> Split:
    images = _read(folder / f"{name}-images-idx3-ubyte.gz", 3)[..., None].repeat(3, axis=3)
    labels = _read(folder / f"{name}-labels-idx1-ubyte.gz", 1).astype(numpy.int64)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {name} has {len(images)} pictures and {len(labels)} labels")
    return Split(images, labels)


def _read(path: Path, axes: int) -> numpy.ndarray:
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is missing or damaged ({error}): download it again") from None
    header = 4 + 4 * axes
    shape = tuple(numpy.frombuffer(content[4:header], dtype=">i4")) if len(content) >= header else ()
    if content[:4] != bytes((0, 0, UINT8, axes)) or len(content) != header + numpy.prod(shape, dtype=int):
        raise DataError(f"{path} is no idx file of {axes} axes: download it again")
    return numpy.frombuffer(content, dtype=numpy.uint8, offset=header).reshape(shape)
