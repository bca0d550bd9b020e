"""Robustness: corruptions, inference at other lmbda, lmbda chosen by itself, and attacks."""

from .corrupt import corrupt

__all__ = ["corrupt"]
