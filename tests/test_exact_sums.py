"""A synthesis adds up many atoms: as exactly as the rule asks, without the last places that it allows beside."""

from __future__ import annotations

import pytest
import torch
from conditions import ISAS
from error_rule import rms
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

import csc_kernels as csc
from csc_kernels import native

pytestmark = pytest.mark.parametrize("backend", ("native",), indirect=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("atoms", (16, 64, 256))
@pytest.mark.parametrize("rows", (4, 32))
@pytest.mark.parametrize("kernel, stride, columns", ((3, 1, 32), (3, 1, 16), (5, 1, 32), (4, 2, 32), (7, 2, 32)))
def test_errors_are_at_most_twice_those_of_a_convolution(
    backend: str, kernel: int, stride: int, columns: int, rows: int, atoms: int, isa: str
) -> None:
    """Tiles, pairs of rows with columns apart and together, four taps below each other and fewer."""
    padding = (kernel - 1) // 2
    own, found = [], []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(1, 3, rows * stride, columns * stride)
        dictionary = torch.randn(atoms, 3, kernel, kernel, generator=generator)
        z = torch.randn(conv2d(x, dictionary, None, stride, padding).shape, generator=generator).relu()

        def synthesis(z: Tensor, dictionary: Tensor, size: torch.Size = x.shape) -> Tensor:
            least = [(n - 1) * stride + kernel - 2 * padding for n in z.shape[2:]]
            more = [n - m for n, m in zip(size[2:], least)]
            return conv_transpose2d(z, dictionary, None, stride, padding, more)

        oracle = synthesis(z.double(), dictionary.double())
        with native.use_isa(isa):
            found.append(rms(csc.residual(x, z, dictionary, stride=stride, padding=padding) + oracle))
        for onednn in (True, False):
            with torch.backends.mkldnn.flags(enabled=onednn):
                own.append(rms(synthesis(z, dictionary) - oracle))
    assert max(found) <= 2 * max(own)
