"""What the tests share: random problems, the float64 oracle, and the rule for errors."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

import csc_kernels as csc
from csc_kernels import backends, reference
from csc_kernels.geometry import code_size, normalize_padding, normalize_stride, step_weights

TENSORS = ("x", "dictionary", "lmbda", "mu", "step_size", "z0", "mask")


def examples(count: int) -> settings:
    """Hypothesis with the same examples on every machine; the fixture `backend` holds for all of them."""
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=ignored)


# Where the tests put their tensors: `make test DEVICE=cuda`.
DEVICE = os.environ.get("CSC_TEST_DEVICE", "cpu")
if DEVICE == "cuda" and not torch.cuda.is_available():
    raise SystemExit("DEVICE=cuda: torch sees no GPU on this machine")


def serves(backend: str, dtype: torch.dtype) -> bool:
    """Whether a backend that runs here serves a dtype on the device of the tests."""
    x = torch.zeros(1, 1, 1, 1, dtype=dtype, device=DEVICE)
    try:
        with csc.use_backend(backend):
            csc.residual(x, x, x)
    except RuntimeError:
        return False
    return True


# Every backend with every dtype it serves, for parametrize("backend, dtype", ..., indirect=["backend"]).
BACKENDS = [name for name in csc.available_backends() if serves(name, torch.float32)]
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
EACH_DTYPE = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for name in BACKENDS
    for dtype in DTYPES
    if serves(name, dtype)
]
# float32 is what every backend serves; gradients jump where rounding changes the support of a code, which
# bfloat16 does everywhere: the margin of a problem keeps it out of float32.
PRECISE = [case for case in EACH_DTYPE if case.values[1] is not torch.bfloat16]


@dataclass
class Problem:
    """The arguments of one `csc.fista`; absent tensors are None."""

    x: Tensor
    dictionary: Tensor
    lmbda: float | Tensor = 0.1
    mu: float | Tensor = 0.0
    step_size: float | Tensor = 0.1
    z0: Tensor | None = None
    mask: Tensor | None = None
    n_iter: int = 2
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    nonneg: bool = True
    momentum: str = "fista"

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        stride = normalize_stride(self.stride)
        return stride, normalize_padding(self.padding, tuple(self.dictionary.shape[2:]), stride)

    @property
    def code_shape(self) -> tuple[int, ...]:
        stride, pads = self.geometry
        size = code_size(self.x.shape[-2:], self.dictionary.shape[2:], stride, pads)
        return (*self.x.shape[:-3], self.dictionary.shape[0], *size)

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with every tensor changed."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{n: change(v) for n, v in values if isinstance(v, Tensor)})

    def to(self, dtype: torch.dtype) -> Problem:
        return self.map(lambda t: t.detach().to(dtype) if t.is_floating_point() else t)

    def leaves(self) -> Problem:
        """Every floating tensor a leaf that asks for a gradient."""
        return self.map(lambda t: t.detach().clone().requires_grad_() if t.is_floating_point() else t)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors whose gradients can be asked for."""
        found = ((name, getattr(self, name)) for name in TENSORS)
        return {n: v for n, v in found if isinstance(v, Tensor) and v.is_floating_point()}

    def solve(self, **changes: Any) -> Tensor:
        """What is tested: csc.fista on these arguments."""
        return csc.fista(**{f.name: getattr(self, f.name) for f in fields(self)} | changes)

    def plain(self) -> Tensor:
        """The definition in plain PyTorch, in the precision of the tensors, differentiable."""
        return reference.fista(
            self.x, self.dictionary, *self.parameters, self.z0, self.mask, self.n_iter, *self.geometry,
            self.nonneg, self.momentum,
        )[0][-1]  # fmt: skip

    @property
    def parameters(self) -> list[Tensor]:
        """lmbda, mu and step_size as tensors."""
        values = (self.lmbda, self.mu, self.step_size)
        return [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in values]

    def margin(self) -> float:
        """How far the closest entry of all steps is from the threshold, in float64."""
        wide = self.to(torch.float64)
        lmbda, mu, step_size = wide.parameters
        z = y = wide.z0
        closest = math.inf
        for beta in step_weights(self.n_iter, self.momentum):
            point = z if self.momentum == "sdnet" else y
            nothing = torch.zeros((), dtype=torch.float64)
            v, _ = reference.step(
                wide.x, y, point, wide.dictionary, nothing, nothing, step_size, *wide.geometry,
                False, wide.mask,
            )  # fmt: skip
            size = v if self.nonneg else v.abs()
            if size.numel():
                closest = min(closest, (size - step_size * lmbda).abs().min().item())
            z_next = reference.prox(v, lmbda, mu, step_size, self.nonneg)
            y = z_next + beta * (z_next - z) if beta else z_next
            z = z_next
        return closest


