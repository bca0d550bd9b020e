"""From a recipe's data section to its pictures."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DataError
from ..training.recipe import DataRecipe
from .arrays import Arrays, EvaluationPictures, TrainingPictures
from .batches import Evaluation, Training


@dataclass(frozen=True)
class Data:
    """The classes, in the order of the labels, and the two splits."""

    classes: tuple[str, ...]
    train: Training
    test: Evaluation


def load_data(recipe: DataRecipe, seed: int) -> Data:
    """The pictures of a recipe.

    Raises:
        DataError: they are not there, incomplete or damaged; the message says what to put where.
    """
    if recipe.name in ("image_folder", "shards") and not recipe.random:
        return _encoded(recipe, seed)
    arrays = load_arrays(recipe)
    train, test = (part.sample(recipe.limit) for part in (arrays.train, arrays.test))
    return Data(arrays.classes, TrainingPictures(train, seed, recipe.pad, recipe.flip), EvaluationPictures(test))


def load_arrays(recipe: DataRecipe) -> Arrays:
    """A data set that fits into memory, or random pictures of its shape."""
    if recipe.random:
        from .random_pictures import random_arrays

        return random_arrays(recipe.name, recipe.size, recipe.limit or 1000, recipe.classes)
    root = None if recipe.root is None else recipe.root.expanduser()
    if recipe.name == "digits":
        from . import digits

        return digits.load()
    if recipe.name == "fashion_mnist":
        from . import fashion_mnist

        return fashion_mnist.load(root, recipe.download)
    if recipe.name in ("cifar10", "cifar100"):
        from . import cifar

        return cifar.load(recipe.name, _needed(root, recipe.name), recipe.download)
    raise DataError(f"{recipe.name} does not fit into memory")


def _encoded(recipe: DataRecipe, seed: int) -> Data:
    from . import encoded

    root = _needed(None if recipe.root is None else recipe.root.expanduser(), recipe.name)
    train, test = (
        encoded.Folder(root / part)
        if recipe.name == "image_folder"
        else encoded.Shards(root / part, recipe.classes)
        for part in ("train", "val")
    )
    if train.classes != test.classes:
        raise DataError(f"{root}: train has the classes {train.classes[:5]}..., val {test.classes[:5]}...")
    return Data(
        train.classes,
        encoded.EncodedTraining(encoded.limit(train, recipe.limit), seed, recipe.size, recipe.flip),
        encoded.EncodedEvaluation(encoded.limit(test, recipe.limit), recipe.size),
    )


def _needed(root, name: str):
    if root is None:
        raise DataError(f"{name} needs --data.root, the folder that holds it or that it is downloaded to")
    return root
