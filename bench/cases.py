"""The layers that are measured, and every way to compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from harness import Contender, backend_name, nothing
from sdnet.plain import Published, cleaned
from torch import Tensor
from torch.nn import functional as F

import csc_kernels as csc

LMBDA = 0.1
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NAMES = ("published", "cleaned", "compiled", "conv2d", "csc.fista", "CSCConv2d")
HIGH = "csc.fista high"  # Where the caller has allowed less precision than float32's, for wide layers.
MODES = ("forward", "training")
# The contenders whose rates stand for the machine's, see `peak` and `memory`.
PEAK, MEMORY = "peak", "memory"
MEMORY_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Case:
    """A layer with two steps, as SDNet has it, and the batch that it sees."""

    in_channels: int
    atoms: int
    size: int
    kernel: int
    stride: int
    padding: int
    batch: int

    @property
    def stem(self) -> bool:
        """The first layer of a network, whose input needs no gradient."""
        return self.in_channels <= 4

    @property
    def code_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def operations(self, mode: str) -> float:
        """Floating point operations of csc.fista by direct convolutions.

        Forward: analysis, synthesis, analysis. Backward: three correlations and two convolutions; for a stem also
        the first code and the residual again, which are not kept, and otherwise the gradient of x.
        """
        product = 2.0 * self.batch * self.atoms * self.code_size**2 * self.in_channels * self.kernel**2
        return product * (3 if mode == "forward" else 10 if self.stem else 9)

    def tiny(self) -> Case:
        """The same code paths on almost no data."""
        return replace(self, batch=1, size=4 * self.kernel)


CASES = {
    "CIFAR stem 3->64, 32x32, k3, batch 64": Case(3, 64, 32, 3, 1, 1, 64),
    "Fashion-MNIST stem 1->64, 28x28, k3, batch 64": Case(1, 64, 28, 3, 1, 1, 64),
    "ImageNet stem 3->64, 224, k7 s2, batch 8": Case(3, 64, 224, 7, 2, 3, 8),
    "64->64, 32x32, batch 64": Case(64, 64, 32, 3, 1, 1, 64),
    "128->128, 16x16, batch 64": Case(128, 128, 16, 3, 1, 1, 64),
    "256->256, 8x8, batch 64": Case(256, 256, 8, 3, 1, 1, 64),
    "512->512, 4x4, batch 64": Case(512, 512, 4, 3, 1, 1, 64),
}


@dataclass
class Problem:
    """The tensors of one contender: nobody shares memory, so nobody finds another's in the cache."""

    case: Case
    x: Tensor
    dictionary: Tensor
    step_size: float

    @classmethod
    def draw(cls, case: Case, layout: str, dtype: torch.dtype, training: bool) -> Problem:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(case.batch, case.in_channels, case.size, case.size, generator=generator)
        shape = (case.atoms, case.in_channels, case.kernel, case.kernel)
        atoms = torch.randn(shape, generator=generator).double()
        dictionary = F.normalize(atoms, dim=(1, 2, 3))
        lipschitz = csc.lipschitz(
            dictionary, stride=case.stride, padding=case.padding, input_size=case.size, tol=1e-3
        )
        x = x.to(dtype, memory_format=LAYOUTS[layout])
        dictionary = dictionary.to(dtype, memory_format=LAYOUTS[layout])
        return cls(
            case,
            x.requires_grad_(training and not case.stem),
            dictionary.requires_grad_(training),
            0.9 / float(lipschitz),
        )

    def layer(self, kind: Callable[..., torch.nn.Module]) -> torch.nn.Module:
        """A layer that holds this problem's dictionary, so that both are trained and timed as one."""
        case = self.case
        layer = kind(
            case.in_channels, case.atoms, case.kernel, stride=case.stride, padding=case.padding, lmbda=LMBDA
        ).to(self.dictionary.dtype)
        layer.weight = torch.nn.Parameter(self.dictionary.detach().clone())
        self.dictionary = layer.weight
        return layer.train(self.dictionary.requires_grad)


