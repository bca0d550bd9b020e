"""csc.fista against its definition."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conditions import EACH_DTYPE, PRECISE
from error_rule import assert_error, assert_gradients, gradients, unless_refused, ways
from problems import CASES, OPTIONS, Problem, dense_operator, objective, random_problem
from torch import Tensor

import csc_kernels as csc
from csc_kernels.native import stem

MOMENTA = ("fista", "none", "sdnet")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend, dtype", EACH_DTYPE, indirect=["backend"])
def test_error_is_at_most_twice_pytorchs(backend: str, dtype: torch.dtype, case: str) -> None:
    problem = random_problem(dtype=dtype, **CASES[case])
    z = problem.solve()
    assert z.dtype == dtype
    assert_error(z, ways(Problem.plain, problem), problem.to(torch.float64).plain())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend, dtype", PRECISE, indirect=["backend"])
def test_gradients_obey_the_rule(backend: str, dtype: torch.dtype, case: str) -> None:
    assert_gradients(Problem.solve, Problem.plain, random_problem(dtype=dtype, margin=1e-5, **CASES[case]))


@pytest.mark.parametrize("n_iter", range(1, 11))
@pytest.mark.parametrize("channels", (3, 6))
@pytest.mark.parametrize("backend, dtype", PRECISE, indirect=["backend"])
def test_every_number_of_steps(backend: str, dtype: torch.dtype, channels: int, n_iter: int) -> None:
    for momentum, (nonneg, z0) in itertools.product(MOMENTA, ((True, False), (False, True))):
        problem = random_problem(
            dtype=dtype, margin=1e-5, channels=channels, atoms=5, size=(4, 6), padding=1, n_iter=n_iter,
            momentum=momentum, nonneg=nonneg, z0=z0,
        )  # fmt: skip
        assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain(), momentum)
        assert_gradients(Problem.solve, Problem.plain, problem)


def test_many_steps_fit_on_a_small_stack() -> None:
    """Of 2 MiB, which threads have at least where nobody chose less."""
    x, d = torch.randn(1, 3, 9, 3), torch.randn(2, 3, 3, 3, requires_grad=True)

    def solved(n_iter: int) -> tuple[Tensor, ...]:
        z = csc.fista(x, d, 0.1, n_iter=n_iter, padding=1)
        return z.detach(), *torch.autograd.grad(z.square().sum(), d)

    size = threading.stack_size(2 * 1024 * 1024)
    try:
        with csc.use_backend("native"), ThreadPoolExecutor(1) as pool:
            few, more = pool.map(solved, (stem.STEPS, 2 * stem.STEPS))
    finally:
        threading.stack_size(size)
    torch.testing.assert_close(few, more, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", (3, 16))
def test_a_step_size_beyond_float32_gives_nan_and_no_error(backend: str, channels: int) -> None:
    x, d = torch.randn(1, channels, 8, 8, requires_grad=True), 1e-20 * torch.randn(8, channels, 3, 3)
    z = csc.fista(x, d, 1e-21, 1e39, 2, padding=1)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert z.isnan().any() and gradient.isnan().all()


def test_many_steps_in_bfloat16_are_as_precise_as_few() -> None:
    problem = random_problem(
        dtype=torch.bfloat16, channels=3, atoms=4, size=(9, 8), padding=1, n_iter=stem.STEPS + 1, lmbda=0.05
    )
    expected = problem.to(torch.float64).plain()
    z = problem.solve()
    assert z.dtype == torch.bfloat16 and (z.double() - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize(
    "n_iter, z0, momentum", ((2, False, "fista"), (1, True, "fista"), (3, True, "sdnet"), (5, False, "fista"))
)
@pytest.mark.parametrize(
    "kernel, stride, padding",
    (((3, 3), 1, 1), ((7, 7), 2, 3), ((5, 2), (3, 1), (0, 1)), ((4, 3), (1, 2), "valid"), ((2, 3), (3, 2), (4, 0))),
)
def test_tall_and_wide_images(
    backend: str, kernel: tuple, stride: object, padding: object, n_iter: int, z0: bool, momentum: str
) -> None:
    """Rows in flight are few against those of the image. lmbda = 0: no rounding changes the support."""
    rows, columns = (stride, stride) if isinstance(stride, int) else stride
    problem = random_problem(
        dtype=torch.float32, batch=1, channels=2, atoms=2, size=(45 * rows, 450 * columns), kernel=kernel,
        stride=stride, padding=padding, n_iter=n_iter, z0=z0, momentum=momentum, lmbda=0.0, mu="atom",
        mask="float", nonneg=False,
    )  # fmt: skip
    assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain())
    assert_gradients(Problem.solve, Problem.plain, problem)


@pytest.mark.parametrize("channels", (1, 3, 8))
@pytest.mark.parametrize("n_iter", (1, 2, 5))
def test_bfloat16_gradients_point_where_the_oracles_do(channels: int, n_iter: int) -> None:
    """Rounding to bfloat16 changes supports, and so single entries; the direction stays."""
    problem = random_problem(
        dtype=torch.bfloat16, channels=channels, n_iter=n_iter, padding=1, lmbda="atom", size=(12, 12)
    )
    mine, wide = problem.leaves(), problem.to(torch.float64).leaves()
    own = problem.leaves()
    for name, actual, peer, oracle in zip(
        mine.tensors,
        gradients(Problem.solve, mine),
        gradients(Problem.plain, own),
        gradients(Problem.plain, wide),
    ):
        assert actual.dtype == torch.bfloat16
        allowed = 2 * (peer.double() - oracle).norm() + 0.02 * oracle.norm()
        assert (actual.double() - oracle).norm() <= allowed, name


def textbook(problem: Problem) -> Tensor:
    """Beck & Teboulle 2009 (4.1-4.3) with A as a matrix, in float64; its "sdnet" is the published layer's."""
    matrix = dense_operator(problem.dictionary, problem.stride, problem.padding, problem.x.shape[-2:])
    x = problem.x.double().flatten(1)
    mask = 1 if problem.mask is None else problem.mask.double().flatten(1)
    t, lmbda, mu = float(problem.step_size), problem.lmbda, problem.mu
    z = y = torch.zeros(len(x), matrix.shape[1], dtype=torch.float64)
    if problem.z0 is not None:
        z = y = problem.z0.double().flatten(1)
    weight = 1.0
    for _ in range(problem.n_iter):
        point = z if problem.momentum == "sdnet" else y
        v = y + t * (mask * (x - point @ matrix.T)) @ matrix
        z_next = v.sign() * (v.abs() - t * lmbda).clamp_min(0) / (1 + t * mu)
        if problem.nonneg:
            z_next = z_next.clamp_min(0)
        weight_next = (1 + (1 + 4 * weight**2) ** 0.5) / 2
        beta = 0 if problem.momentum == "none" else (weight - 1) / weight_next
        y = z_next + beta * (z_next - z)
        z, weight = z_next, weight_next
    return z.view(problem.code_shape)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("nonneg", (True, False))
