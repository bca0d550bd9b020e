"""What the tests of the ops inside PyTorch's machinery share: layers, inputs, and arguments of every op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import random_problem
from torch import Tensor

from csc_kernels import CSCConv2d

CHANNELS = (3, 16)  # the stem's kernels, and the wide ones
both_widths = pytest.mark.parametrize("channels", CHANNELS, ids=("stem", "wide"))
both_norms = pytest.mark.parametrize("normalize", ("sphere", "projection"))


def make(channels: int, atoms: int = 8, **options: Any) -> CSCConv2d:
    return CSCConv2d(channels, atoms, 3, padding=1, **options)


def image(channels: int, batch: int = 2, **options: Any) -> Tensor:
    return torch.randn(batch, channels, 6, 7, **options)


def close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * max(scale, 1e-6))


def samples(channels: int) -> dict[str, list[tuple]]:
    """Arguments of every op: plain ones, and those that take every tensor there is."""
    p = random_problem(
        dtype=torch.float32, channels=channels, atoms=4, size=(6, 7), padding=1, z0=True, mask="float",
        lmbda="atom", mu="sample",
    ).leaves()  # fmt: skip
    bare = random_problem(dtype=torch.float32, channels=channels, size=(5, 6), stride=2, mask="bool", mu=0.1)
    bare.x, bare.dictionary = bare.x.requires_grad_(), bare.dictionary.requires_grad_()
    z = torch.rand(bare.code_shape, requires_grad=True)
    y = torch.rand(p.code_shape, requires_grad=True)
    found: dict[str, list[tuple]] = {"residual": [], "fista_step": [], "fista": []}
    for q, code, point in ((p, p.z0, y), (bare, z, z.detach().clone())):
        stride, pads = q.geometry
        found["residual"].append((q.x, code, q.dictionary, stride, pads, q.mask))
        found["fista_step"].append(
            (q.x, code, point, q.dictionary, *q.parameters, 0.3, stride, pads, True, q is bare, q.mask)
        )
        solve = (q.x, q.dictionary, *q.parameters, q.z0, q.mask, 3, stride, pads, False, "sdnet")
        found["fista"].append((*solve, False))
        if channels > 4:
            found["fista"].append((*solve, True))
    d = p.dictionary.detach()
    found["lipschitz"] = [
        (d, [1, 1], [1] * 4, [8, 7], 1e-3, 5),
        (d.bfloat16(), [2, 1], [0] * 4, [8, 7], 1e-3, 5),
    ]
    found["lipschitz_bound"] = [(d, [1, 1]), (d.bfloat16(), [2, 1])]
    return found
