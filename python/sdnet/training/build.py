"""From a recipe to its network and optimizer."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from .. import models
from ..errors import UserError
from ..models.normalized import Normalized
from .recipe import OptimizerRecipe, Recipe

BUILDERS = {
    name: getattr(models, name) for name in ("resnet18", "resnet34", "sdnet18", "sdnet34", "sdnet18_all", "sdnet34_all")
}


def build_network(recipe: Recipe, num_classes: int) -> Normalized:
    """The model of a recipe for pictures in [0, 1], randomly initialised.

    Raises:
        UserError: no such model, or it does not take the options; the message lists what there is.
    """
    model = recipe.model
    if model.name not in BUILDERS:
        raise UserError(f"model.name must be one of {', '.join(sorted(BUILDERS))}; got {model.name!r}")
    build = BUILDERS[model.name]
    options = dict(model.options)
    if model.width is not None:
        options["width"] = model.width
    known = inspect.signature(build).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"{model.name} takes no {', '.join(unknown)}; model.options may be {', '.join(known)}")
    try:
        return Normalized(build(num_classes=num_classes, **options), recipe.data.mean, recipe.data.std)
    except (TypeError, ValueError) as error:
        raise UserError(f"{model.name}: {error}") from None


def build_optimizer(network: nn.Module, options: OptimizerRecipe) -> torch.optim.Optimizer:
    """The optimizer of all parameters; fused, which goes over memory once."""
    if options.name == "adam":
        return torch.optim.Adam(network.parameters(), options.rate, weight_decay=options.decay, fused=True)
    return torch.optim.SGD(
        network.parameters(), options.rate, options.momentum, weight_decay=options.decay,
        nesterov=options.nesterov, fused=True,
    )  # fmt: skip
