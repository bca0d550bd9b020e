"""Single ops under pytest-benchmark: pytest bench --benchmark-only."""

from __future__ import annotations

import pytest
import torch

import csc_kernels as csc

# name: (channels, atoms, size, kernel, stride, padding, batch)
SHAPES = {
    "cifar_stem": (3, 64, 32, 3, 1, 1, 16),
    "imagenet_stem": (3, 64, 224, 7, 2, 3, 1),
    "wide": (64, 64, 32, 3, 1, 1, 4),
}


class Problem:
    """x, a code, a dictionary of unit atoms and the options of one shape."""

    def __init__(self, channels, atoms, size, kernel, stride, padding, batch) -> None:
        self.x = torch.randn(batch, channels, size, size)
        self.size = size
        self.dictionary = torch.nn.functional.normalize(torch.randn(atoms, channels, kernel, kernel), dim=(1, 2, 3))
        self.options = {"stride": stride, "padding": padding}
        self.step_size = float(1 / csc.lipschitz(self.dictionary, method="bound", **self.options))
        self.z = self.solve(1)

    def solve(self, n_iter: int) -> torch.Tensor:
        return csc.fista(self.x, self.dictionary, 0.1, self.step_size, n_iter, **self.options)


@pytest.fixture(params=SHAPES)
def problem(request: pytest.FixtureRequest) -> Problem:
    torch.manual_seed(0)
    return Problem(*SHAPES[request.param])


@pytest.fixture(params=csc.available_backends(), autouse=True)
def backend(request: pytest.FixtureRequest):
    with csc.use_backend(request.param):
        yield request.param


def test_residual(benchmark, problem: Problem) -> None:
    benchmark(csc.residual, problem.x, problem.z, problem.dictionary, **problem.options)


def test_fista_step(benchmark, problem: Problem) -> None:
    arguments = (problem.x, problem.z, problem.dictionary, 0.1, problem.step_size)
    benchmark(csc.fista_step, *arguments, **problem.options)


@pytest.mark.parametrize("n_iter", [2, 10])
def test_fista(benchmark, problem: Problem, n_iter: int) -> None:
    benchmark(problem.solve, n_iter)


def test_fista_backward(benchmark, problem: Problem) -> None:
    problem.dictionary.requires_grad_()
    z = problem.solve(2)
    upstream = torch.ones_like(z)
    benchmark(torch.autograd.grad, z, problem.dictionary, upstream, retain_graph=True)


@pytest.mark.parametrize("method", ["power", "bound"])
def test_lipschitz(benchmark, problem: Problem, method: str) -> None:
    benchmark(
        csc.lipschitz, problem.dictionary, input_size=problem.size, method=method, tol=1e-3, **problem.options
    )


@pytest.mark.parametrize("layer", ["CSCConv2d", "Conv2d"])
def test_small_training_step(benchmark, layer: str) -> None:
    """Of one small picture, so that nearly all of it is Python, dispatch and allocation."""
    x, made = torch.randn(1, 3, 8, 8), {"CSCConv2d": csc.CSCConv2d, "Conv2d": torch.nn.Conv2d}[layer]
    module = made(3, 64, 3, padding=1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    upstream = torch.ones(1, 64, 8, 8)

    def step() -> None:
        optimizer.zero_grad()
        module(x).backward(upstream)
        optimizer.step()

    benchmark(step)
