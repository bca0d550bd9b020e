"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .arrays import Arrays, EvaluationPictures, Split, TrainingBatches, TrainingPictures, evaluation_batches

__all__ = [
    "Arrays",
    "EvaluationPictures",
    "Split",
    "TrainingBatches",
    "TrainingPictures",
    "evaluation_batches",
    "load_arrays",
]


def load_arrays(name: str, root: Path | None, download: bool) -> Arrays:
    """A data set that fits into memory.

    Raises:
        DataError: it is not there, incomplete or damaged; the message says what to put where.
    """
    if name == "digits":
        from .digits import load

        return load()
    if root is None:
        raise DataError(f"{name} needs --data.root, the folder that holds it or that it is downloaded to")
    from . import cifar

    return cifar.load(name, root.expanduser(), download)
