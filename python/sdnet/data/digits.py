"""scikit-learn's digits: 1,797 pictures of 8x8 pixels inside its wheel, so that nothing is downloaded."""

from __future__ import annotations

import numpy
from sklearn.datasets import load_digits

from .arrays import Arrays, Split

TRAINING = 1497  # The rest, 300 pictures, is the test; the writers of the two do not overlap much.


def load() -> Arrays:
    """The digits in 16 grey levels stretched over 8 bits, as RGB of 16x16 pixels.

    Each pixel is doubled so that four stages of stride 2 leave something, and repeated in three channels so that
    every model takes it.
    """
    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype(numpy.uint8)
    images = grey.repeat(2, axis=1).repeat(2, axis=2)[..., None].repeat(3, axis=3)
    labels = digits.target.astype(numpy.int64)
    splits = [Split(images[part], labels[part]) for part in (slice(TRAINING), slice(TRAINING, None))]
    return Arrays(tuple("0123456789"), *splits)