def with_precision(precision: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call under torch.set_float32_matmul_precision(precision)."""

    def run(*arguments: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return call(*arguments)
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def nudge(weight: Tensor) -> Callable[[], None]:
    """Moves the weight to and fro by one percent, as an optimiser does between two steps of training."""
    direction = torch.randn_like(weight)
    direction *= 0.01 * weight.detach().norm() / direction.norm()

    @torch.no_grad()
    def move() -> None:
        weight.add_(direction)
        direction.neg_()

    return move


def forward(name: str, problem: Problem) -> tuple[Callable[[], Tensor], Callable[[], object]]:
    """The code of problem.x as one contender computes it, and what has to happen before each call."""
    case, x, dictionary = problem.case, problem.x, problem.dictionary
    training = dictionary.requires_grad
    options = {"stride": case.stride, "padding": case.padding}
    if name == "conv2d":
        return partial(F.conv2d, x, dictionary, **options), nothing
    if name == "cleaned":
        return partial(cleaned, x, dictionary, LMBDA, problem.step_size, **options), nothing
    if name == "compiled":
        compiled = torch.compile(cleaned, dynamic=False)
        return partial(compiled, x, dictionary, LMBDA, problem.step_size, **options), nothing
    if name in ("csc.fista", HIGH):
        return partial(csc.fista, x, dictionary, LMBDA, problem.step_size, **options), nothing
    if name == "CSCConv2d":
        layer = problem.layer(csc.CSCConv2d).train(training)
        return partial(layer, x), nudge(layer.weight) if training else nothing
    if name == "published":
        layer = problem.layer(Published).train(training)

        def batch() -> Tensor:
            layer.update_step_size((case.code_size, case.code_size))
            return layer(x)

        return batch, nudge(layer.weight) if training else nothing
    raise ValueError(f"contender must be one of {NAMES}, got {name!r}")


def train(compute: Callable[[], Tensor], problem: Problem, upstream: Tensor | None = None) -> list[Tensor]:
    """Forward and backward: gradients of the dictionary and, but for a stem, of x."""
    inputs = [problem.dictionary] if problem.case.stem else [problem.dictionary, problem.x]
    z = compute()
    return torch.autograd.grad(z, inputs, torch.ones_like(z) if upstream is None else upstream)


def infer(compute: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return compute()


def peak(dtype: torch.dtype) -> Contender:
    """The convolution that reaches most of a processor: many channels, oneDNN's own layout."""
    case = CASES["64->64, 32x32, batch 64"]
    problem = Problem.draw(case, "channels_last", dtype, training=False)
    call = partial(infer, partial(F.conv2d, problem.x, problem.dictionary, padding=case.padding))
    return Contender(PEAK, "channels_last", call)


def peak_rate(milliseconds: float) -> float:
    """Operations per second of `peak`."""
    return CASES["64->64, 32x32, batch 64"].operations("forward") / 3 / (1e-3 * milliseconds)


def memory() -> Contender:
    """The sum of two tensors of 16 MiB, the size of the CIFAR stem's code: tells how much other work there is."""
    first, second, total = (torch.ones(MEMORY_NUMBERS) for _ in range(3))
    return Contender(MEMORY, "contiguous", partial(torch.add, first, second, out=total))


def memory_rate(milliseconds: float) -> float:
    """Bytes per second that `memory` reads and writes."""
    return 3 * 4 * MEMORY_NUMBERS / (1e-3 * milliseconds)


def contender(name: str, case: Case, layout: str, mode: str, dtype: torch.dtype) -> Contender:
    """A contender with tensors of its own; `mode` is "forward" or "training"."""
    problem = Problem.draw(case, layout, dtype, mode == "training")
    compute, before = forward(name, problem)
    if mode == "training":
        code = (case.batch, case.atoms, case.code_size, case.code_size)
        upstream = torch.randn(code).to(dtype, memory_format=LAYOUTS[layout])
        call: Callable[[], object] = partial(train, compute, problem, upstream)
    else:
        call = partial(infer, compute)
    if name == HIGH:  # The backward too.
        call = with_precision("high", call)
    backend = backend_name() if name in ("csc.fista", HIGH, "CSCConv2d") else "torch"
    return Contender(name, layout, call, before, backend)
