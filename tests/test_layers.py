"""CSCConv2d: what it computes."""

from __future__ import annotations

import copy
import inspect
import itertools

import pytest
import torch
from layer_helpers import atom_norms, both_sizes, image, train_step
from torch import nn
from torch.nn import functional as F

import csc_kernels as csc
from csc_kernels import CSCConv2d

pytestmark = pytest.mark.usefixtures("seeded")


# What it computes.


@both_sizes
def test_is_a_solve_with_the_normalised_weight(backend: str, sizes: tuple[int, int, int]) -> None:
    layer = CSCConv2d(*sizes, stride=2, padding=1, lmbda=0.05, mu=0.1, n_iter=4, nonneg=False, momentum="sdnet")
    with torch.no_grad():
        layer.weight.mul_(3)
    x = image(layer)
    z = layer(x)
    atoms = layer.weight / atom_norms(layer.weight).view(-1, 1, 1, 1)
    expected = csc.fista(
        x, atoms, 0.05, layer.step_size, 4, stride=2, padding=1, mu=0.1, nonneg=False, momentum="sdnet"
    )
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)


def test_positional_arguments_are_those_of_conv2d() -> None:
    theirs = list(inspect.signature(nn.Conv2d.__init__).parameters.values())
    mine = list(inspect.signature(CSCConv2d.__init__).parameters.values())[: len(theirs)]
    assert [p.name for p in mine] == [p.name for p in theirs]
    assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in mine)


@pytest.mark.parametrize(
    "arguments",
    (
        (3, 5, 3),
        (3, 5, 3, 2),
        (3, 5, 3, 2, 1),
        (3, 5, (2, 4), (1, 3), (0, 2)),
        (3, 5, 3, 1, "same"),
        (3, 5, (4, 2), 1, "same", 1, 1, False, "zeros"),
        (3, 5, 3, 1, "valid", (1, 1)),
        (3, 5, 1, 1, 0, 1, 1, False, "zeros", "cpu", torch.float64),
    ),
)
def test_stands_where_conv2d_stood(arguments: tuple) -> None:
    conv, layer = nn.Conv2d(*arguments), CSCConv2d(*arguments)
    assert layer.weight.shape == conv.weight.shape and layer.weight.dtype == conv.weight.dtype
    for size in ((8, 9), (11, 7)):
        x = torch.randn(2, 3, *size, dtype=conv.weight.dtype)
        assert layer(x).shape == conv(x).shape
        assert layer(x[0]).shape == conv(x[0]).shape
        assert layer(x[:0]).shape == conv(x[:0]).shape


@both_sizes
def test_one_layer_takes_any_size_at_every_call(backend: str, sizes: tuple[int, int, int]) -> None:
    layer = CSCConv2d(*sizes, stride=2, padding=1)
    for size in ((8, 8), (1, 1), (5, 13), (32, 3), (8, 8)):
        assert layer(image(layer, *size)).shape[2:] == tuple((s + 1) // 2 for s in size)


@pytest.mark.parametrize("momentum", ("fista", "none", "sdnet"))
def test_options_reach_the_solve(backend: str, momentum: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, n_iter=5, nonneg=False, momentum=momentum, square_noise=False)
    x = image(layer)
    expected = csc.fista(
        x, layer.dictionary(), 0.1, layer.step_size, 5, padding=1, nonneg=False, momentum=momentum,
        square_noise=False,
    )  # fmt: skip
    assert torch.equal(layer(x), expected)


def test_n_dict_repeats_the_channels(backend: str) -> None:
    layer = CSCConv2d(2, 8, 3, padding=1, n_dict=3)
    x = image(layer)
    assert layer.weight.shape == (8, 6, 3, 3)
    expected = csc.fista(x.repeat(1, 3, 1, 1), layer.dictionary(), 0.1, layer.step_size, padding=1)
    assert torch.equal(layer(x), expected)
    z = torch.randn_like(layer(x))
    parts = F.conv_transpose2d(z, layer.dictionary(), padding=1).view(2, 3, 2, 8, 9)
    torch.testing.assert_close(layer.reconstruct(z), parts.mean(1))


# lmbda and mu.


def test_lmbda_acts_at_once(backend: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=0.1).eval()
    x = image(layer)
    for lmbda in (0.3, 0, 1e3, torch.rand(8, 1, 1), torch.rand(2, 1, 1, 1), 0.1):
        layer.lmbda = lmbda
        assert torch.equal(layer(x), csc.fista(x, layer.dictionary(), lmbda, layer.step_size, padding=1))
    layer.mu = 0.5
    assert torch.equal(layer(x), csc.fista(x, layer.dictionary(), 0.1, layer.step_size, padding=1, mu=0.5))


def test_set_lmbda_reaches_every_layer() -> None:
    model = nn.Sequential(CSCConv2d(3, 8, 3), nn.Sequential(nn.ReLU(), CSCConv2d(8, 4, 3)))
    assert csc.set_lmbda(model, 0.3) == 2
    assert [m.lmbda for m in model.modules() if isinstance(m, CSCConv2d)] == [0.3, 0.3]
    with pytest.raises(ValueError, match="Linear"):
        csc.set_lmbda(nn.Linear(2, 2), 0.3)


def test_a_parameter_as_lmbda_is_learned() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=nn.Parameter(torch.full((8, 1, 1), 0.1)))
    before = layer.lmbda.detach().clone()
    train_step(layer, image(layer))
    assert len(list(layer.parameters())) == 2 and not torch.equal(layer.lmbda, before)
    layer.lmbda = 0.2
    assert len(list(layer.parameters())) == 1 and layer.lmbda == 0.2