def random_problem(
    *,
    batch: int | None = 2,
    channels: int = 3,
    atoms: int = 8,
    size: tuple[int, int] = (8, 9),
    kernel: tuple[int, int] = (3, 3),
    lmbda: float | str = 0.1,
    mu: float | str = 0.0,
    z0: bool = False,
    mask: str | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    margin: float = 0.0,
    **options: Any,
) -> Problem:
    """A problem with random tensors; lmbda and mu may be "scalar", "atom", "sample" or "full" tensors.

    Tensors are drawn in float64 and rounded to `dtype`. With a margin, seeds are tried until no entry of any
    step is closer to the threshold, so that rounding cannot change the support.
    """
    lead = () if batch is None else (batch,)
    for attempt in range(seed, seed + 100):
        generator = torch.Generator().manual_seed(attempt)

        def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        dictionary = normal(atoms, channels, *kernel)
        dictionary /= dictionary.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        problem = Problem(normal(*lead, channels, *size), dictionary, **options)
        norm = csc.lipschitz(dictionary, stride=problem.stride, padding=problem.padding, input_size=size, tol=0.05)
        # Every position of the code may lie in the padding; then A is zero.
        problem.step_size = 0.9 / torch.where(norm > 0, norm, 1)

        def parameter(kind: float | str, scale: float, code: tuple[int, ...], normal=normal) -> Any:
            if not isinstance(kind, str):
                return kind
            shapes = {"scalar": (), "atom": (atoms, 1, 1), "sample": (*lead, 1, 1, 1), "full": code}
            return scale * (0.5 + normal(*shapes[kind]).abs())

        problem.lmbda = parameter(lmbda, 0.1, problem.code_shape)
        problem.mu = parameter(mu, 0.2, problem.code_shape)
        if z0:
            problem.z0 = 0.1 * normal(*problem.code_shape)
        problem.mask = random_mask(mask, problem.x, generator)
        problem = problem.to(dtype)
        if margin == 0 or problem.margin() > margin:
            return problem
    raise AssertionError(f"no seed from {seed} on has a margin of {margin}")


def random_mask(kind: str | None, x: Tensor, generator: torch.Generator) -> Tensor | None:
    """A mask of x: "bool" or "float" in x's shape, "pixel" (bool) and "channel" (float) that broadcast."""
    if kind is None:
        return None
    shape = {
        "bool": x.shape,
        "float": x.shape,
        "pixel": (1, *x.shape[-2:]),
        "channel": (x.shape[-3], 1, 1),
    }
    uniform = torch.rand(shape[kind], dtype=torch.float64, generator=generator)
    return uniform > 0.3 if kind in ("bool", "pixel") else uniform


# Errors. A fast path may have twice PyTorch's own error at the same precision, both against float64
# (the rule of flash-attention's tests), plus a few units in the last place of the largest value.


def ways(plain: Callable[[Any], Any], problem: Any) -> list[Any]:
    """What PyTorch computes in each layout, with oneDNN and without.

    The error of one of them on a few numbers is luck, and another on every machine; the worst of them is not.
    oneDNN 3.12 for AVX2 writes beyond the gradient of 1x1 weights with a stride, and is left out there.
    """
    backends = (False,) if tuple(problem.dictionary.shape[2:]) == (1, 1) else (True, False)
    results = []
    for onednn, layout in itertools.product(backends, (torch.contiguous_format, torch.channels_last)):
        laid = problem.map(lambda t, f=layout: t.contiguous(memory_format=f) if t.dim() == 4 else t)
        with torch.backends.mkldnn.flags(enabled=onednn):
            results.append(plain(laid))
    return results


