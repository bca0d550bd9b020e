"""The outcome of one check of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Its name, what was seen, and whether that is as it should be."""

    name: str
    seen: str
    passed: bool
