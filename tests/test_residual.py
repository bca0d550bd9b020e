"""csc.residual against its definition."""

from __future__ import annotations

import pytest
import torch
from conditions import EACH_DTYPE
from error_rule import assert_error, assert_gradients, gradients, unless_refused, ways
from problems import SHAPES, Problem, dense_operator, random_problem
from torch import Tensor
from torch.nn import functional as F

import csc_kernels as csc
from csc_kernels import reference

MASKS = (None, "bool", "float", "pixel", "channel")


def residual_problem(dtype: torch.dtype = torch.float64, mask: str | None = None, **case: object) -> Problem:
    """z0 is the code whose residual is wanted; the tensors that a residual does not take are numbers."""
    problem = random_problem(dtype=dtype, mask=mask, z0=True, **case)
    problem.step_size = 1.0
    return problem


def compute(problem: Problem) -> Tensor:
    return csc.residual(
        problem.x, problem.z0, problem.dictionary, stride=problem.stride, padding=problem.padding,
        mask=problem.mask,
    )  # fmt: skip


def plain(problem: Problem) -> Tensor:
    return reference.residual(problem.x, problem.z0, problem.dictionary, *problem.geometry, problem.mask)


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("backend, dtype", EACH_DTYPE, indirect=["backend"])
def test_error_is_at_most_twice_pytorchs(backend: str, dtype: torch.dtype, case: str) -> None:
    problem = residual_problem(dtype, **SHAPES[case])
    r = compute(problem)
    assert r.dtype == dtype
    assert_error(r, ways(plain, problem), plain(problem.to(torch.float64)))


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("backend, dtype", EACH_DTYPE, indirect=["backend"])
def test_gradients_obey_the_rule(backend: str, dtype: torch.dtype, case: str) -> None:
    assert_gradients(compute, plain, residual_problem(dtype, **SHAPES[case]))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("channels", (3, 12))
@pytest.mark.parametrize("backend, dtype", EACH_DTYPE, indirect=["backend"])
def test_masks_broadcast(backend: str, dtype: torch.dtype, channels: int, mask: str | None) -> None:
    problem = residual_problem(dtype, mask, channels=channels, padding=1)
    assert_error(compute(problem), ways(plain, problem), plain(problem.to(torch.float64)))
    assert_gradients(compute, plain, problem)


@pytest.mark.parametrize("case", SHAPES)
def test_is_x_minus_the_matrix_product(backend: str, case: str) -> None:
    problem = residual_problem(torch.float32, **SHAPES[case])
    matrix = dense_operator(problem.dictionary, problem.stride, problem.padding, problem.x.shape[-2:])
    z = problem.z0.double().flatten(1)
    expected = problem.x.double() - (z @ matrix.T).view(problem.x.shape)
    torch.testing.assert_close(compute(problem).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", SHAPES)
def test_synthesis_is_the_adjoint_of_conv2d(backend: str, case: str) -> None:
    problem = residual_problem(torch.float32, **SHAPES[case])
    synthesis = problem.x - compute(problem)
    analysis = F.conv2d(
        problem.x.double(), problem.dictionary.double(), stride=problem.stride, padding=problem.padding
    )
    left = (synthesis.double() * problem.x.double()).sum()
    right = (problem.z0.double() * analysis).sum()
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels, stride", ((3, 1), (3, 2), (7, 1), (7, 2)))
@pytest.mark.parametrize("mask", MASKS)
def test_without_batch_dimension_is_a_batch_of_one(
    backend: str, mask: str | None, channels: int, stride: int
) -> None:
    problem = residual_problem(torch.float32, mask, batch=None, channels=channels, stride=stride).leaves()
    batched = problem.map(_with_batch)
    alone, expected = compute(problem), compute(batched)
    assert alone.shape == problem.x.shape
    assert torch.equal(alone, expected.squeeze(0))
    mine = gradients(compute, problem)
    theirs = gradients(lambda p: compute(p.map(_with_batch)), problem)
    assert all(map(torch.equal, mine, theirs))


def _with_batch(t: Tensor) -> Tensor:
    return t if t.dim() == 4 else t.unsqueeze(0)


def test_no_code_leaves_x(backend: str) -> None:
    problem = residual_problem(torch.float32, padding=1)
    z = torch.zeros_like(problem.z0)
    assert torch.equal(csc.residual(problem.x, z, problem.dictionary, padding=1), problem.x)


def test_only_the_gradients_asked_for(backend: str) -> None:
    problem = residual_problem(torch.float32, "float", padding=1)
    for wanted in problem.tensors:
        leaves = problem.map(torch.Tensor.detach)
        getattr(leaves, wanted).requires_grad_()
        unless_refused(lambda leaves=leaves: compute(leaves).sum().backward())
        given = [name for name, tensor in leaves.tensors.items() if tensor.grad is not None]
        assert given == [wanted]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "case", ("same_even", "stride_2_odd", "stride_past_kernel", "wide_5", "batch_0", "one_pixel")
)
def test_gradcheck(case: str, mask: str | None) -> None:
    small = {"atoms": 2, "size": (4, 5)} if case not in ("stride_past_kernel", "one_pixel") else {"atoms": 2}
    problem = residual_problem(mask=mask, **(SHAPES[case] | small)).leaves()
    names = list(problem.tensors)

    def function(*tensors: Tensor) -> Tensor:
        return compute(Problem(**(vars(problem) | dict(zip(names, tensors)))))

    inputs = tuple(problem.tensors.values())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
