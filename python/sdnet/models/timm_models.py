"""The models of this package in timm: timm.create_model("sdnet18", ...)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .registry import MODELS, build
from .resnet import STAGE_WIDTHS, ResNet

# Of the maps after the stem and after each stage, and by how much those are smaller than the picture.
INDICES = tuple(range(1 + len(STAGE_WIDTHS)))
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
        out_indices: int | Sequence[int] | None = None,
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise ValueError(f"timm has no weights of {name}; sdnet.load_pretrained has those that ship")
        if out_indices is not None and not features_only:
            raise ValueError("out_indices are of features_only=True")
        for given in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(given, None)
        model = build(name, **{"in_channels": in_chans} | options)
        return features(model, INDICES if out_indices is None else out_indices) if features_only else model

    entry.__name__ = name
    entry.__module__ = __name__
    globals()[name] = entry
    return entry


def features(model: nn.Module, out_indices: int | Sequence[int] = INDICES) -> nn.Module:
    """A backbone of a model's own modules that gives maps in place of logits, as timm's do.

    Args:
        model: a ResNet or SDNet, trained or not.
        out_indices: 0, the stem's map before it is halved a second time, and 1 to 4, those of the stages, or
            counted from the end; or a number, of the last so many.

    Raises:
        ValueError: the model has no stages, or an index is none of these or given twice.

    Returns:
        A timm FeatureListNet: x (N, in_channels, H, W) -> list of maps in the order of the network. Its
        `feature_info` says how many channels they have and by how much they are smaller than x. It loads the
        model's state_dict too.
    """
    from timm.models import FeatureListNet

    if not isinstance(model, ResNet):
        raise ValueError(f"features_only: {type(model).__name__} has no stages; ResNets and SDNets have")
    given = INDICES[-out_indices:] if isinstance(out_indices, int) and out_indices in range(1, 6) else out_indices
    if isinstance(given, int) or not given or not all(-len(INDICES) <= index < len(INDICES) for index in given):
        raise ValueError(f"out_indices must be some of {INDICES}, or count from the end; got {out_indices}")
    indices = sorted({index % len(INDICES) for index in given})
    if len(indices) < len(given):
        raise ValueError(f"out_indices must differ, got {out_indices}")
    first = model.layer0[0]
    stem = "cifar" if getattr(first, "dn", first).stride == (1, 1) else "imagenet"
    layers = [_child(model, "layer0", -1 if stem == "cifar" else -2)]
    layers += [_child(model, f"layer{stage}", -1) for stage in INDICES[1:]]
    width = model.linear.in_features // STAGE_WIDTHS[-1]
    model.feature_info = [
        {"num_chs": width * multiple, "reduction": reduction, "module": layer}
        for layer, multiple, reduction in zip(layers, (1, *STAGE_WIDTHS), REDUCTIONS[stem])
    ]
    backbone = FeatureListNet(model, tuple(indices), flatten_sequential=True)
    backbone.register_load_state_dict_pre_hook(_take_whole)
    return backbone


def _child(model: nn.Module, layer: str, at: int) -> str:
    names = [name for name, _ in model.get_submodule(layer).named_children()]
    return f"{layer}.{names[at]}"


def _take_whole(backbone: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Of the names of a whole model those of the backbone, layer0.0.dn.weight as layer0_0.dn.weight."""
    if any(name.startswith(f"{prefix}layer0_") for name in state_dict):
        return
    for name in list(state_dict):
        layer, _, rest = name.removeprefix(prefix).partition(".")
        child, _, rest = rest.partition(".")
        if name.startswith(prefix) and layer.startswith(("layer", "linear")):
            value = state_dict.pop(name)
            if f"{layer}_{child}" in backbone:
                state_dict[f"{prefix}{layer}_{child}.{rest}"] = value
