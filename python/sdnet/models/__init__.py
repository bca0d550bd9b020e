"""SDNet-18 and -34, with sparse codes in the stem or everywhere, and the ResNets they are compared with."""

from .published import load_published
from .resnet import ResNet, resnet18, resnet34
from .sdnet import sdnet18, sdnet18_all, sdnet34, sdnet34_all

__all__ = [
    "ResNet",
    "load_published",
    "resnet18",
    "resnet34",
    "sdnet18",
    "sdnet18_all",
    "sdnet34",
    "sdnet34_all",
]
