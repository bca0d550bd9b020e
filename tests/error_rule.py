"""The rule for errors.

A fast path may have twice PyTorch's own error at the same precision, both against float64 (the rule of
flash-attention's tests), plus a few units in the last place of the largest value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from problems import Problem
from torch import Tensor

from csc_kernels import backends


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
    for name, measure in (("maximum", _largest), ("rms", rms)):
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


def rms(t: Tensor) -> float:
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

    everything, served = problem.leaves(), served_leaves(problem)
    gradients, refused = _and_whether_refused(lambda: backward(everything))
    check(everything, gradients)
    if refused:
        check(served, backward(served))


def served_leaves(problem: Problem) -> Problem:
    """Leaves for the gradients that every backend has: not of the step size, a mask, or a map of penalties."""
    served = problem.leaves()
    for name, leaf in served.tensors.items():
        varies = name in ("lmbda", "mu") and max((1, 1, *leaf.shape)[-2:]) > 1
        if name in ("step_size", "mask") or varies:
            leaf.requires_grad_(False)
    return served
