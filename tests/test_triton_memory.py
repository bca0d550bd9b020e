"""The Triton kernels and memory: every layout, nothing outside a result, the same bits, distant addresses.

Where there is no GPU they run in triton's interpreter: see interpreter.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_fista_step
import test_residual
import torch
from error_rule import gradients
from interpreter import with_triton
from problems import Problem, random_problem
from scarcity import assert_unchanged_by_scarcity
from torch import Tensor


def everything(problem: Problem) -> dict[str, Tensor]:
    """The three ops and all gradients that the backend has."""
    step = test_fista_step.Step(**vars(problem), y=0.5 * problem.z0, beta=0.3)
    leaves = [t for t in problem.tensors.values() if t.requires_grad]
    found = {}
    for name, compute in (
        ("residual", lambda: test_residual.compute(problem)),
        ("fista_step", lambda: test_fista_step.compute(step)),
        ("fista", problem.solve),
    ):
        value = compute()
        found[name] = value.detach()
        grads = torch.autograd.grad(value.square().sum(), leaves, allow_unused=True)
        found |= {f"{name} {i}": g for i, g in enumerate(grads) if g is not None}
    return found


def problem_of(channels: int, **options: object) -> Problem:
    case = {"lmbda": "atom", "mu": "full", "mask": "bool", "z0": True, "padding": 1, "n_iter": 3, "stride": 2}
    return random_problem(dtype=torch.float32, channels=channels, **case | options)


def laid_out(t: Tensor, kind: str) -> Tensor:
    """The same values, laid out in another way."""
    if t.dim() != 4:
        return t
    if kind == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.full([s + 3 for s in t.shape], float("nan") if t.is_floating_point() else 1).to(t.dtype)
    view = wide[1:-2, 2:-1, 1:-2, 2:-1]
    return view.copy_(t)


@pytest.mark.parametrize("kind", ("channels_last", "transposed", "view"))
@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_any_layout_is_read_as_it_lies(channels: int, kind: str) -> None:
    problem = problem_of(channels)
    expected = everything(problem.leaves())
    found = everything(problem.map(lambda t: laid_out(t.detach(), kind)).map(_asking))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5 * float(expected[name].abs().max()))


def _asking(t: Tensor) -> Tensor:
    return t.requires_grad_() if t.is_floating_point() else t


@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_expanded_tensors(channels: int) -> None:
    problem = problem_of(channels, lmbda=0.1, mu=0.2, mask="pixel", margin=1e-5)
    x = problem.x[:1].expand(3, -1, -1, -1)
    z0 = problem.z0[:1, :, :1].expand(3, -1, problem.z0.shape[2], -1)
    expanded = replace(problem, x=x, z0=z0, mask=problem.mask[:1] if problem.mask.dim() == 4 else problem.mask)
    apart = expanded.map(lambda t: t.clone())
    assert torch.equal(expanded.solve(), apart.solve())
    assert torch.equal(test_residual.compute(expanded), test_residual.compute(apart))


@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_nothing_outside_a_result_is_written_and_nothing_of_it_left(channels: int) -> None:
    problem = problem_of(channels).leaves()
    expected = everything(problem)
    empty, guards = torch.empty, []

    def guarded(*shape, **options):
        """A tensor full of NaN between two rows of a sentinel."""
        options.pop("memory_format", None)
        shape = shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape
        count = torch.Size(shape).numel()
        memory = torch.full((count + 64,), 7.0, **options)
        memory[32:-32] = float("nan")
        guards.append(memory)
        return memory[32:-32].view(shape)

    torch.empty = guarded
    try:
        found = everything(problem)
    finally:
        torch.empty = empty
    assert guards
    for memory in guards:
        assert (memory[:32] == 7).all() and (memory[-32:] == 7).all()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_the_same_call_gives_the_same_bits(channels: int) -> None:
    problem = problem_of(channels).leaves()
    first, second = everything(problem), everything(problem)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("channels", (3, 9))
@with_triton
def test_out_of_memory_leaves_no_state(channels: int) -> None:
    problem = random_problem(dtype=torch.float32, channels=channels, size=(4, 4), atoms=3, padding=1).leaves()
    assert_unchanged_by_scarcity(lambda: gradients(Problem.solve, problem))


@with_triton
def test_results_have_the_layout_of_x() -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        problem = problem_of(9)
        problem.x = problem.x.contiguous(memory_format=memory_format)
        leaves = problem.leaves()
        for name, tensor in everything(leaves).items():
            if name in ("residual", "fista_step", "fista"):
                assert name == "fista_step" or tensor.is_contiguous(memory_format=memory_format), name


# More than 2^31 elements: the memory is reserved, and only what is used of it is ever touched.

LARGE = 2**31


@pytest.mark.parametrize("dim", (0, 1, 2))
@with_triton
def test_addresses_past_two_to_the_31(dim: int) -> None:
    problem = random_problem(
        dtype=torch.float16, channels=3, atoms=4, size=(4, 5), padding=1, n_iter=3, z0=True, mask="float",
        lmbda="full",
    )  # fmt: skip

    def far(t: Tensor) -> Tensor:
        """The same values, the last index of `dim` more than 2^31 elements away from the first."""
        if t.dim() != 4 or t.shape[dim] == 1:
            return t
        jump = LARGE // (t.shape[dim] - 1) + 8
        strides = list(t.contiguous().stride())
        strides[dim] = jump
        memory = torch.empty(jump * t.shape[dim] + t.numel(), dtype=t.dtype)
        return memory.as_strided(t.shape, strides).copy_(t)

    distant = problem.map(far)
    assert max(distant.x.stride()) * (distant.x.shape[dim] - 1) >= LARGE
    assert torch.equal(distant.solve(), problem.solve())
    for near, apart in zip(backward(problem), backward(distant)):
        torch.testing.assert_close(near, apart, rtol=1e-2, atol=1e-2)


def backward(problem: Problem) -> tuple[Tensor, ...]:
    wanted = [t.detach().requires_grad_() for t in (problem.x, problem.dictionary, problem.z0)]
    problem = replace(problem, **dict(zip(("x", "dictionary", "z0"), wanted)))
    return torch.autograd.grad(problem.solve().float().square().sum(), wanted)