def assert_error(
    actual: Tensor,
    peers: Tensor | Sequence[Tensor],
    oracle: Tensor,
    what: str = "result",
    spread: Tensor | None = None,
    dtype: torch.dtype | None = None,
    times: float = 2.0,
) -> None:
    """`actual` is at most `times` as far from the float64 `oracle` as the worst of PyTorch's `ways`.

    The distances are the maximum and the rms.

    `spread` is for sums, which can be smaller than their terms: the root of the sum of the terms' squares.
    `dtype` is what was computed in, where the result has another.
    """
    peers = [peers] if isinstance(peers, Tensor) else peers
    assert actual.shape == oracle.shape, f"{what}: shape {actual.shape} instead of {oracle.shape}"
    if oracle.numel() == 0:
        return
    eps = torch.finfo(dtype or actual.dtype).eps
    # Against itself float64 is no oracle: PyTorch's error is none, and what remains is the order of sums.
    units = 32 if peers[0].dtype is torch.float64 else 4
    error = actual.double() - oracle
    for name, measure in (("maximum", _largest), ("rms", _rms)):
        own = max(measure(peer.double() - oracle) for peer in peers)
        allowed = times * own + times / 2 * units * eps * measure(oracle)
        if spread is not None:
            allowed += times * units * eps * measure(spread)
        # NaN compares false: the test is on what is allowed.
        assert measure(error) <= allowed, (
            f"{what}: {name} error {measure(error):.3g}, allowed {allowed:.3g}, PyTorch's {own:.3g}"
        )


def _largest(t: Tensor) -> float:
    return t.abs().max().item()


def _rms(t: Tensor) -> float:
    return t.square().mean().sqrt().item()


def unless_refused(run: Callable[[], Any]) -> Any:
    """run() with the forced backend, and where that refuses a call, with the automatic choice.

    test_backends.py holds the list of what may be refused.
    """
    return _and_whether_refused(run)[0]


def _and_whether_refused(run: Callable[[], Any]) -> tuple[Any, bool]:
    try:
        return run(), False
    except RuntimeError as error:
        if "cannot serve" not in str(error):
            raise
    forced, backends._forced = backends._forced, None
    try:
        return run(), True
    finally:
        backends._forced = forced


def gradients(compute: Callable[[Problem], Tensor], leaves: Problem) -> tuple[Tensor, ...]:
    """Of the sum of squares of what is computed, in every tensor of the problem."""
    wanted = list(leaves.tensors.values())
    return unless_refused(lambda: torch.autograd.grad(compute(leaves).square().sum(), wanted))


def assert_gradients(
    compute: Callable[[Problem], Tensor],
    plain: Callable[[Problem], Tensor],
    problem: Problem,
    times: float = 2.0,
) -> None:
    """The gradients of `compute` obey the rule: of all tensors at once, and of those that no backend refuses.

    One refused gradient sends the whole backward elsewhere: then the second is what tests the backend's own.
    """
    own, wide = problem.leaves(), problem.to(torch.float64)
    # The oracle's parameters have the shape that they broadcast to: its gradients are the terms of the sums.
    for name in wide.tensors.keys() & {"lmbda", "mu", "step_size", "mask"}:
        full = wide.x.shape if name == "mask" else wide.code_shape
        setattr(wide, name, getattr(wide, name).expand(full))
    wide = wide.leaves()
    z = plain(wide)
    grad = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    grad = grad.to(problem.x.dtype)
    terms = dict(zip(wide.tensors, torch.autograd.grad(z, list(wide.tensors.values()), grad.double())))

    def peer(laid: Problem) -> tuple[Tensor, ...]:
        return torch.autograd.grad(plain(laid), list(own.tensors.values()), grad)

    peers = dict(zip(own.tensors, zip(*ways(peer, own))))

    def backward(mine: Problem) -> tuple[Tensor, ...]:
        return torch.autograd.grad(compute(mine), [t for t in mine.tensors.values() if t.requires_grad], grad)

    def check(mine: Problem, gradients: Sequence[Tensor]) -> None:
        for name, found in zip((n for n, t in mine.tensors.items() if t.requires_grad), gradients):
            given, term = getattr(problem, name), terms[name]
            assert found.dtype == given.dtype, f"gradient of {name} is {found.dtype}"
            oracle, spread = term.sum_to_size(given.shape), term.square().sum_to_size(given.shape).sqrt()
            if name == "z0":
                # What is left of the arriving gradient after every step's contraction, rounded at its full size.
                spread = grad.double()
            elif oracle.shape == term.shape:
                spread = None
            # A float64 parameter of a float32 solve has a gradient of float32's precision, and the reverse.
            coarser = max(given.dtype, problem.x.dtype, key=lambda dtype: torch.finfo(dtype).eps)
            assert_error(found, peers[name], oracle, f"gradient of {name}", spread, coarser, times)

    everything, served = problem.leaves(), _served(problem)
    gradients, refused = _and_whether_refused(lambda: backward(everything))
    check(everything, gradients)
    if refused:
        check(served, backward(served))


