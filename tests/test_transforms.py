"""The ops and the layer inside torch.func, forward mode and checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_helpers import both_norms, both_widths, close, image, make, samples
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import csc_kernels as csc


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.manual_seed(0)


@both_widths
def test_vmap_over_any_argument(channels: int) -> None:
    x, d, lmbda = torch.randn(3, 2, channels, 6, 7), torch.randn(3, 4, channels, 3, 3), torch.rand(3)

    def solve(x: Tensor, d: Tensor, lmbda: Tensor) -> Tensor:
        return csc.fista(x, d, lmbda, 0.01, 3, padding=1)

    for dims in ((0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)):
        arguments = [t if dim == 0 else t[0] for t, dim in zip((x, d, lmbda), dims)]
        looped = [
            solve(*(t[i] if dim == 0 else t for t, dim in zip(arguments, dims))) for i in range(3)
        ]  # fmt: skip
        close(torch.vmap(solve, dims)(*arguments), torch.stack(looped))


@both_widths
@pytest.mark.parametrize("op", ("residual", "fista_step", "fista"))
def test_the_ops_themselves_are_mapped_by_a_loop(backend: str, op: str, channels: int) -> None:
    arguments = [a.detach() if isinstance(a, Tensor) else a for a in samples(channels)[op][0]]
    x = torch.stack([arguments[0], 2 * arguments[0]])
    run = getattr(torch.ops.csc, op)

    def first(x: Tensor) -> Tensor:
        result = run(x, *arguments[1:])
        return result if isinstance(result, Tensor) else result[0]

    assert torch.equal(torch.vmap(first)(x), torch.stack([first(x[0]), first(x[1])]))


@both_widths
@pytest.mark.parametrize("op", ("residual", "fista_step", "fista"))
def test_several_gradients_at_once(backend: str, op: str, channels: int) -> None:
    """is_grads_batched=True and jacobian(vectorize=True) map the backward with a vmap of their own."""
    x, z, d = image(channels).requires_grad_(), torch.rand(2, 4, 6, 7), torch.randn(4, channels, 3, 3)
    d.requires_grad_()
    if op == "residual":
        result = csc.residual(x, z, d, padding=1)
    elif op == "fista_step":
        result = csc.fista_step(x, z, d, 0.1, 0.01, padding=1)[0]
    else:
        result = csc.fista(x, d, 0.1, 0.01, padding=1)
    grads = torch.randn(3, *result.shape)
    found = torch.autograd.grad(result, (x, d), grads, retain_graph=True, is_grads_batched=True)
    singly = zip(*(torch.autograd.grad(result, (x, d), grad, retain_graph=True) for grad in grads))
    for several, expected in zip(found, singly):
        close(several, torch.stack(expected))


@both_widths
@pytest.mark.parametrize("op", ("residual", "fista_step", "fista"))
def test_func_grad_and_jvp_agree_with_autograd(backend: str, op: str, channels: int) -> None:
    x, z, t = image(channels), torch.rand(2, 4, 6, 7), torch.randn(4, channels, 3, 3)

    def loss(d: Tensor) -> Tensor:
        if op == "residual":
            return csc.residual(x, z, d, padding=1).square().sum()
        if op == "fista_step":
            return csc.fista_step(x, z, d, 0.1, 0.01, padding=1)[0].square().sum()
        return csc.fista(x, d, 0.1, 0.01, padding=1, z0=z).square().sum()

    d = torch.randn(4, channels, 3, 3)
    leaf = d.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    close(torch.func.grad(loss)(d), expected)
    close(torch.func.jvp(loss, (d,), (t,))[1], (expected * t).sum())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(d, t))).tangent
    assert tangent is not None
    close(tangent, (expected * t).sum())


def test_forward_mode_goes_through_the_default_step_and_the_layer() -> None:
    x, tangent = image(3), image(3)
    layer = make(3)
    for run in (lambda x: csc.fista(x, layer.weight.detach(), 0.1, padding=1), layer, layer.eval()):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(run(leaf).square().sum(), leaf)
        with forward_ad.dual_level():
            z = run(forward_ad.make_dual(x, tangent)).square().sum()
            close(forward_ad.unpack_dual(z).tangent, (gradient * tangent).sum())


@both_norms
@both_widths
@pytest.mark.parametrize("training", (True, False))
def test_gradients_per_sample(training: bool, channels: int, normalize: str) -> None:
    layer = make(channels, normalize=normalize).train(training)
    with torch.no_grad():
        layer.step_size.mul_(0.5)  # As from a checkpoint: it is kept until the weight changes, here too.
    parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())
    kept = layer.step_size.clone()
    x = image(channels, batch=3)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, (parameters, buffers), (sample.unsqueeze(0),)).square().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)["weight"]
    expected = [torch.autograd.grad(layer(s.unsqueeze(0)).square().sum(), layer.weight)[0] for s in x]
    close(found, torch.stack(expected))
    assert torch.equal(layer.step_size, kept)


def test_an_ensemble_of_layers_under_vmap() -> None:
    layers = [make(3).eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    base, x = copy.deepcopy(layers[0]).to("meta"), image(3)

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(base, (parameters, buffers), (x,))

    close(torch.vmap(run)(parameters, buffers), torch.stack([layer(x) for layer in layers]))


# Checkpointing.


@both_norms
@both_widths
@pytest.mark.parametrize("use_reentrant", (True, False))
def test_checkpointed_gradients(backend: str, use_reentrant: bool, channels: int, normalize: str) -> None:
    layer = make(channels, normalize=normalize, n_iter=3)
    x = image(channels, requires_grad=True)
    inputs = (x, layer.weight)
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
    for tensor, right in zip(inputs, expected):
        close(tensor.grad, right)


@both_widths
def test_every_op_asks_for_what_it_saved_once(backend: str, channels: int) -> None:
    """Checkpointing gives a saved tensor only once."""
    x, z, d = image(channels, requires_grad=True), torch.rand(2, 4, 6, 7), torch.randn(4, channels, 3, 3)
    for run in (
        lambda x: csc.residual(x, z, d, padding=1),
        lambda x: csc.fista_step(x, z, d, 0.1, 0.01, padding=1)[0],
        lambda x: csc.fista(x, d, 0.1, 0.01, padding=1),
        lambda x: csc.fista(x, d, 0.1, 0.01, 3, padding=1, square_noise=False),
    ):
        (expected,) = torch.autograd.grad(run(x).square().sum(), x)
        (found,) = torch.autograd.grad(checkpoint(run, x, use_reentrant=False).square().sum(), x)
        close(found, expected)


@both_widths
def test_a_mode_sees_an_op_and_its_backward(backend: str, channels: int) -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(op)
            return op(*args, **(kwargs or {}))

    x, d = image(channels, requires_grad=True), torch.randn(4, channels, 3, 3, requires_grad=True)
    loss = csc.fista(x, d, 0.1, 0.01, padding=1).square().sum()
    expected = torch.autograd.grad(loss, (x, d), retain_graph=True)
    with Watch():
        csc.fista(x, d, 0.1, 0.01, padding=1)
        found = torch.autograd.grad(loss, (x, d))
    assert {torch.ops.csc.fista.default, torch.ops.csc.fista_backward.default} <= set(seen)
    for gradient, right in zip(found, expected):
        close(gradient, right)


@pytest.mark.parametrize(
    "pack, error",
    (
        (lambda t: t[:1] if t.dim() == 4 else t, ValueError),
        (lambda t: t[..., :4, :4] if t.dim() == 4 else t, ValueError),
        (lambda t: t.bfloat16() if t.dim() == 4 else t, TypeError),
    ),
    ids=("fewer", "smaller", "rounded"),
)
@both_widths
def test_what_hooks_make_of_saved_tensors_is_checked(
    backend: str, channels: int, pack: Callable[[Tensor], Tensor], error: type
) -> None:
    x, d = image(channels), torch.randn(4, channels, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        z = csc.fista(x, d, 0.1, 0.01, padding=1)
    with pytest.raises(error):
        z.sum().backward()


@both_widths
def test_compiled_autograd_takes_the_backward_as_one_op(channels: int) -> None:
    x, d = image(channels), torch.randn(4, channels, 3, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(csc.fista(x, d, 0.1, 0.01, padding=1).square().sum(), d)
    loss = csc.fista(x, d, 0.1, 0.01, padding=1).square().sum()
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        loss.backward()
    close(d.grad, expected)