@pytest.mark.parametrize("geometry", ({"padding": 1}, {"stride": 2}, {"padding": "same", "kernel": (2, 4)}))
@pytest.mark.parametrize("channels", (3, 6))
def test_is_the_textbook_with_matrices(
    backend: str, channels: int, geometry: dict, nonneg: bool, momentum: str
) -> None:
    for n_iter, z0, mask in ((1, False, None), (2, False, None), (6, False, "float"), (5, True, "bool")):
        problem = random_problem(
            dtype=torch.float32, channels=channels, size=(6, 7), mu=0.3, n_iter=n_iter, z0=z0, mask=mask,
            nonneg=nonneg, momentum=momentum, **geometry,
        )  # fmt: skip
        torch.testing.assert_close(problem.solve().double(), textbook(problem), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("channels", (3, 6))
def test_momenta_agree_for_two_steps_from_zero_and_differ_after(backend: str, channels: int) -> None:
    for n_iter in (1, 2, 3):
        problem = random_problem(dtype=torch.float32, channels=channels, n_iter=n_iter, padding=1)
        fista, none, sdnet = (problem.solve(momentum=momentum) for momentum in MOMENTA)
        assert torch.equal(fista, none) == (n_iter < 3)
        assert torch.equal(fista, sdnet) == (n_iter < 3)
        assert not torch.equal(none, sdnet) or n_iter < 3


@pytest.mark.parametrize("nonneg", (True, False))
@pytest.mark.parametrize("channels", (1, 3, 6))
def test_many_steps_reach_the_minimum(backend: str, channels: int, nonneg: bool) -> None:
    """At the minimum of the convex objective a further step, from there, moves nothing."""
    problem = random_problem(
        dtype=torch.float32, channels=channels, atoms=4, padding=1, mu=0.1, nonneg=nonneg, n_iter=400,
        size=(6, 6),
    )  # fmt: skip
    z = problem.solve()
    further = problem.solve(z0=z, n_iter=1)
    torch.testing.assert_close(further, z, rtol=0, atol=1e-5)
    worse = z + 0.01 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).abs()
    assert objective(problem, z) < objective(problem, worse)
    assert objective(problem, z) < objective(problem, torch.zeros_like(z))


