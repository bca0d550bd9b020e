"""SDNet (Dai et al., NeurIPS 2022, arXiv 2210.12945): ResNets with sparse codes where convolutions stood.

Modules have the names of the published checkpoints: the layer is `dn` inside its place, and the stages of the
`_all` models hold their blocks under `layers`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from csc_kernels import CSCConv2d

from .resnet import BLOCKS_18, BLOCKS_34, BasicBlock, ResNet, check_counts, make_stages, projection, stem_geometry


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _csc(
    in_channels: int, atoms: int, kernel: int, stride: int, padding: int, options: dict[str, Any]
) -> nn.Sequential:
    return _named(dn=CSCConv2d(in_channels, atoms, kernel, stride=stride, padding=padding, **options))


class CSCBlock(nn.Module):
    """Two sparse codes and a shortcut. Codes are not negative: no ReLU follows them."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: bool, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.conv1 = _csc(in_channels, out_channels, 3, stride, 1, options)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _csc(out_channels, out_channels, 3, 1, 1, options)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        if self.shortcut is None:
            return out
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


def _stem(stem: str, in_channels: int, width: int, options: dict[str, Any]) -> nn.Sequential:
    kernel, stride, padding = stem_geometry(stem)
    return nn.Sequential(_csc(in_channels, width, kernel, stride, padding, options), nn.BatchNorm2d(width))


def _sdnet(
    blocks: Sequence[int], num_classes: int, stem: str, width: int, in_channels: int, options: dict[str, Any]
) -> ResNet:
    check_counts(num_classes=num_classes, width=width, in_channels=in_channels)
    layer0 = _stem(stem, in_channels, width, options)
    if stem == "imagenet":
        layer0.append(nn.MaxPool2d(3, stride=2, padding=1))
    return ResNet(layer0, make_stages(blocks, BasicBlock, width), num_classes, width)


def _sdnet_all(
    blocks: Sequence[int],
    num_classes: int,
    stem: str,
    width: int,
    in_channels: int,
    shortcut: bool,
    options: dict[str, Any],
) -> ResNet:
    check_counts(num_classes=num_classes, width=width, in_channels=in_channels)

    def block(in_channels: int, out_channels: int, stride: int) -> CSCBlock:
        return CSCBlock(in_channels, out_channels, stride, shortcut, options)

    layer0 = _stem(stem, in_channels, width, options)
    if stem == "imagenet":
        # In the place of the max pool, which has no inverse; without a batch norm of its own, as published.
        layer0.append(_csc(width, width, 3, 2, 1, options))
    stages = [_named(layers=stage) for stage in make_stages(blocks, block, width)]
    return ResNet(layer0, stages, num_classes, width)


def sdnet18(
    num_classes: int = 10,
    stem: str = "cifar",
    width: int = 64,
    in_channels: int = 3,
    *,
    lmbda: float = 0.1,
    mu: float = 0.0,
    n_iter: int = 2,
) -> ResNet:
    """SDNet-18: ResNet-18 whose stem convolution and its ReLU are one sparse code.

    Args:
        num_classes: number of logits, at least 1.
        stem: "cifar", 3x3 atoms, or "imagenet", 7x7 atoms at stride 2 and a max pool.
        width: atoms of the stem, and channels of the first stage; the others have 2, 4 and 8 times as many.
        in_channels: of the pictures.
        lmbda: weight of the codes' l1 norm, at least 0; `csc_kernels.set_lmbda` changes it later.
        mu: weight of their squared l2 norm, at least 0.
        n_iter: steps of FISTA per layer, at least 1. From 3 steps on this is the textbook's momentum, which
            is not the published implementation's.

    Raises:
        TypeError, ValueError: an argument is none of these.

    >>> model = sdnet18(num_classes=10, stem="cifar", lmbda=0.1)
    >>> sum(p.numel() for p in model.parameters())
    11173962
    """
    return _sdnet(BLOCKS_18, num_classes, stem, width, in_channels, {"lmbda": lmbda, "mu": mu, "n_iter": n_iter})


def sdnet34(
    num_classes: int = 10,
    stem: str = "cifar",
    width: int = 64,
    in_channels: int = 3,
    *,
    lmbda: float = 0.1,
    mu: float = 0.0,
    n_iter: int = 2,
) -> ResNet:
    """SDNet-34: ResNet-34 with the stem of `sdnet18`, and its arguments.

    >>> sum(p.numel() for p in sdnet34().parameters())
    21282122
    """
    return _sdnet(BLOCKS_34, num_classes, stem, width, in_channels, {"lmbda": lmbda, "mu": mu, "n_iter": n_iter})


def sdnet18_all(
    num_classes: int = 10,
    stem: str = "cifar",
    width: int = 64,
    in_channels: int = 3,
    *,
    shortcut: bool = True,
    lmbda: float = 0.1,
    mu: float = 0.0,
    n_iter: int = 2,
) -> ResNet:
    """SDNet-18-all: every 3x3 convolution of ResNet-18, and its stem, is a sparse code.

    The arguments are those of `sdnet18`, and

    Args:
        stem: "imagenet" halves the image by a second code of stride 2, instead of a max pool.
        shortcut: blocks add their input and end in a ReLU. Without, they are the composition of their codes
            and batch norms alone, which can be inverted.

    >>> sum(p.numel() for p in sdnet18_all(shortcut=False).parameters())
    11000138
    """
    options = {"lmbda": lmbda, "mu": mu, "n_iter": n_iter}
    return _sdnet_all(BLOCKS_18, num_classes, stem, width, in_channels, shortcut, options)


def sdnet34_all(
    num_classes: int = 10,
    stem: str = "cifar",
    width: int = 64,
    in_channels: int = 3,
    *,
    shortcut: bool = True,
    lmbda: float = 0.1,
    mu: float = 0.0,
    n_iter: int = 2,
) -> ResNet:
    """SDNet-34-all: as `sdnet18_all`, for ResNet-34.

    >>> sum(p.numel() for p in sdnet34_all(shortcut=False).parameters())
    21108298
    """
    options = {"lmbda": lmbda, "mu": mu, "n_iter": n_iter}
    return _sdnet_all(BLOCKS_34, num_classes, stem, width, in_channels, shortcut, options)
