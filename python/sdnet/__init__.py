"""Image classifiers whose convolutions are sparse codes: SDNet (Dai et al. 2022, arXiv 2210.12945)."""

from . import models

__all__ = ["models"]