def test_tensors_and_numbers_mean_the_same(backend: str) -> None:
    problem = random_problem(dtype=torch.float32, n_iter=3, padding=1, mu=0.25, lmbda=0.125)
    expected = problem.solve()
    n, k = problem.code_shape[:2]
    for shape in ((), (1,), (k, 1, 1), (1, k, 1, 1), (n, 1, 1, 1), (1, 1, 1, 1), problem.code_shape):
        for dtype in (torch.float32, torch.float64):
            lmbda = torch.full(shape, 0.125, dtype=dtype)
            mu = torch.full(shape, 0.25, dtype=dtype)
            actual = problem.solve(lmbda=lmbda, mu=mu)
            assert actual.dtype == torch.float32
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    step_size = float(problem.step_size)
    for value in (step_size, torch.tensor(step_size), torch.tensor([[step_size]], dtype=torch.float64)):
        torch.testing.assert_close(problem.solve(step_size=value), expected, rtol=1e-6, atol=1e-7)


def _plain_in_one_dtype(problem: Problem) -> Tensor:
    """PyTorch would promote the code to the dtype of its parameters."""
    return problem.map(lambda t: t.to(problem.x.dtype)).plain()


@pytest.mark.parametrize("channels", (3, 6))
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_gradients_of_parameters_of_another_dtype(backend: str, dtype: torch.dtype, channels: int) -> None:
    problem = random_problem(
        dtype=torch.float32, margin=1e-5, channels=channels, lmbda="atom", mu="sample", padding=1
    )
    for name in ("lmbda", "mu", "step_size"):
        setattr(problem, name, getattr(problem, name).to(dtype))
    assert_gradients(Problem.solve, _plain_in_one_dtype, problem)


def test_default_step_size_converges(backend: str) -> None:
    problem = random_problem(dtype=torch.float32, padding=1, n_iter=200)
    problem.step_size = None
    reached = objective(replace(problem, step_size=1.0), problem.solve())
    assert reached <= objective(replace(problem, step_size=1.0), problem.solve(n_iter=20))
    bound = csc.lipschitz(problem.dictionary, method="bound")
    torch.testing.assert_close(problem.solve(n_iter=1), replace(problem, step_size=1 / bound).solve(n_iter=1))


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("channels", (3, 6))
@pytest.mark.parametrize("mask", (None, "bool", "float", "pixel", "channel"))
def test_without_batch_dimension_is_a_batch_of_one(
    backend: str, mask: str | None, channels: int, stride: int
) -> None:
    for lmbda, mu in itertools.product((0.1, "scalar", "atom", "full"), (0.1, "atom", "full")):
        alone = random_problem(
            dtype=torch.float32, batch=None, channels=channels, size=(5, 6), stride=stride, lmbda=lmbda,
            mu=mu, mask=mask, z0=True, n_iter=3,
        ).leaves()  # fmt: skip

        def batched(problem: Problem) -> Tensor:
            return problem.map(lambda t: t if t.dim() in (0, 4) else t.unsqueeze(0)).solve().squeeze(0)

        assert alone.solve().shape == alone.code_shape
        assert torch.equal(alone.solve(), batched(alone))
        assert all(map(torch.equal, gradients(Problem.solve, alone), gradients(batched, alone)))