def test_a_parametrized_lmbda_stays_positive_and_may_be_set() -> None:
    class Positive(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return nn.functional.softplus(value)

        def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
            return value.expm1().log()

    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=nn.Parameter(torch.full((8, 1, 1), 0.1)))
    nn.utils.parametrize.register_parametrization(layer, "lmbda", Positive())
    x, plain = image(layer), CSCConv2d(3, 8, 3, padding=1)
    plain.load_state_dict({"weight": layer.weight.detach()}, strict=False)
    for value in (0.3, torch.full((8, 1, 1), 0.2), nn.Parameter(torch.full((8, 1, 1), 0.5))):
        layer.lmbda = plain.lmbda = value
        torch.testing.assert_close(layer(x), plain(x))
    assert csc.set_lmbda(layer, 0.4) == 1
    torch.testing.assert_close(layer.lmbda, torch.full((8, 1, 1), 0.4))
    layer(x).sum().backward()
    assert layer.parametrizations.lmbda.original.grad.abs().sum() > 0


def test_a_tensor_as_lmbda_moves_with_the_layer_and_is_not_state() -> None:
    layer = CSCConv2d(3, 8, 3, lmbda=torch.rand(8, 1, 1))
    assert list(layer.state_dict()) == ["weight", "step_size"]
    assert layer.double().lmbda.dtype == torch.float64
    assert torch.equal(copy.deepcopy(layer).lmbda, layer.lmbda)


# Reconstruction and text.


@pytest.mark.parametrize("padding", (0, 1, "valid"))
@pytest.mark.parametrize("stride", (1, 2, 3, (1, 3)))
def test_reconstruct_is_the_adjoint_for_every_stride(stride: int | tuple[int, int], padding: int | str) -> None:
    layer = CSCConv2d(3, 8, 3, stride=stride, padding=padding).double()
    for size in itertools.product(range(8, 12), range(9, 11)):
        x = image(layer, *size).double()
        forward = F.conv2d(x, layer.dictionary(), stride=stride, padding=padding)
        z = torch.randn_like(forward)
        assert layer.reconstruct(z, size).shape == x.shape
        torch.testing.assert_close((layer.reconstruct(z, size) * x).sum(), (z * forward).sum())
        assert torch.equal(layer.reconstruct(z[0], size), layer.reconstruct(z, size)[0])


def test_reconstruct_leaves_little_when_lmbda_is_small(backend: str) -> None:
    layer = CSCConv2d(1, 16, 3, padding=1, lmbda=1e-4, n_iter=200, nonneg=False)
    x = image(layer, 12, 12)
    assert (layer.reconstruct(layer(x)) - x).norm() < 0.05 * x.norm()


def test_extra_repr_tells_the_options() -> None:
    layer = CSCConv2d(3, 8, (3, 5), stride=2, padding=1, lmbda=0.25, n_iter=7, n_dict=2, momentum="none")
    text = repr(layer)
    for part in ("3, 8", "kernel_size=(3, 5)", "stride=(2, 2)", "padding=1", "lmbda=0.25", "mu=0.0",
                 "n_iter=7", "nonneg=True", "momentum=none", "n_dict=2"):  # fmt: skip
        assert part in text, part
    layer.lmbda = torch.rand(8, 1, 1)
    assert "lmbda=tensor(8, 1, 1)" in repr(layer)


def test_padding_set_later_counts_as_in_conv2d() -> None:
    layer, x = CSCConv2d(3, 4, 3, padding=1), torch.randn(1, 3, 8, 8)
    layer.padding = (0, 2)
    assert layer(x).shape == (1, 4, 6, 10) and "padding=(0, 2)" in repr(layer)
    with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
        layer.padding = -1
    assert layer(x).shape == (1, 4, 6, 10)


@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("name", ["padding", "stride"])
def test_the_step_size_follows_padding_and_stride(name: str, channels: int) -> None:
    layer, x = CSCConv2d(channels, 4, 3), torch.randn(1, channels, 6, 6)
    layer(x)
    setattr(layer, name, 2)
    z = layer(x)
    fresh = CSCConv2d(channels, 4, 3, **{name: 2})
    fresh.load_state_dict({"weight": layer.weight.detach()}, strict=False)
    assert torch.equal(fresh(x), z) and torch.equal(layer.step_size, fresh.step_size)


def test_a_state_dict_after_the_stride_was_set_has_the_step_size_of_it() -> None:
    layer, x = CSCConv2d(40, 4, 3, stride=2), torch.randn(1, 40, 6, 6)
    layer(x)
    layer.stride = 1
    loaded, fresh = CSCConv2d(40, 4, 3), CSCConv2d(40, 4, 3)
    loaded.load_state_dict(layer.state_dict())
    fresh.load_state_dict({"weight": layer.weight.detach()}, strict=False)
    fresh(torch.randn(1, 40, 64, 64))
    assert torch.equal(loaded.step_size, fresh.step_size)


@pytest.mark.parametrize("n_dict", [1, 2])
@pytest.mark.parametrize("mask", [[[1.0]], 1.0])
def test_a_mask_that_is_no_tensor_is_named(n_dict: int, mask: object) -> None:
    with pytest.raises(TypeError, match=r"mask must be a torch\.Tensor, got (list|float)"):
        CSCConv2d(3, 4, 3, n_dict=n_dict)(torch.randn(1, 3, 8, 8), mask)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, "float32"])
def test_a_dtype_that_no_weight_can_have_is_named(dtype: object) -> None:
    with pytest.raises(TypeError, match=r"dtype must be a floating point torch\.dtype of 16, 32 or 64 bits, got"):
        CSCConv2d(3, 4, 3, dtype=dtype)
