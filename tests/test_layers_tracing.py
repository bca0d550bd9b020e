"""CSCConv2d where operations are recorded (make_fx), or are on tensors without numbers (FakeTensorMode)."""

from __future__ import annotations

import copy

import pytest
import torch
from layer_helpers import both_norms, both_sizes, image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from csc_kernels import CSCConv2d

pytestmark = pytest.mark.usefixtures("seeded")
both_modes = pytest.mark.parametrize("training", (True, False), ids=("training", "evaluation"))


def scaled(sizes: tuple[int, int, int], normalize: str, training: bool) -> CSCConv2d:
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize)
    layer(image(layer))
    with torch.no_grad():
        layer.weight.mul_(2)
    return layer.train(training)


def of_fakes(layer: CSCConv2d, x: Tensor) -> Tensor:
    mode = FakeTensorMode()
    state = {"weight": mode.from_tensor(layer.weight), "step_size": mode.from_tensor(layer.step_size)}
    with mode:
        return functional_call(layer, state, (mode.from_tensor(x),))


def made_of_fakes(layer: CSCConv2d, x: Tensor) -> Tensor:
    with FakeTensorMode():
        arguments = layer.in_channels, layer.out_channels, layer.kernel_size
        other = CSCConv2d(*arguments, padding=1, normalize=layer.normalize).train(layer.training)
        other(torch.empty(x.shape)).sum().backward()
        assert other.weight.grad.shape == layer.weight.shape
        z = other(torch.empty(x.shape))
    assert set(other.state_dict()) == {"weight", "step_size"}
    return z


def among_real_ones(layer: CSCConv2d, x: Tensor) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return layer(mode.from_tensor(x))


@both_modes
@both_sizes
@both_norms
@pytest.mark.parametrize("run", (of_fakes, made_of_fakes, among_real_ones))
def test_fake_tensors_have_the_shape_of_the_code(run, sizes, normalize: str, training: bool) -> None:
    layer = scaled(sizes, normalize, training)
    other, x = copy.deepcopy(layer), image(layer, 30, 30)
    z = run(layer, x)
    assert layer.step_size_of == other.step_size_of  # What had no numbers left nothing behind.
    assert torch.equal(layer.step_size, other.step_size)
    expected = other(x)
    assert isinstance(z, FakeTensor) and z.shape == expected.shape and z.dtype == expected.dtype
    torch.testing.assert_close(layer(x), expected)


@both_modes
@both_sizes
@both_norms
def test_a_recorded_forward_gives_the_codes_of_eager(sizes, normalize: str, training: bool) -> None:
    layer = scaled(sizes, normalize, training)
    x, other = image(layer), image(layer)
    graph = make_fx(layer)(x)
    torch.testing.assert_close(graph(other), layer(other))
    finds_a_step = any("lipschitz" in str(node.target) for node in graph.graph.nodes)
    assert finds_a_step == training


@both_sizes
def test_a_recorded_evaluation_finds_the_step_of_a_changed_weight(sizes) -> None:
    layer = scaled(sizes, "sphere", False)
    x = image(layer)
    layer(x)
    with torch.no_grad():
        layer.weight.copy_(torch.rand_like(layer.weight))
    found = make_fx(layer)(x)(x)
    torch.testing.assert_close(found, layer(x))
