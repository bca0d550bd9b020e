"""Random pictures with the shape and classes of a data set, for trials on machines without it."""

from __future__ import annotations

import numpy

from .arrays import Arrays, Split

# Rows and columns (None: the recipe's size), and number of classes (of shards the recipe's).
SHAPES = {
    "digits": (16, 10), "fashion_mnist": (28, 10), "cifar10": (32, 10), "cifar100": (32, 100),
    "image_folder": (None, 1000), "shards": (None, 0),
}  # fmt: skip


def random_arrays(name: str, size: int, count: int, shard_classes: int) -> Arrays:
    """`count` pictures per split."""
    fixed, classes = SHAPES[name]
    if name == "shards":
        classes = shard_classes
    size = size if fixed is None else fixed
    generator = numpy.random.default_rng(0)

    def split() -> Split:
        images = generator.integers(256, size=(count, size, size, 3), dtype=numpy.uint8)
        return Split(images, generator.integers(classes, size=count))

    return Arrays(tuple(map(str, range(classes))), split(), split())
