"""The ops and the layer inside PyTorch's machinery: opcheck, the compiler, export, autocast, transforms."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_helpers import both_norms, both_widths, close, image, make, samples
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

import csc_kernels as csc
from csc_kernels import CSCConv2d, checks


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# opcheck: schema, autograd registration, fakes against the real thing, and the compiler's dispatch.


@both_widths
@pytest.mark.parametrize("op", ("residual", "fista_step", "fista", "lipschitz", "lipschitz_bound"))
def test_opcheck(backend: str, op: str, channels: int) -> None:
    for arguments in samples(channels)[op]:
        served = arguments
        if backend == "native":  # It has no gradient for the step size, a mask, or both penalties at once.
            differentiable = {"residual": 3, "fista_step": 4, "fista": 2}.get(op, 0)
            served = tuple(
                a.detach() if isinstance(a, Tensor) and i >= differentiable else a for i, a in enumerate(arguments)
            )
        torch.library.opcheck(getattr(torch.ops.csc, op).default, served)


@pytest.mark.parametrize("default", (torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("by_kernels", (True, False))
@both_widths
@pytest.mark.parametrize("op", ("residual", "fista_step", "fista"))
def test_torchs_default_dtype_has_no_part_in_it(
    op: str, channels: int, by_kernels: bool, default: torch.dtype
) -> None:
    """The gradients of a step size and of a mask are plain PyTorch's, with all others: asked for, or not."""
    others = {"residual": (5,), "fista_step": (6, 12), "fista": (4, 6)}[op]

    def results(arguments: tuple) -> list[Tensor]:
        if by_kernels:
            arguments = tuple(
                a.detach() if i in others and isinstance(a, Tensor) else a for i, a in enumerate(arguments)
            )
        found = getattr(torch.ops.csc, op)(*arguments)
        z = found if isinstance(found, Tensor) else found[0]
        wanted = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        return [z, *torch.autograd.grad(z.square().sum(), wanted, allow_unused=True)]

    calls = samples(channels)[op]
    expected = [results(arguments) for arguments in calls]
    torch.set_default_dtype(default)
    try:
        found = [results(arguments) for arguments in calls]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(one, other))


# torch.compile.


@both_widths
@pytest.mark.parametrize("op", ("residual", "fista_step", "fista"))
def test_the_functions_compile_whole_and_once(backend: str, op: str, channels: int) -> None:
    d = torch.randn(4, channels, 3, 3)

    def function(x: Tensor, z: Tensor, d: Tensor, lmbda: float) -> Tensor:
        if op == "residual":
            return csc.residual(x, z, d, padding=1)
        if op == "fista_step":
            return csc.fista_step(x, z, d, lmbda, 0.01, beta=0.2, padding=1)[1]
        return csc.fista(x, d, lmbda, 0.01, 3, padding=1, z0=z)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for _ in range(3):
        inputs = image(channels).requires_grad_(), torch.rand(2, 4, 6, 7), d.clone().requires_grad_()
        actual, expected = compiled(*inputs, 0.1), function(*inputs, 0.1)
        close(actual, expected)
        grad = torch.randn_like(expected)
        for found, right in zip(
            torch.autograd.grad(actual, inputs[::2], grad), torch.autograd.grad(expected, inputs[::2], grad)
        ):
            close(found, right)
    assert counter.frame_count == 1


def twins(channels: int, **options: Any) -> tuple[CSCConv2d, CSCConv2d]:
    layer = make(channels, **options)
    with torch.no_grad():
        layer.weight.mul_(1.7)
    return layer, copy.deepcopy(layer)


@both_norms
@both_widths
def test_a_compiled_layer_trains_as_an_eager_one(channels: int, normalize: str) -> None:
    layer, eager = twins(channels, normalize=normalize)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (layer, eager)]
    for lmbda in (0.1, 0.2, 0.3, 0.05):
        x = image(channels)
        for module, forward, optimizer in zip((layer, eager), (compiled, eager), optimizers):
            module.lmbda = lmbda
            optimizer.zero_grad()
            forward(x).square().mean().backward()
            optimizer.step()
        close(layer.weight.grad, eager.weight.grad)
        close(layer.weight, eager.weight)
    assert counter.frame_count == 1
    with torch.no_grad():
        close(compiled.eval()(x), eager.eval()(x))