def _served(problem: Problem) -> Problem:
    """Leaves for the gradients that every backend has: not of the step size, a mask, or a map of penalties."""
    served = problem.leaves()
    for name, leaf in served.tensors.items():
        varies = name in ("lmbda", "mu") and max((1, 1, *leaf.shape)[-2:]) > 1
        if name in ("step_size", "mask") or varies:
            leaf.requires_grad_(False)
    return served


@contextmanager
def memory_for(allocations: int) -> Iterator[None]:
    """torch.empty runs out of memory after so many calls."""
    empty, left = torch.empty, iter(range(allocations))

    def scarce(*shape: Any, **options: Any) -> Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("played")
        return empty(*shape, **options)

    with mock.patch.object(torch, "empty", scarce):
        yield


def assert_unchanged_by_scarcity(compute: Callable[[], Sequence[Tensor]]) -> None:
    """Whichever allocation fails, the same call computes the same afterwards."""
    expected, allocations = compute(), 0
    while True:
        try:
            with memory_for(allocations):
                compute()
            break
        except torch.OutOfMemoryError:
            allocations += 1
    assert allocations > 1
    for found, wanted in zip(compute(), expected):
        assert torch.equal(found, wanted)


# A as a matrix, from its definition alone: no convolution of PyTorch is involved.


