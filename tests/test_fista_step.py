"""csc.fista_step against its definition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from conditions import EACH_DTYPE, PRECISE
from error_rule import assert_error, assert_gradients, gradients, unless_refused, ways
from problems import SHAPES, Problem, dense_operator, objective, random_problem
from torch import Tensor

import csc_kernels as csc
from csc_kernels import reference
from csc_kernels.geometry import step_weights

# What one step knows beside the geometry: whether it has an extrapolated point, and its momentum.
STEPS = {
    "from_z": {},
    "from_y": {"y": True},
    "beta": {"beta": 0.3},
    "from_y_beta": {"y": True, "beta": 0.7},
    "sdnet": {"momentum": "sdnet", "y": True, "beta": 0.4},
    "sdnet_from_z": {"momentum": "sdnet"},
    "ista": {"momentum": "none"},
    "signed": {"y": True, "beta": 0.3, "nonneg": False},
    "per_atom": {"y": True, "lmbda": "atom", "mu": "atom"},
    "per_sample": {"y": True, "lmbda": "sample", "mu": "sample", "beta": 0.2},
    "full": {"lmbda": "full", "mu": "full", "nonneg": False},
    "scalars": {"lmbda": "scalar", "mu": "scalar", "y": True},
    "mask_bool": {"mask": "bool", "y": True},
    "mask_float": {"mask": "float", "beta": 0.5},
    "mask_channel": {"mask": "channel", "y": True, "momentum": "sdnet"},
    "stride": {"stride": 2, "y": True, "beta": 0.3, "mu": 0.3, "mask": "pixel"},
    "wide": {"channels": 9, "atoms": 12, "y": True, "beta": 0.3, "mask": "float", "lmbda": "atom"},
}


@dataclass
class Step(Problem):
    """The arguments of one `csc.fista_step`; z0 is the last code."""

    y: Tensor | None = None
    beta: float = 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        return super().tensors | ({} if self.y is None else {"y": self.y})

    def margin(self) -> float:
        start = self.z0 if self.y is None else self.y
        point = self.z0 if self.momentum == "sdnet" else start
        wide, start, point = self.to(torch.float64), start.double(), point.double()
        zero = torch.zeros((), dtype=torch.float64)
        lmbda, _, step_size = wide.parameters
        v, _ = reference.step(
            wide.x, start, point, wide.dictionary, zero, zero, step_size, *wide.geometry, False, wide.mask
        )
        size = v if self.nonneg else v.abs()
        return (size - step_size * lmbda).abs().min().item() if size.numel() else 1.0


def random_step(dtype: torch.dtype = torch.float64, margin: float = 0.0, **case: object) -> Step:
    beta, with_y = case.pop("beta", 0.0), case.pop("y", False)
    for seed in range(0, 10_000, 100):
        problem = random_problem(z0=True, seed=seed, dtype=dtype, **({"padding": 1} | case))
        step = Step(**vars(problem), beta=beta)
        if with_y:
            step.y = step.z0.roll(1, -1) * 0.7
        if margin == 0 or step.margin() > margin:
            return step
    raise AssertionError("no seed has the margin")


def compute(step: Step) -> Tensor:
    """Both outputs, one after the other."""
    return torch.cat(
        csc.fista_step(
            step.x, step.z0, step.dictionary, step.lmbda, step.step_size, y=step.y, beta=step.beta,
            stride=step.stride, padding=step.padding, mu=step.mu, nonneg=step.nonneg,
            momentum=step.momentum, mask=step.mask,
        )
    )  # fmt: skip


def plain(step: Step) -> Tensor:
    y = step.z0 if step.y is None else step.y
    z_next, y_next = reference.fista_step(
        step.x, step.z0, y, step.dictionary, *step.parameters, step.beta, *step.geometry, step.nonneg,
        step.momentum == "sdnet", step.mask,
    )  # fmt: skip
    return torch.cat((z_next, y_next))


CASES = STEPS | {name: {"padding": 0, "y": True, "beta": 0.6} | case for name, case in SHAPES.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend, dtype", EACH_DTYPE, indirect=["backend"])
def test_error_is_at_most_twice_pytorchs(backend: str, dtype: torch.dtype, case: str) -> None:
    step = random_step(dtype, **CASES[case])
    both = compute(step)
    assert both.dtype == dtype
    assert_error(both, ways(plain, step), plain(step.to(torch.float64)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend, dtype", PRECISE, indirect=["backend"])
def test_gradients_obey_the_rule(backend: str, dtype: torch.dtype, case: str) -> None:
    assert_gradients(compute, plain, random_step(dtype, margin=1e-5, **CASES[case]))


@pytest.mark.parametrize("momentum", ("fista", "sdnet", "none"))
@pytest.mark.parametrize("nonneg", (True, False))
def test_is_the_step_of_the_matrix_form(backend: str, momentum: str, nonneg: bool) -> None:
    case = {} if momentum == "none" else {"y": True, "beta": 0.25}
    step = random_step(
        torch.float32, size=(5, 6), stride=2, mu=0.3, mask="float", momentum=momentum, nonneg=nonneg, **case
    )
    matrix = dense_operator(step.dictionary, step.stride, step.padding, step.x.shape[-2:])
    z = step.z0.double().flatten(1)
    y = z if step.y is None else step.y.double().flatten(1)
    point = z if momentum == "sdnet" else y
    t = float(step.step_size)
    v = y + t * (step.mask.double().flatten(1) * (step.x.double().flatten(1) - point @ matrix.T)) @ matrix
    shrunk = (v.abs() - t * step.lmbda).clamp_min(0) * v.sign()
    z_next = (shrunk.clamp_min(0) if nonneg else shrunk) / (1 + t * step.mu)
    y_next = z_next + step.beta * (z_next - z)
    expected = torch.cat((z_next, y_next)).view(-1, *step.z0.shape[1:])
    torch.testing.assert_close(compute(step).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", ("fista", "sdnet", "none"))
@pytest.mark.parametrize("channels", (3, 8))
def test_a_loop_of_steps_is_a_solve(backend: str, channels: int, momentum: str) -> None:
    problem = random_problem(
        dtype=torch.float32, channels=channels, n_iter=6, momentum=momentum, padding=1, z0=True, mask="bool"
    )
    z = y = problem.z0
    for beta in step_weights(6, momentum):
        extrapolated = {} if momentum == "none" else {"y": y, "beta": beta}
        z, y = csc.fista_step(
            problem.x, z, problem.dictionary, problem.lmbda, problem.step_size, padding=1,
            momentum=momentum, mask=problem.mask, **extrapolated,
        )  # fmt: skip
    torch.testing.assert_close(z, problem.solve(), rtol=1e-5, atol=1e-6)


def test_without_beta_the_extrapolated_point_is_the_code(backend: str) -> None:
    step = random_step(torch.float32)
    z_next, y_next = csc.fista_step(step.x, step.z0, step.dictionary, 0.1, 0.1, padding=1)
    assert z_next is y_next


@pytest.mark.parametrize("channels", (3, 7))
def test_without_batch_dimension_is_a_batch_of_one(backend: str, channels: int) -> None:
    step = random_step(
        torch.float32, batch=None, channels=channels, y=True, beta=0.3, lmbda="atom", mu="full", mask="float",
        stride=2,
    ).leaves()  # fmt: skip

    def batched(step: Step) -> Tensor:
        both = compute(step.map(lambda t: t if t.dim() in (0, 4) else t.unsqueeze(0)))
        return both.flatten(0, 1)

    assert torch.equal(compute(step), batched(step))
    assert all(map(torch.equal, gradients(compute, step), gradients(batched, step)))


@pytest.mark.parametrize("output", (0, 1))
@pytest.mark.parametrize("momentum", ("fista", "sdnet"))
def test_gradients_of_one_output_alone(backend: str, momentum: str, output: int) -> None:
    def one(both: Tensor) -> Tensor:
        return both.chunk(2)[output]

    step = random_step(torch.float32, margin=1e-5, y=True, beta=0.6, momentum=momentum)
    assert_gradients(lambda s: one(compute(s)), lambda s: one(plain(s)), step)


def test_only_the_gradients_asked_for(backend: str) -> None:
    case = {"y": True, "beta": 0.5, "lmbda": "atom", "mu": "scalar", "mask": "float"}
    step = random_step(torch.float32, **case)
    for wanted in step.tensors:
        leaves = step.map(torch.Tensor.detach)
        getattr(leaves, wanted).requires_grad_()
        unless_refused(lambda leaves=leaves: compute(leaves).sum().backward())
        assert [name for name, t in leaves.tensors.items() if t.grad is not None] == [wanted]


@pytest.mark.parametrize("channels", (3, 8))
def test_default_step_size_does_not_raise_the_objective(backend: str, channels: int) -> None:
    problem = random_problem(dtype=torch.float32, channels=channels, padding=1, nonneg=False)
    z = torch.zeros(problem.code_shape)
    values = [objective(problem, z)]
    for _ in range(20):
        z, _ = csc.fista_step(problem.x, z, problem.dictionary, problem.lmbda, padding=1, nonneg=False)
        values.append(objective(problem, z))
    assert all(after <= before * (1 + 1e-6) for before, after in zip(values, values[1:]))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("case", STEPS)
def test_gradcheck(case: str) -> None:
    step = random_step(
        margin=1e-3, **STEPS[case] | {"size": (3, 4), "atoms": 3, "channels": 2, "batch": 1}
    ).leaves()
    names = list(step.tensors)

    def function(*tensors: Tensor) -> Tensor:
        return compute(replace(step, **dict(zip(names, tensors))))

    inputs = tuple(step.tensors.values())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
