"""The models of this package by name, here and in timm."""

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


def _register_with_timm() -> None:
    """timm.create_model("sdnet18", ...). timm keeps its own resnet18 and resnet34, which have another stem."""
    try:
        from timm.models import register_model
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        return
    for name in MODELS:
        if not name.startswith("resnet"):
            register_model(_timm_entry(name))


def _timm_entry(name: str) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise ValueError(f"timm has no weights of {name}; sdnet.load_pretrained has those that ship")
        for given in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(given, None)
        return build(name, **options)

    entry.__name__ = name
    entry.__module__ = __name__
    globals()[name] = entry
    return entry


_register_with_timm()
