"""Image classifiers whose convolutions are sparse codes: SDNet (Dai et al. 2022, arXiv 2210.12945)."""

from . import models
from .models import Classifier
from .pretrained import load_pretrained, pretrained
from .reading import invert
from .replace import replace_convs
from .robust import adapt, corrupt

__all__ = ["Classifier", "adapt", "corrupt", "invert", "load_pretrained", "models", "pretrained", "replace_convs"]
