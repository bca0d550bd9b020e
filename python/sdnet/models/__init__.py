"""SDNet-18 and -34, with sparse codes in the stem or everywhere, and the models they are compared with."""

from . import timm_models
from .classifier import Classifier
from .mdeq import mdeq_small
from .published import load_published
from .registry import MODELS, build
from .resnet import ResNet, resnet18, resnet34
from .scn import scn
from .sdnet import sdnet18, sdnet18_all, sdnet34, sdnet34_all

timm_models.register()

__all__ = [
    "MODELS",
    "Classifier",
    "ResNet",
    "build",
    "load_published",
    "mdeq_small",
    "resnet18",
    "resnet34",
    "scn",
    "sdnet18",
    "sdnet18_all",
    "sdnet34",
    "sdnet34_all",
]
