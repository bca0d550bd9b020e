"""The Huber loss of the residual, and a mask over unknown pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conditions import EACH_DTYPE, PRECISE
from error_rule import assert_error, assert_gradients, ways
from problems import Problem, random_problem

import csc_kernels as csc
from csc_kernels import reference
from csc_kernels.geometry import step_weights

HUBER = 0.3
CASES: dict[str, dict[str, Any]] = {
    "stem": {"n_iter": 4},
    "one_step": {"n_iter": 1},
    "wide": {"channels": 6, "n_iter": 3, "momentum": "sdnet"},
    "stride": {"kernel": (3, 2), "stride": (2, 1), "size": (7, 9), "momentum": "none"},
    "signed": {"nonneg": False, "z0": True, "mu": 0.3},
    "mask": {"mask": "float", "lmbda": "atom", "n_iter": 3},
}


def solve(problem: Problem) -> torch.Tensor:
    return problem.solve(huber=HUBER)


def plain(p: Problem) -> torch.Tensor:
    """The definition: the derivative of the loss stands where the residual does."""
    z = y = p.z0
    for beta in step_weights(p.n_iter, p.momentum):
        point = z if p.momentum == "sdnet" else y
        r = p.x if point is None else reference.residual(p.x, point, p.dictionary, *p.geometry)
        r = r.clamp(-HUBER, HUBER) if p.mask is None else r.clamp(-HUBER, HUBER) * p.mask
        lmbda, mu, step_size = p.parameters
        v = step_size * reference.analysis(r, p.dictionary, *p.geometry)
        z_next = reference.prox(v if y is None else y + v, lmbda, mu, step_size, p.nonneg)
        y = z_next if z is None or not beta else z_next + beta * (z_next - z)
        z = z_next
    return z


def problem_of(case: str, dtype: torch.dtype) -> Problem:
    return random_problem(dtype=dtype, **{"padding": 1, "lmbda": 0.05} | CASES[case])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend, dtype", EACH_DTYPE, indirect=["backend"])
def test_the_error_is_at_most_twice_pytorchs(backend: str, dtype: torch.dtype, case: str) -> None:
    problem = problem_of(case, dtype)
    z = solve(problem)
    assert z.dtype == dtype and not torch.allclose(z, problem.solve(), rtol=0.1)
    assert_error(z, ways(plain, problem), plain(problem.to(torch.float64)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend, dtype", PRECISE, indirect=["backend"])
def test_gradients_obey_the_rule(backend: str, dtype: torch.dtype, case: str) -> None:
    assert_gradients(solve, plain, problem_of(case, dtype))


def test_a_wide_loss_is_the_squared_one(backend: str) -> None:
    problem = random_problem(dtype=torch.float32, padding=1, n_iter=5)
    torch.testing.assert_close(problem.solve(huber=1e4), problem.solve(), rtol=1e-5, atol=1e-6)


def test_an_outlier_pulls_no_harder_than_the_loss_is_wide(backend: str) -> None:
    problem = random_problem(dtype=torch.float32, padding=1, n_iter=5)
    near, far = problem.x.clone(), problem.x.clone()
    near[0, 0, 2, 2], far[0, 0, 2, 2] = 50.0, torch.inf
    codes = [problem.solve(huber=HUBER, x=x) for x in (near, far)]
    torch.testing.assert_close(*codes)


@pytest.mark.parametrize(
    "huber, error", ((0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError))
)
def test_a_loss_without_width_is_refused(huber: Any, error: type[Exception]) -> None:
    problem = random_problem(dtype=torch.float32)
    with pytest.raises(error, match="huber"):
        problem.solve(huber=huber)
    with pytest.raises(error, match="huber"):
        csc.CSCConv2d(3, 8, 3, huber=huber)


def test_the_unsquared_residual_has_no_huber_loss() -> None:
    with pytest.raises(ValueError, match="square_noise=False"):
        csc.CSCConv2d(3, 8, 3, huber=0.1, square_noise=False)


@pytest.mark.parametrize("n_dict", (1, 2))
@pytest.mark.parametrize("channels", (1, 3))
def test_a_layers_mask_hides_pixels(n_dict: int, channels: int) -> None:
    layer = csc.CSCConv2d(3, 8, 3, padding=1, huber=0.5, n_iter=3, n_dict=n_dict)
    x = torch.randn(2, 3, 6, 7)
    mask = torch.rand(2, channels, 6, 7) > 0.3
    other = torch.where(mask, x, 7.0)
    assert layer(x, mask).equal(layer(other, mask)) and not layer(x).allclose(layer(other))


def test_the_layer_is_the_function() -> None:
    layer = csc.CSCConv2d(3, 8, 3, padding=1, huber=0.5, n_iter=3).eval()
    x = torch.randn(2, 3, 6, 7)
    assert layer(x).equal(csc.fista(x, layer.dictionary(), 0.1, layer.step_size, 3, padding=1, huber=0.5))
    assert "huber=0.5" in repr(layer)


def test_it_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()  # What other tests compiled counts towards its limit.
    layer = csc.CSCConv2d(3, 8, 3, padding=1, huber=0.5, n_iter=3).eval()
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
