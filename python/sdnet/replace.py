"""Convolutions of any model become sparse coding layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from csc_kernels import CSCConv2d


@dataclass(frozen=True)
class Replacement:
    """One convolution that matched: replaced, or left for a reason."""

    name: str
    shape: tuple[int, ...]
    reason: str | None


def replace_convs(
    model: nn.Module,
    layers: str | Sequence[str] = "*",
    *,
    lmbda: float = 0.1,
    n_iter: int = 2,
    nonneg: bool = True,
    show: bool = True,
) -> list[Replacement]:
    """Turn convolutions into CSC layers, in place, with their weights as first dictionaries.

    The atoms are the weight's filters scaled to unit norm. What CSC layers do not have is left as it is, with
    the reason in the table: groups, dilation, other padding modes than zeros, hooks, weights of zeros. A bias is
    kept behind the code, and convolutions that share a weight still do. A code is kept for the backward, which no
    module may change in place: all of the model that have inplace=True get False.

    Args:
        model: any module but a convolution itself.
        layers: patterns of names as of files, such as "stem.*" or "*.conv1"; a name that matches one is taken.
        lmbda, n_iter, nonneg: see `csc_kernels.CSCConv2d`.
        show: print a table of what was replaced.

    Returns:
        One entry for every convolution that matched.

    Raises:
        ValueError: a pattern matches no convolution, or the model is a convolution itself.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    >>> [(entry.name, entry.reason) for entry in replace_convs(model, "*", show=False)]
    [('0', None), ('2', 'has 8 groups')]
    """
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    # With the names of convolutions that stand in several places, which all get one layer.
    convs = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Conv2d)
    }
    if "" in convs:
        raise ValueError("the model is a convolution itself: put it into an nn.Sequential")
    unmatched = [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in convs)]
    if unmatched or not patterns:
        raise ValueError(f"no convolution matches {unmatched}; the model has {', '.join(convs) or 'none'}")
    done: list[Replacement] = []
    layers_of: dict[nn.Conv2d, nn.Module] = {}
    weights: dict[nn.Parameter, nn.Parameter] = {}
    places: dict[str, nn.Module] = {}
    for name, conv in convs.items():
        if not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        reason = _unsupported(conv)
        if reason is None:
            if conv not in layers_of:
                layers_of[conv] = _as_code(conv, weights, lmbda=lmbda, n_iter=n_iter, nonneg=nonneg)
            places[name] = layers_of[conv]
        done.append(Replacement(name, tuple(conv.weight.shape), reason))
    for name, layer in places.items():
        model.set_submodule(name, layer)
    for module in model.modules() if places else ():
        if getattr(module, "inplace", False) is True and not isinstance(module, torch.jit.ScriptModule):
            module.inplace = False
    if show:
        Console().print(_table(done))
    return done


def _unsupported(conv: nn.Conv2d) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"is a {type(conv).__name__}"
    if conv.groups != 1:
        return f"has {conv.groups} groups"
    if conv.dilation != (1, 1):
        return f"has dilation {conv.dilation}"
    if conv.padding_mode != "zeros":
        return f"pads with {conv.padding_mode}"
    if conv._forward_pre_hooks or conv._forward_hooks:
        return "has hooks"
    if not conv.weight.is_floating_point():
        return f"is of {conv.weight.dtype}"
    if _is_zero(conv.weight):
        return "is zero, which has no direction"
    return None


def _is_zero(weight: torch.Tensor) -> bool:
    try:
        return not weight.any()
    except RuntimeError:  # On meta, or of a fake, there are no numbers.
        return False


class ChannelBias(nn.Module):
    """The bias of a replaced convolution, which a code has no place for."""

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias[:, None, None]


def _as_code(
    conv: nn.Conv2d, weights: dict[nn.Parameter, nn.Parameter], **options: float | int | bool
) -> nn.Module:
    """The layer of a convolution; `weights` are those made so far, which convolutions may share."""
    layer = CSCConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        device=conv.weight.device, dtype=conv.weight.dtype, **options,
    )  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(conv.weight)
        layer.weight.copy_(layer.dictionary())
    layer.weight.requires_grad_(conv.weight.requires_grad)
    layer.weight = weights.setdefault(conv.weight, layer.weight)
    made = layer if conv.bias is None else nn.Sequential(layer, ChannelBias(conv.bias))
    return made.train(conv.training)


def _table(done: Sequence[Replacement]) -> Table:
    table = Table(title="convolutions to sparse codes")
    for heading in ("layer", "weight", "now"):
        table.add_column(heading)
    for entry in done:
        now = "CSCConv2d" if entry.reason is None else f"left: {entry.reason}"
        table.add_row(entry.name, "x".join(map(str, entry.shape)), now)
    return table
