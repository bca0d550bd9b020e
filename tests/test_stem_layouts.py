"""A stem computes the same bits in every layout, of x and of the gradient that arrives."""

from __future__ import annotations

import itertools

import pytest
import torch
from conditions import ISAS
from problems import random_problem

import csc_kernels as csc
from csc_kernels import native

pytestmark = pytest.mark.parametrize("backend", ("native",), indirect=True)

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mu", (0.0, 0.5))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_codes_and_gradients_have_the_same_bits(backend: str, dtype: torch.dtype, mu: float, isa: str) -> None:
    """Atoms and columns: whole vectors of every instruction set, and some more."""
    one = random_problem(atoms=37, size=(9, 39), padding=1, dtype=dtype)
    arriving = torch.randn(one.code_shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with native.use_isa(isa):
        found = []
        for layout, arriving_layout in itertools.product(LAYOUTS, LAYOUTS):
            x = one.x.to(memory_format=layout).requires_grad_()
            dictionary = one.dictionary.clone().requires_grad_()
            z = csc.fista(x, dictionary, 0.1, one.step_size, mu=mu, padding=1)
            assert z.is_contiguous(memory_format=layout)
            gradients = torch.autograd.grad(z, (x, dictionary), arriving.to(memory_format=arriving_layout))
            found.append((z.detach(), *gradients))
    for tensors in found[1:]:
        for tensor, expected in zip(tensors, found[0]):
            assert torch.equal(tensor, expected)
