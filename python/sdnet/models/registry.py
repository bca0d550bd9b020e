"""The models of this package by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .mdeq import mdeq_small
from .resnet import resnet18, resnet34
from .scn import scn
from .sdnet import sdnet18, sdnet18_all, sdnet34, sdnet34_all

MODELS: dict[str, Callable[..., nn.Module]] = {
    build.__name__: build
    for build in (resnet18, resnet34, sdnet18, sdnet34, sdnet18_all, sdnet34_all, mdeq_small, scn)
}


def build(name: str, **options: Any) -> nn.Module:
    """A model by name, randomly initialised.

    Raises:
        ValueError: there is no such model, or it has no such option; the message lists what there is.

    >>> type(build("sdnet18", num_classes=100)).__name__
    'ResNet'
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(sorted(MODELS))}; got {name!r}")
    known = inspect.signature(MODELS[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return MODELS[name](**options)
