"""Robustness: corruptions, inference at other lmbda, lmbda chosen by itself, and attacks."""

from .adaptive import AdaptiveClassifier, adapt
from .corruptions import corrupt

__all__ = ["AdaptiveClassifier", "adapt", "corrupt"]
