"""Recipes by name or file, with any field overridden on the command line."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from jsonargparse import ArgumentParser

from ..errors import UserError
from .recipe import Recipe


def shipped() -> dict[str, Path]:
    """The recipes of this package, by name."""
    folder = Path(str(resources.files("sdnet") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_file(recipe: str) -> Path:
    """The file of a recipe, which is a shipped name or a path.

    Raises:
        UserError: it is neither; the message lists the names.
    """
    names = shipped()
    if recipe.startswith("-"):
        raise UserError(f"the recipe comes first, its fields behind it: sdnet train RECIPE {recipe} ...")
    if recipe in names:
        return names[recipe]
    if Path(recipe).is_file():
        return Path(recipe)
    raise UserError(f"no recipe {recipe!r}: neither a file nor one of {', '.join(names)}")


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe and what the command line sets otherwise, such as ["--data.batch", "64"].

    Raises:
        UserError: no such recipe, an unknown field, or a value of the wrong type; the message names it.

    >>> read_recipe("digits", ["--epochs", "3"]).epochs
    3
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--file", action="config")
    parser.add_class_arguments(Recipe)
    path = recipe_file(recipe)
    try:
        values = parser.parse_args(["--file", str(path), *overrides])
    except (ArgumentError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe}: {error}") from None
    values.pop("file")
    return Recipe(**vars(parser.instantiate(values)))


def smoke(recipe: Recipe) -> Recipe:
    """A minute's trial of a recipe: its model and settings on a few random pictures of its data set's shape."""
    batch = min(recipe.data.batch, 16)
    data = replace(recipe.data, root=None, random=True, batch=batch, workers=0, limit=3 * batch)
    return replace(recipe, data=data, epochs=2, checkpoint_steps=2)