@both_norms
@both_widths
def test_a_compiled_layer_evaluates_as_an_eager_one(channels: int, normalize: str) -> None:
    layer, eager = twins(channels, normalize=normalize)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer.eval(), fullgraph=True, backend=counter)
    with torch.no_grad():
        for _ in range(3):
            x = image(channels)
            close(compiled(x), eager.eval()(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("training", (True, False))
def test_lmbda_and_mu_change_without_compiling_again(training: bool) -> None:
    model = nn.Sequential(make(3), make(8, 4)).train(training)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = image(3)
    with torch.set_grad_enabled(training):
        for i in range(12):
            csc.set_lmbda(model, 0.05 * i)
            model[0].mu = 0.1 * i
            close(compiled(x), model(x))
    assert counter.frame_count == 1
    assert model[0].lmbda == 0.05 * 11 and isinstance(model[0].lmbda, float) and model[0].mu == 0.1 * 11


def test_inductor_compiles_the_layer_for_any_size() -> None:
    layer = make(3).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((2, 6, 7), (3, 9, 8), (1, 5, 12)):
            x = torch.randn(size[0], 3, *size[1:])
            close(compiled(x), layer(x))


def test_eval_again_gives_a_compiled_layer_the_step_size_of_its_weight() -> None:
    layer = make(3).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(x := image(3))
        layer.weight.copy_(torch.ones_like(layer.weight) + 0.01 * torch.randn_like(layer.weight))
        layer.eval()
        fresh = make(3).eval()
        fresh.weight.copy_(layer.weight)
        close(compiled(x), fresh(x))


# torch.export.


@both_widths
@both_norms
@pytest.mark.parametrize("training", [False, True])
def test_exports_with_any_size_and_survives_a_file(training: bool, normalize: str, channels: int) -> None:
    layer, x, auto = make(channels, normalize=normalize).train(training), image(channels), torch.export.Dim.DYNAMIC
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    loaded = torch.export.load(stream).module()
    with torch.no_grad():
        for size in ((2, 6, 7), (3, 9, 5)):
            other = torch.randn(size[0], channels, *size[1:])
            close(loaded(other), layer(other))


# Autocast.


@both_widths
@pytest.mark.parametrize("method", ("power", "bound"))
def test_autocast_leaves_lipschitz_as_it_is(backend: str, method: str, channels: int) -> None:
    d = torch.randn(8, channels, 3, 3)
    expected = csc.lipschitz(d, input_size=(9, 9), method=method)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(csc.lipschitz(d, input_size=(9, 9), method=method), expected)


@both_widths
def test_autocast_gives_bfloat16_codes_and_float32_gradients(channels: int) -> None:
    for options in ({}, {"square_noise": False}, {"lmbda": torch.full((8, 1, 1), 0.1)}):
        layer, x = make(channels, **options), image(channels, requires_grad=True)
        expected = layer(x)
        (right,) = torch.autograd.grad(expected.square().sum(), layer.weight)
        with torch.autocast("cpu", torch.bfloat16):
            z = layer(x)
            r = csc.residual(x, z, layer.dictionary(), padding=1)
            assert layer.reconstruct(z).dtype == r.dtype == z.dtype == torch.bfloat16
        z.float().square().sum().backward()
        torch.testing.assert_close(z.float(), expected, rtol=0.05, atol=0.05)
        assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
        assert (layer.weight.grad - right).norm() < 0.1 * right.norm()


@pytest.mark.parametrize("square_noise", (True, False))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_the_code_has_the_dtype_of_x_whatever_the_parameters_are(
    backend: str, dtype: torch.dtype, square_noise: bool
) -> None:
    if backend == "native" and dtype is torch.float16:
        pytest.skip("the native backend does not serve float16")
    x, d = image(3).to(dtype), torch.randn(4, 3, 3, 3).to(dtype)
    for parameter in (torch.float32, torch.float64):
        lmbda = torch.full((1, 4, 1, 1), 0.1, dtype=parameter)
        z = csc.fista(x, d, lmbda, 0.01, 3, padding=1, mu=lmbda, square_noise=square_noise)
        assert z.dtype == dtype
        mapped = torch.vmap(lambda x: csc.fista(x, d, lmbda, 0.01, padding=1, square_noise=square_noise))  # noqa: B023
        assert mapped(x).dtype == dtype


def test_numbers_met_first_in_a_mode_or_transform_are_plain_ones_later() -> None:
    """Tensors of lmbda, mu and step_size are kept from call to call."""
    x, d = image(3), torch.randn(4, 3, 3, 3, requires_grad=True)

    def solve(x: Tensor, lmbda: float, d: Tensor = d) -> Tensor:
        return csc.fista(x, d, lmbda, 0.0123, padding=1).sum()

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        solve(mode.from_tensor(x), 0.171)
    torch.func.grad(lambda x: solve(x, 0.172))(x)
    torch.func.functionalize(lambda x: solve(x, 0.173))(x)
    with torch.inference_mode():
        solve(x, 0.174)
    torch.compile(solve, backend="eager")(x, 0.175)
    for lmbda in (0.171, 0.172, 0.173, 0.174, 0.175):
        (found,) = torch.autograd.grad(solve(x, lmbda), d)
        (expected,) = torch.autograd.grad(solve(x, torch.tensor(lmbda, dtype=torch.float64)), d)
        assert type(found) is Tensor and torch.equal(found, expected)
        assert not torch._C._functorch.is_functorch_wrapped_tensor(checks.parameter("lmbda", lmbda))
