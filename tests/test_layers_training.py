"""CSCConv2d: training in unusual orders, and by two processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layer_helpers import WIDE, atom_norms, both_norms, both_sizes, compiled, image, train_step
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import csc_kernels as csc
from csc_kernels import CSCConv2d

pytestmark = pytest.mark.usefixtures("seeded")


# Training in unusual orders.


@both_norms
@both_sizes
def test_two_forwards_before_one_backward(sizes: tuple[int, int, int], normalize: str) -> None:
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize)
    with torch.no_grad():
        layer.weight.mul_(2)
    a, b = image(layer), image(layer)
    separate = copy.deepcopy(layer)
    (layer(a).square().sum() + layer(b).square().sum()).backward()
    separate(a).square().sum().backward()
    separate(b).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, separate.weight.grad)


@both_norms
def test_gradients_accumulate(normalize: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
    x = torch.randn(4, 3, 8, 9)
    layer(x).square().sum().backward()
    whole = layer.weight.grad.clone()
    layer.weight.grad = None
    for part in x.split(1):
        layer(part).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, whole, rtol=1e-4, atol=1e-4)


@both_norms
@pytest.mark.parametrize("form", (lambda layer: layer, compiled), ids=("eager", "compiled"))
def test_one_layer_twice_in_one_network(normalize: str, form: Callable[[nn.Module], nn.Module]) -> None:
    layer = CSCConv2d(4, 4, 3, padding=1, normalize=normalize)
    with torch.no_grad():
        layer.weight.mul_(2)
    first, second = copy.deepcopy(layer), copy.deepcopy(layer)
    x = torch.randn(2, 4, 6, 6)
    form(nn.Sequential(layer, layer))(x).square().sum().backward()
    second(first(x)).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, first.weight.grad + second.weight.grad)
    torch.testing.assert_close(layer.weight, first.weight)


@both_norms
@pytest.mark.parametrize("training", (True, False))
def test_a_frozen_weight_still_passes_gradients_to_x(backend: str, normalize: str, training: bool) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize).train(training)
    x = image(layer).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    layer.weight.requires_grad_(False)
    with torch.inference_mode():
        layer(x)
    before = layer.weight.clone()
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(layer.weight, before) and layer.weight.grad is None


@both_norms
def test_evaluation_has_gradients_for_x_and_weight(backend: str, normalize: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
    x = image(layer).requires_grad_()
    layer(x).square().sum().backward()
    expected = x.grad.clone(), layer.weight.grad.clone()
    x.grad = layer.weight.grad = None
    layer.eval()(x).square().sum().backward()
    torch.testing.assert_close((x.grad, layer.weight.grad), expected)


@both_norms
def test_training_goes_on_after_inference_mode(normalize: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
    x, other = image(layer), copy.deepcopy(layer)
    with torch.inference_mode():
        inside = layer(x)
    torch.testing.assert_close(layer(x), inside.clone())
    for _ in range(2):
        before = layer.weight.detach().clone()
        for one in (layer, other):
            train_step(one, x, rate=10.0)
        assert not torch.allclose(layer.weight, before, atol=1e-2)
        torch.testing.assert_close(layer.weight, other.weight)
        with torch.inference_mode():
            layer.eval()(x)
        layer.train()


@both_sizes
def test_a_layer_made_in_inference_mode_keeps_its_step_size(
    refreshes: list[str], sizes: tuple[int, int, int]
) -> None:
    plain = CSCConv2d(*sizes, padding=1).eval()
    x = image(plain)
    with torch.inference_mode():
        layer = CSCConv2d(*sizes, padding=1).eval()
        layer.load_state_dict(plain.state_dict())
        layer.step_size.mul_(0.5)  # Not what a refresh would give.
        refreshes.clear()
        expected = csc.fista(x, plain.dictionary(), layer.lmbda, layer.step_size, padding=1)
        torch.testing.assert_close(layer(x), expected)
        assert layer.dictionary() is layer.dictionary()
    assert torch.equal(layer(x), expected) and refreshes == []
    with torch.inference_mode():
        layer.weight.neg_()
        torch.testing.assert_close(layer.dictionary(), -plain.dictionary())
        layer(x)
    assert len(refreshes) == 1


def test_a_compiled_training_goes_on_after_evaluation_and_state_dict() -> None:
    """Its graph is the same: to compile a network again takes a minute."""
    layer = CSCConv2d(*WIDE, padding=1)
    run, x = compiled(layer), image(layer)
    train_step(run, x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for look in (layer.state_dict, layer.eval):
            look()
            step = layer.step_size.clone()
            train_step(run.train(), x, rate=3.0)
            assert torch.isfinite(step) and layer.step_size != step
    fresh = CSCConv2d(*WIDE, padding=1)
    fresh.load_state_dict({"weight": layer.weight.detach()}, strict=False)
    x = image(layer, 30, 30)
    torch.testing.assert_close(layer.eval()(x), fresh.eval()(x))


@both_norms
@both_sizes
def test_functional_call_uses_the_weight_it_is_given(sizes: tuple[int, int, int], normalize: str) -> None:
    """Also when one temporary weight lies in memory where the last one lay."""
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize).eval()
    x, own = image(layer), layer.weight.detach().clone()
    with torch.no_grad():
        expected = layer(x)
        for _ in range(5):
            weight = torch.randn_like(own)
            found = torch.func.functional_call(layer, {"weight": weight}, (x,))
            fresh = CSCConv2d(*sizes, padding=1).eval()
            fresh.weight.copy_(weight)
            torch.testing.assert_close(found, fresh(x))
            del weight, fresh
        torch.testing.assert_close(layer(x), expected)
        assert torch.equal(layer.weight, own)


def test_parametrized_weights_are_followed() -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + weight.roll(1, 0)

    layer = CSCConv2d(3, 8, 3, padding=1)
    parametrize.register_parametrization(layer, "weight", Twice())
    layer.eval()
    x = image(layer)
    with torch.no_grad():
        for _ in range(4):
            layer.parametrizations.weight.original.copy_(torch.randn(8, 3, 3, 3))
            fresh = CSCConv2d(3, 8, 3, padding=1).eval()
            fresh.weight.copy_(layer.weight)
            torch.testing.assert_close(layer(x), fresh(x))


@pytest.mark.parametrize("form", (lambda layer: layer, compiled), ids=("eager", "compiled"))
def test_a_parametrized_weight_is_projected_too(form: Callable[[nn.Module], nn.Module]) -> None:
    class Exponential(nn.Module):  # Its gradient needs what it gave.
        def forward(self, weight: Tensor) -> Tensor:
            return weight.exp()

    layer, plain = (CSCConv2d(3, 8, 3, padding=1, normalize="projection") for _ in range(2))
    x, original = image(plain), layer.weight.detach().clone()
    plain.weight.data.copy_(original.exp())
    parametrize.register_parametrization(layer, "weight", Exponential())
    z, expected = form(layer)(x), plain(x)
    torch.testing.assert_close(z, expected)
    z.square().sum().backward()
    expected.square().sum().backward()
    found = layer.parametrizations.weight.original
    torch.testing.assert_close(found.grad, plain.weight.grad * original.exp())
    assert torch.equal(found, original)


@pytest.mark.parametrize("scale", (1.0, 2.0))
def test_a_projected_weight_of_two_layers_is_overwritten_once(scale: float) -> None:
    first, second = (CSCConv2d(4, 4, 3, padding=1, normalize="projection") for _ in range(2))
    second.weight = first.weight
    with torch.no_grad():
        first.weight.mul_(scale)
    x, alone = torch.randn(2, 4, 6, 6), copy.deepcopy(first)
    for _ in range(2):
        for layer in (first, second, alone):
            layer.weight.grad = None
        z = second(first(x))
        z.square().sum().backward()
        expected = alone(alone(x))
        expected.square().sum().backward()
        torch.testing.assert_close(z, expected)
        torch.testing.assert_close(first.weight.grad, alone.weight.grad)
        torch.testing.assert_close(atom_norms(first.weight), torch.ones(4))
        for layer in (first, alone):
            torch.optim.SGD([layer.weight], lr=0.1).step()


@both_norms
@pytest.mark.parametrize("reentrant", (True, False))
def test_checkpointed_segments_have_the_same_gradients(normalize: str, reentrant: bool) -> None:
    layer = CSCConv2d(4, 4, 3, padding=1, normalize=normalize)
    with torch.no_grad():
        layer.weight.mul_(2)
    plain, x = copy.deepcopy(layer), torch.randn(2, 4, 6, 6, requires_grad=True)
    z = layer(x)
    for _ in range(2):
        z = checkpoint(layer, z, use_reentrant=reentrant)
    z.square().sum().backward()
    plain(plain(plain(x))).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_a_network_learns_to_reconstruct() -> None:
    layer = CSCConv2d(1, 12, 3, padding=1, lmbda=0.05, n_iter=5)
    row = torch.arange(12.0)
    x = torch.stack([torch.sin(row * f).outer(torch.cos(row * g)) for f, g in ((0.5, 1), (2, 0.3), (1, 1))])
    x = x.unsqueeze(1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (layer.reconstruct(layer(x)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


# Distributed data parallel: two processes on halves give what one gives on all.


def _train_distributed(rank: int, folder: str, normalize: str) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model, x = _model_and_batch(normalize)
        model = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
        for part in x:
            optimizer.zero_grad()
            model(part[2 * rank : 2 * rank + 2]).square().mean().backward()
            optimizer.step()
        grads = [p.grad for p in model.parameters()]
        torch.save((grads, model.module.state_dict()), f"{folder}/{rank}.pt")
        distributed.barrier()  # Neither closes its connections while the other still uses them.
    finally:
        distributed.destroy_process_group()


def _model_and_batch(normalize: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(
        CSCConv2d(3, 8, 3, padding=1, normalize=normalize),
        CSCConv2d(8, 6, 3, stride=2, padding=1, normalize=normalize, step="power"),
    )
    return model, torch.randn(3, 4, 3, 8, 8)


@both_norms
def test_two_processes_train_as_one(tmp_path: Path, normalize: str) -> None:
    torch.multiprocessing.spawn(_train_distributed, (str(tmp_path), normalize), nprocs=2)
    model, x = _model_and_batch(normalize)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    for part in x:
        optimizer.zero_grad()
        model(part).square().mean().backward()
        optimizer.step()
    (grads, state), (other_grads, other_state) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for found, other, parameter in zip(grads, other_grads, model.parameters()):
        assert torch.equal(found, other)
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], other_state[name]), name
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)
