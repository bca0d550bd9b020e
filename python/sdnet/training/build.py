"""From a recipe to its network and optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UserError
from ..models import Classifier
from .recipe import OptimizerRecipe, Recipe


def build_network(recipe: Recipe, classes: Sequence[str]) -> Classifier:
    """The model of a recipe for pictures in [0, 1], randomly initialised.

    Raises:
        UserError: no such model, or it does not take the options; the message lists what there is.
    """
    model, data = recipe.model, recipe.data
    options = dict(model.options)
    if model.width is not None:
        options["width"] = model.width
    try:
        return Classifier(
            model.name, num_classes=len(classes), mean=list(data.mean), std=list(data.std), options=options,
            classes=list(classes),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}") from None


def build_optimizer(network: nn.Module, options: OptimizerRecipe, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer of all parameters; fused goes over memory once."""
    if options.name == "adam":
        return torch.optim.Adam(network.parameters(), options.rate, weight_decay=options.decay, fused=fused)
    return torch.optim.SGD(
        network.parameters(), options.rate, options.momentum, weight_decay=options.decay,
        nesterov=options.nesterov, fused=fused,
    )  # fmt: skip
