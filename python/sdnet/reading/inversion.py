"""Codes mapped back to pictures, layer by layer (Dai et al. 2022, arXiv 2210.12945, section on visualisation).

A code z describes its layer's input as A z. Where a network is a chain of codes and batch norms, that gives the
layer before, and so on down to the picture, without a decoder and without optimisation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from csc_kernels import CSCConv2d

from ..models import Classifier, ResNet
from ..models.modes import evaluating
from ..models.sdnet import CSCBlock
from ..training.statistics import recorded_codes

Chain = list[tuple[str, nn.Module]]


def _resnet(model: nn.Module) -> ResNet:
    network = model.network if isinstance(model, Classifier) else model
    if not isinstance(network, ResNet):
        raise ValueError(f"only SDNets can be inverted, got a {type(network).__name__}")
    return network


def _chain(network: ResNet) -> Iterator[tuple[str, nn.Module]]:
    """The layers from the picture on, as long as they are codes and batch norms alone."""
    for number, module in network.layer0.named_children():
        if isinstance(module, nn.BatchNorm2d):
            yield f"layer0.{number}", module
        elif hasattr(module, "dn"):
            yield f"layer0.{number}.dn", module.dn
        else:
            return
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for name, block in getattr(network, stage).named_modules(prefix=stage):
            if not isinstance(block, CSCBlock):
                continue
            yield f"{name}.conv1.dn", block.conv1.dn
            yield f"{name}.bn1", block.bn1
            yield f"{name}.conv2.dn", block.conv2.dn
            if block.shortcut is not None:
                # What follows is a sum and a ReLU, which has no inverse; nor does the block's own input.
                return
            yield f"{name}.bn2", block.bn2
        if not hasattr(getattr(network, stage), "layers"):
            return


def invertible_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose codes lead back to the picture: all of an `_all` model without shortcuts.

    With shortcuts these are the layers up to the end of the first block; in SDNet-18 the stem alone.

    >>> from sdnet.models import sdnet18
    >>> invertible_layers(sdnet18(width=4))
    ['layer0.0.dn']
    """
    return [name for name, module in _chain(_resnet(model)) if isinstance(module, CSCConv2d)]


@torch.no_grad()
def invert(model: nn.Module, images: Tensor, layer: str | None = None) -> Tensor:
    """The pictures that the codes of one layer describe.

    Args:
        model: an SDNet, or a Classifier of one. It is evaluated in evaluation mode and left in its own.
        images: (N, C, H, W); of a Classifier in [0, 1].
        layer: one of `invertible_layers(model)`; None is the last.

    Returns:
        Pictures of the images' shape and scale; they may leave the images' range.

    Raises:
        ValueError: the layer's code does not lead back to the picture; the message lists those that do.

    >>> from sdnet.models import sdnet18_all
    >>> model = sdnet18_all(width=4, shortcut=False)
    >>> tuple(invert(model, torch.rand(2, 3, 32, 32), layer="layer2.layers.1.conv2.dn").shape)
    (2, 3, 32, 32)
    """
    network = _resnet(model)
    chain = list(_chain(network))
    names = [name for name, module in chain if isinstance(module, CSCConv2d)]
    if not names:
        raise ValueError("the model has no sparse code that leads back to the picture")
    layer = names[-1] if layer is None else layer
    if layer not in names:
        raise ValueError(f"the code of {layer!r} does not lead back to the picture; those of {', '.join(names)} do")
    with evaluating(model):
        with recorded_codes(network) as codes:
            model(images)
        x = codes[layer][1]
        for name, module in reversed(chain[: [name for name, _ in chain].index(layer) + 1]):
            if isinstance(module, CSCConv2d):
                x = module.reconstruct(x, tuple(codes[name][0].shape[-2:]))
            else:
                x = unnormalised(module, x)
    return x * model.std + model.mean if isinstance(model, Classifier) else x


def unnormalised(norm: nn.BatchNorm2d, y: Tensor) -> Tensor:
    """The input of a batch norm in evaluation mode; its mean where a channel's weight is zero and says nothing."""

    def per_channel(values: Tensor) -> Tensor:
        return values[:, None, None]

    weight = norm.weight if norm.affine else torch.ones_like(norm.running_var)
    bias = norm.bias if norm.affine else torch.zeros_like(norm.running_var)
    scale = torch.where(weight == 0, 0, (norm.running_var + norm.eps).sqrt() / weight)
    return (y - per_channel(bias)) * per_channel(scale) + per_channel(norm.running_mean)
