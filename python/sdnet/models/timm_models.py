"""The models of this package in timm: timm.create_model("sdnet18", ...)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .registry import MODELS, build
from .resnet import STAGE_WIDTHS, ResNet

# After the stem and after each stage.
INDICES = tuple(range(1 + len(STAGE_WIDTHS)))

# By how much maps there are smaller than the picture.
REDUCTIONS = {"cifar": (1, 1, 2, 4, 8), "imagenet": (2, 4, 8, 16, 32)}


def register() -> None:
    """All but resnet18 and resnet34: timm keeps its own, which have another stem."""
    try:
        from timm.models import register_model
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        return
    for name in MODELS:
        if not name.startswith("resnet"):
            register_model(_entry(name))


def _entry(name: str) -> Callable[..., nn.Module]:
    def entry(
        pretrained: bool = False,
        in_chans: int = 3,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise ValueError(f"timm has no weights of {name}; sdnet.load_pretrained has those that ship")
        if out_indices is not None and not features_only:
            raise ValueError("out_indices are of features_only=True")
        for given in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(given, None)
        model = build(name, in_channels=in_chans, **options)
        if not features_only:
            return model
        return features(model, options.get("stem", "cifar"), INDICES if out_indices is None else out_indices)

    entry.__name__ = name
    entry.__module__ = __name__
    globals()[name] = entry
    return entry


def features(model: nn.Module, stem: str, out_indices: Sequence[int]) -> nn.Module:
    """The maps of a model in place of its logits, as timm's backbones give them.

    Args:
        model: a ResNet or SDNet.
        stem: its stem.
        out_indices: 0, the stem's map before it is halved a second time, and 1 to 4, those of the stages.

    Raises:
        ValueError: the model has no stages, or an index is none of these.

    Returns:
        A timm FeatureListNet: x (N, in_channels, H, W) -> list of maps, whose `feature_info` says how many channels
        they have and by how much they are smaller than x.
    """
    from timm.models import FeatureListNet

    if not isinstance(model, ResNet):
        raise ValueError(f"features_only: {type(model).__name__} has no stages; ResNets and SDNets have")
    if not out_indices or not all(-len(INDICES) <= index < len(INDICES) for index in out_indices):
        raise ValueError(f"out_indices must be some of {INDICES}, or count from the end; got {tuple(out_indices)}")
    width, halved = model.linear.in_features // STAGE_WIDTHS[-1], stem == "imagenet"
    layers = [_child(model, "layer0", -2 if halved else -1), *(_child(model, f"layer{i}", -1) for i in INDICES[1:])]
    model.feature_info = [
        {"num_chs": width * multiple, "reduction": reduction, "module": layer}
        for layer, multiple, reduction in zip(layers, (1, *STAGE_WIDTHS), REDUCTIONS[stem])
    ]
    return FeatureListNet(model, tuple(out_indices), flatten_sequential=True)


def _child(model: nn.Module, layer: str, at: int) -> str:
    names = [name for name, _ in model.get_submodule(layer).named_children()]
    return f"{layer}.{names[at]}"
