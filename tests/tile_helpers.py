"""What the tests of the stems' tiles share."""

from __future__ import annotations

import pytest
import torch
from problems import Problem
from torch import Tensor

from csc_kernels import native

every_option = pytest.mark.parametrize(
    "options",
    (
        {"nonneg": False}, {"mu": 0.3}, {"momentum": "none"}, {"momentum": "sdnet"}, {"z0": True},
        {"mask": "float"}, {"lmbda": "full", "mu": "full"},
    ),
    ids=str,
)  # fmt: skip


def assert_same_kinds(found: Tensor, expected: Tensor) -> None:
    """NaN and infinities stand in the same places."""
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(found), kind(expected))


def assert_gradient_is_that_of_rows(one: Problem, gradient: Tensor) -> None:
    """Of the dictionary, where something is not finite: as row by row."""
    one.dictionary.requires_grad_()
    (found,) = torch.autograd.grad(one.solve(), one.dictionary, gradient)
    with native.use_path("direct"):
        (expected,) = torch.autograd.grad(one.solve(), one.dictionary, gradient)
    assert_same_kinds(found, expected)