def dense_operator(dictionary: Tensor, stride: Any, padding: Any, size: Sequence[int]) -> Tensor:
    """A for images of `size` as a matrix, pixels (M H W) x codes (K H' W'), in float64."""
    atoms, channels, *kernel = dictionary.shape
    stride = normalize_stride(stride)
    pads = normalize_padding(padding, tuple(kernel), stride)
    rows, columns = code_size(size, kernel, stride, pads)
    canvas = (size[0] + pads[0] + pads[1], size[1] + pads[2] + pads[3])
    matrix = torch.zeros(channels, *canvas, atoms, rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride[0], j * stride[1]
            window = matrix[:, top : top + kernel[0], left : left + kernel[1], :, i, j]
            window.copy_(dictionary.detach().double().permute(1, 2, 3, 0))
    image = matrix[:, pads[0] : pads[0] + size[0], pads[2] : pads[2] + size[1]]
    return image.reshape(channels * size[0] * size[1], atoms * rows * columns)


def objective(problem: Problem, z: Tensor) -> float:
    """What a solve minimises, in float64."""
    wide = problem.to(torch.float64)
    lmbda, mu, _ = wide.parameters
    r = reference.residual(wide.x, z.double(), wide.dictionary, *wide.geometry, wide.mask)
    return (0.5 * r.square().sum() + (lmbda * z.abs()).sum() + (0.5 * mu * z.square()).sum()).item()


# What the ops must survive, by name: shapes (for random_problem), and everything else.

SHAPES: dict[str, dict[str, Any]] = {
    "rgb": {"padding": 1},
    "grey": {"channels": 1, "padding": 1, "atoms": 5},
    "two_channels": {"channels": 2, "padding": 1, "atoms": 7},
    "four_channels": {"channels": 4, "padding": 1, "atoms": 6},
    "wide_5": {"channels": 5, "padding": 1, "atoms": 6},
    "wide_17": {"channels": 17, "padding": 1, "atoms": 9, "size": (6, 7)},
    "wide_40": {"channels": 40, "padding": 1, "atoms": 33, "size": (5, 6)},
    "wide_64": {"channels": 64, "padding": 1, "atoms": 64, "size": (12, 13), "batch": 1},
    "wide_32_even": {"channels": 32, "padding": 1, "atoms": 48, "size": (8, 8), "batch": 1},
    "wide_valid": {"channels": 16, "atoms": 20, "size": (9, 7)},
    "wide_5x5": {"channels": 16, "padding": 2, "kernel": (5, 5), "atoms": 16, "size": (7, 6)},
    "wide_same_even": {"channels": 8, "padding": "same", "kernel": (2, 4), "atoms": 8},
    "wide_1x1": {"channels": 24, "kernel": (1, 1), "atoms": 12},
    "wide_one_pixel": {"channels": 16, "padding": 1, "size": (1, 1)},
    "wide_stride": {"channels": 16, "padding": 1, "atoms": 16, "size": (9, 8), "stride": 2},
    "atoms_1": {"atoms": 1, "padding": 1},
    "atoms_17": {"atoms": 17, "padding": 1},
    "atoms_35": {"atoms": 35, "padding": 1, "size": (6, 18)},
    "batch_0": {"batch": 0, "padding": 1},
    "batch_0_wide": {"batch": 0, "channels": 8, "padding": 1},
    "batch_1": {"batch": 1, "padding": 1},
    "batch_5": {"batch": 5, "padding": 1, "size": (4, 5)},
    "row": {"size": (1, 21), "padding": 1},
    "column": {"size": (21, 1), "padding": 1},
    "one_pixel": {"size": (1, 1), "padding": 1},
    "long_rows": {"size": (3, 70), "padding": 1, "atoms": 3},
    "long_columns": {"size": (70, 3), "padding": 1, "atoms": 3},
    "kernel_1x1": {"kernel": (1, 1)},
    "kernel_1x1_stride": {"kernel": (1, 1), "stride": 2, "padding": 1},
    "kernel_even": {"kernel": (2, 4), "padding": (1, 2)},
    "kernel_flat": {"kernel": (1, 5), "padding": (0, 2)},
    "kernel_tall": {"kernel": (5, 2), "padding": (2, 0)},
    "kernel_7": {"kernel": (7, 7), "padding": 3, "stride": 2, "size": (14, 15)},
    "kernel_11": {"kernel": (11, 11), "padding": 5, "stride": 4, "size": (19, 23)},
    "kernel_33_rows": {"kernel": (33, 2), "padding": (16, 1), "size": (20, 5), "atoms": 3},
    "kernel_is_image": {"kernel": (8, 9)},
    "kernel_past_image": {"kernel": (9, 10), "padding": 3},
    "padding_past_kernel": {"kernel": (2, 2), "padding": 4, "size": (4, 5)},
    "same_odd": {"padding": "same"},
    "same_even": {"kernel": (4, 2), "padding": "same"},
    "same_past_image": {"kernel": (8, 6), "padding": "same", "size": (3, 4)},
    "valid": {"padding": "valid"},
    "stride_2": {"stride": 2, "padding": 1},
    "stride_2_odd": {"stride": 2, "padding": 1, "size": (9, 11)},
    "stride_3": {"stride": 3, "padding": 1, "size": (10, 12)},
    "stride_pair": {"stride": (1, 3), "padding": (1, 0), "size": (6, 14)},
    "stride_past_kernel": {"stride": (4, 5), "kernel": (3, 2), "size": (12, 13)},
}

OPTIONS: dict[str, dict[str, Any]] = {
    "one_step": {"n_iter": 1},
    "three_steps": {"n_iter": 3},
    "ten_steps": {"n_iter": 10, "size": (5, 6)},
    "ista": {"n_iter": 4, "momentum": "none"},
    "sdnet": {"n_iter": 5, "momentum": "sdnet"},
    "signed": {"nonneg": False, "n_iter": 3},
    "signed_sdnet": {"nonneg": False, "n_iter": 4, "momentum": "sdnet", "z0": True},
    "signed_ista": {"nonneg": False, "n_iter": 3, "momentum": "none", "mask": "float"},
    "start": {"z0": True},
    "start_one_step": {"z0": True, "n_iter": 1},
    "start_signed": {"z0": True, "n_iter": 4, "nonneg": False},
    "no_threshold": {"lmbda": 0.0, "n_iter": 3},
    "no_threshold_signed": {"lmbda": 0.0, "n_iter": 3, "nonneg": False},
    "lmbda_huge": {"lmbda": 100.0},
    "lmbda_scalar": {"lmbda": "scalar"},
    "lmbda_atom": {"lmbda": "atom"},
    "lmbda_sample": {"lmbda": "sample"},
    "lmbda_full": {"lmbda": "full", "nonneg": False},
    "mu": {"mu": 0.5, "n_iter": 3},
    "mu_scalar": {"mu": "scalar"},
    "mu_atom": {"mu": "atom", "lmbda": "atom"},
    "mu_sample": {"mu": "sample", "lmbda": "full"},
    "mu_full": {"mu": "full", "nonneg": False, "n_iter": 3},
    "mask_bool": {"mask": "bool"},
    "mask_float": {"mask": "float", "n_iter": 3},
    "mask_pixel": {"mask": "pixel", "z0": True},
    "mask_channel": {"mask": "channel", "momentum": "sdnet", "n_iter": 3},
    "everything": {
        "lmbda": "full", "mu": "atom", "mask": "float", "z0": True, "nonneg": False, "n_iter": 4,
        "stride": 2, "size": (9, 8),
    },
    "everything_wide": {
        "channels": 12, "lmbda": "atom", "mu": "full", "mask": "channel", "z0": True, "n_iter": 3,
    },
}  # fmt: skip
CASES = {name: {"padding": 1} | case for name, case in OPTIONS.items()} | SHAPES
