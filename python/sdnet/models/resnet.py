"""ResNet-18 and ResNet-34 (He et al. 2016, arXiv 1512.03385), and the body that SDNet shares with them.

torchvision's would be shorter here and longer elsewhere: published SDNet checkpoints call the stem layer0,
the projections shortcut and the classifier linear, and the CIFAR stem is not torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS_18 = (2, 2, 2, 2)
BLOCKS_34 = (3, 4, 6, 3)
# Channels of the four stages, in multiples of the width, which is that of the stem.
STAGE_WIDTHS = (1, 2, 4, 8)

# The first layer of a network: kernel, stride and padding. ImageNet's halves the image once more after it.
STEMS = {"cifar": (3, 1, 1), "imagenet": (7, 2, 3)}

Block = Callable[[int, int, int], nn.Module]


def stem_geometry(stem: str) -> tuple[int, int, int]:
    """Kernel, stride and padding of a stem's first layer."""
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {tuple(STEMS)}, got {stem!r}")
    return STEMS[stem]


def conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class Projection(nn.Conv2d):
    """A 1x1 convolution with a stride.

    Where the channels do not fill vectors its pixels are picked first: oneDNN 3.12 for AVX2 writes beyond the
    gradient of the weights that it computes of such a convolution itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels % 16 == 0:
            return super().forward(x)
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut of a block: the identity, or a 1x1 convolution where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        Projection(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


def check_counts(**counts: int) -> None:
    """Arguments that are numbers of something: ints, at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"{name} must be an int, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def make_stages(blocks: Sequence[int], block: Block, width: int) -> list[nn.Sequential]:
    """Four stages of `blocks` blocks; each after the first halves the image and doubles the channels."""
    stages = []
    in_channels = width
    for count, multiple in zip(blocks, STAGE_WIDTHS):
        channels = multiple * width
        first = block(in_channels, channels, 1 if multiple == 1 else 2)
        stages.append(nn.Sequential(first, *(block(channels, channels, 1) for _ in range(count - 1))))
        in_channels = channels
    return stages


class ResNet(nn.Module):
    """A stem, four stages, the mean over the pixels and a linear classifier.

    Shapes:
        x (N, in_channels, H, W), any H and W -> logits (N, num_classes).
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], num_classes: int, width: int) -> None:
        super().__init__()
        self.layer0 = stem
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(STAGE_WIDTHS[-1] * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.layer0, self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.linear(x.mean((2, 3)))


def _resnet(blocks: Sequence[int], num_classes: int, stem: str, width: int, in_channels: int) -> ResNet:
    check_counts(num_classes=num_classes, width=width, in_channels=in_channels)
    kernel, stride, padding = stem_geometry(stem)
    layer0 = nn.Sequential(
        nn.Conv2d(in_channels, width, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
    if stem == "imagenet":
        layer0.append(nn.MaxPool2d(3, stride=2, padding=1))
    return ResNet(layer0, make_stages(blocks, BasicBlock, width), num_classes, width)


def resnet18(num_classes: int = 10, stem: str = "cifar", width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-18 (He et al. 2016, arXiv 1512.03385), randomly initialised: 11,173,962 parameters by default.

    Args:
        num_classes: number of logits, at least 1.
        stem: "cifar", a 3x3 convolution, or "imagenet", a 7x7 convolution of stride 2 and a max pool.
        width: channels of the stem and the first stage; the others have 2, 4 and 8 times as many.
        in_channels: of the pictures.

    Raises:
        TypeError, ValueError: an argument is none of these.

    >>> sum(p.numel() for p in resnet18().parameters())
    11173962
    """
    return _resnet(BLOCKS_18, num_classes, stem, width, in_channels)


def resnet34(num_classes: int = 10, stem: str = "cifar", width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-34: as `resnet18`, with 3, 4, 6 and 3 blocks.

    >>> sum(p.numel() for p in resnet34().parameters())
    21282122
    """
    return _resnet(BLOCKS_34, num_classes, stem, width, in_channels)