@pytest.mark.parametrize("case", ("rgb", "wide_17", "stride_2_odd", "mask_channel", "lmbda_sample"))
def test_samples_do_not_see_each_other(backend: str, case: str) -> None:
    problem = random_problem(dtype=torch.float32, **CASES[case] | {"batch": 5, "n_iter": 3})
    together = problem.solve()
    for i in range(5):
        own = {"x": problem.x[i : i + 1]}
        if isinstance(problem.lmbda, Tensor):
            own["lmbda"] = problem.lmbda[i : i + 1]
        torch.testing.assert_close(problem.solve(**own), together[i : i + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", (3, 6))
def test_an_empty_batch_has_an_empty_code_and_zero_gradients(backend: str, channels: int) -> None:
    problem = random_problem(
        dtype=torch.float32, batch=0, channels=channels, lmbda="atom", mu="scalar", padding=1, n_iter=3
    ).leaves()
    assert problem.solve().shape == (0, 8, 8, 9)
    for gradient, tensor in zip(gradients(Problem.solve, problem), problem.tensors.values()):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("channels", (3, 6))
def test_only_the_gradients_asked_for(backend: str, channels: int) -> None:
    problem = random_problem(
        dtype=torch.float32, margin=1e-5, channels=channels, lmbda="atom", mu="scalar", mask="float",
        z0=True, padding=1, n_iter=3,
    )  # fmt: skip
    names = list(problem.tensors)
    everything = dict(zip(names, gradients(Problem.solve, problem.leaves())))
    for wanted in [(name,) for name in names] + list(itertools.combinations(names, 2)):
        leaves = problem.map(torch.Tensor.detach)
        for name in wanted:
            getattr(leaves, name).requires_grad_()
        unless_refused(lambda leaves=leaves: leaves.solve().square().sum().backward())
        for name, tensor in leaves.tensors.items():
            assert (tensor.grad is not None) == (name in wanted), name
            if name in wanted:
                torch.testing.assert_close(tensor.grad, everything[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", OPTIONS)
def test_gradcheck(case: str) -> None:
    small = {"atoms": 3, "size": (3, 4), "batch": 1, "channels": 5 if "wide" in case else 2}
    problem = random_problem(margin=1e-4, **{"padding": 1} | OPTIONS[case] | small).leaves()
    if OPTIONS[case].get("lmbda") == "sample":
        problem = random_problem(margin=1e-4, padding=1, **OPTIONS[case] | small | {"batch": 2}).leaves()
    names = list(problem.tensors)

    def function(*tensors: Tensor) -> Tensor:
        return replace(problem, **dict(zip(names, tensors))).solve()

    inputs = tuple(problem.tensors.values())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("channels", (3, 6))
@pytest.mark.parametrize("n_iter", (1, 2, 4))
def test_unsquared_residual_is_divided_by_twice_its_norm(backend: str, n_iter: int, channels: int) -> None:
    problem = random_problem(dtype=torch.float32, channels=channels, padding=1, n_iter=n_iter)
    matrix = dense_operator(problem.dictionary, 1, 1, problem.x.shape[-2:])
    x, t = problem.x.double().flatten(1), float(problem.step_size)
    z = torch.zeros(len(x), matrix.shape[1], dtype=torch.float64)
    for k in range(n_iter):
        r = x - z @ matrix.T
        if k:
            r = r / (2 * r.norm(dim=1, keepdim=True))
        z = (z + t * r @ matrix - t * problem.lmbda).clamp_min(0)
    actual = problem.solve(momentum="none", square_noise=False)
    torch.testing.assert_close(actual.double(), z.view(problem.code_shape), rtol=1e-5, atol=1e-6)


def test_the_code_is_sparser_with_a_larger_lmbda(backend: str) -> None:
    problem = random_problem(dtype=torch.float32, padding=1, n_iter=5)
    counts = [int((problem.solve(lmbda=lmbda) != 0).sum()) for lmbda in (0.0, 0.1, 0.5, 1.0, 2.0, 50.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-2] > 0 == counts[-1]


@pytest.mark.parametrize("z0", (False, True))
@pytest.mark.parametrize("channels, rows", ((3, 33), (3, 3), (6, 3)))
def test_the_backward_of_a_batch_of_none(backend: str, channels: int, rows: int, z0: bool) -> None:
    x, d = torch.randn(0, channels, 40, 8), torch.randn(4, channels, rows, 3, requires_grad=True)
    start = torch.zeros(0, 4, 41 - rows, 6) if z0 else None
    for z in (
        csc.fista(x, d, 0.1, 0.01, z0=start),
        torch.ops.csc.fista(
            x, d, *map(torch.tensor, (0.1, 0.0, 0.01)), start, None, 2, (1, 1), (0, 0, 0, 0), True, "fista", False
        )[0],
    ):
        (gradient,) = torch.autograd.grad(z.sum(), d)
        assert torch.equal(gradient, torch.zeros_like(d))
