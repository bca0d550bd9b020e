"""Random shapes, options, memory layouts and values: every backend against the definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from conditions import BACKENDS, PRECISE, examples, serves
from error_rule import assert_error, assert_gradients, gradients, ways
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import Problem, random_problem
from torch import Tensor

import csc_kernels as csc
from csc_kernels import reference
from csc_kernels.native import paths, use_path

precise = pytest.mark.parametrize("backend, dtype", PRECISE, indirect=["backend"])
PARAMETERS = ("number", "scalar", "atom", "sample", "full")


@st.composite
def problems(draw: st.DrawFn, most_channels: int = 20) -> dict:
    """Arguments of random_problem for problems of every kind, small enough for hundreds."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    paddings = [st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("valid")]
    if stride == (1, 1):
        paddings.append(st.just("same"))
    padding = draw(st.one_of(paddings))
    margin = {"valid": (0, 0), "same": kernel}.get(padding, padding)
    size = draw(st.tuples(*(st.integers(max(1, k - 2 * p), 12) for k, p in zip(kernel, margin))))
    few = st.integers(1, 4)
    parameters = st.sampled_from(PARAMETERS)
    options = {
        "batch": draw(st.integers(0, 3)),
        "channels": draw(st.one_of(few, st.integers(5, most_channels))),
        "atoms": draw(st.integers(1, 20)),
        "size": size,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "n_iter": draw(st.integers(1, 10)),
        "nonneg": draw(st.booleans()),
        "momentum": draw(st.sampled_from(("fista", "none", "sdnet"))),
        "z0": draw(st.booleans()),
        "mask": draw(st.sampled_from((None, "bool", "float", "pixel", "channel"))),
        "lmbda": draw(parameters),
        "mu": draw(parameters),
        "seed": draw(st.integers(0, 10_000)),
    }
    for name, number in (("lmbda", 0.1), ("mu", 0.2)):
        if options[name] == "number":
            options[name] = draw(st.sampled_from((0.0, number)))
    return options


@precise
@examples(150)
@given(options=problems())
def test_any_solve_obeys_the_rule(backend: str, dtype: torch.dtype, options: dict) -> None:
    problem = random_problem(dtype=dtype, **options)
    assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain())


@precise
@examples(120)
@given(options=problems())
def test_any_gradient_obeys_the_rule(backend: str, dtype: torch.dtype, options: dict) -> None:
    problem = random_problem(dtype=dtype, **options)
    assume(problem.margin() > 1e-5)
    assert_gradients(Problem.solve, Problem.plain, problem)


@pytest.mark.parametrize("backend", [n for n in BACKENDS if serves(n, torch.bfloat16)], indirect=True)
@examples(80)
@given(options=problems())
def test_any_bfloat16_solve_obeys_the_rule(backend: str, options: dict) -> None:
    problem = random_problem(dtype=torch.bfloat16, **options)
    # There PyTorch's own convolution in bfloat16 reads memory that nobody wrote, see native/convolutions.py.
    assume(not (paths.has_tile_units() and problem.code_shape[-1] == 1 and problem.geometry[0][1] > 1))
    assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain())


@pytest.mark.parametrize("width, padding", [(2, 1), (5, 0)])
def test_codes_of_one_column_in_bfloat16_hold_nothing_of_memory_that_nobody_wrote(width: int, padding: int) -> None:
    x, dictionary = torch.randn(2, 13, 11, width), torch.randn(17, 13, 5, 4) / 16
    options = {"stride": (1, 2), "padding": (0, padding), "n_iter": 3}
    expected = csc.fista(x.bfloat16().float(), dictionary.bfloat16().float(), 0.1, 0.1, **options)
    for _ in range(5):
        freed = [torch.full((size,), torch.nan) for size in (10, 100, 1000, 10_000, 100_000) for _ in range(20)]
        del freed
        code = csc.fista(x.bfloat16(), dictionary.bfloat16(), 0.1, 0.1, **options)
        assert code.shape[3] == 1
        torch.testing.assert_close(code.float(), expected, rtol=0.05, atol=0.05)


@examples(25)
@given(options=problems(most_channels=6))
def test_any_gradient_of_a_gradient_is_right(options: dict) -> None:
    options |= {"atoms": min(3, options["atoms"]), "n_iter": min(3, options["n_iter"])}
    problem = random_problem(**options)
    assume(problem.margin() > 1e-4)
    leaves = problem.leaves()
    names = list(leaves.tensors)

    def function(*tensors: Tensor) -> Tensor:
        return Problem(**(vars(leaves) | dict(zip(names, tensors)))).solve()

    inputs = tuple(leaves.tensors.values())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


# Layouts. What surrounds a view in its storage is NaN, and must be neither read nor written.


@dataclass
class Surrounded:
    """A view of a larger storage of NaN that holds the values of a tensor."""

    view: Tensor
    storage: Tensor
    before: Tensor

    def untouched(self) -> bool:
        return bool(((self.storage == self.before) | self.before.isnan() & self.storage.isnan()).all())


def surround(tensor: Tensor, layout: str) -> Surrounded:
    """`tensor` in another layout, within NaN."""
    dims, order = tensor.dim(), list(range(tensor.dim()))
    if layout == "channels_last" and dims == 4:
        order = [0, 2, 3, 1]
    elif layout == "transposed":
        order = order[:-2] + [dims - 1, dims - 2] if dims >= 2 else order
    elif layout == "batch_inside" and dims == 4:
        order = [1, 2, 3, 0]
    sizes = [tensor.shape[i] for i in order]
    if layout == "offset":
        storage = torch.full((tensor.numel() + 8,), torch.nan, dtype=tensor.dtype)
        view = storage[1 : 1 + tensor.numel()].view(tensor.shape)
    else:
        around, step = (2, 2) if layout == "strided" else (1, 1)
        storage = torch.full([size * step + 2 * around for size in sizes], torch.nan, dtype=tensor.dtype)
        inside = storage[tuple(slice(around, around + size * step, step) for size in sizes)]
        view = inside.permute([order.index(i) for i in range(dims)])
    view.copy_(tensor)
    return Surrounded(view, storage, storage.clone())


LAYOUTS = ("contiguous", "offset", "strided", "channels_last", "transposed", "batch_inside")


@pytest.mark.parametrize("channels", (3, 7))
@precise
@examples(60)
@given(data=st.data())
def test_any_layout_gives_the_same(backend: str, dtype: torch.dtype, channels: int, data: st.DataObject) -> None:
    choices = st.sampled_from(LAYOUTS)
    problem = random_problem(
        dtype=dtype, channels=channels, atoms=data.draw(st.sampled_from((5, 8, 16))), padding=1, z0=True,
        n_iter=data.draw(st.integers(1, 3)), stride=data.draw(st.integers(1, 2)), nonneg=False,
        mask=data.draw(st.sampled_from((None, "float", "channel"))), margin=1e-5,
        lmbda=data.draw(st.sampled_from(("atom", "sample", "full"))), mu="full",
        seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    expected, grads = problem.solve(), gradients(Problem.solve, problem.leaves())
    views = {name: surround(value, data.draw(choices)) for name, value in problem.tensors.items()}
    strange = Problem(**vars(problem) | {name: view.view for name, view in views.items()})
    z = strange.solve()
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
    for name in views:
        getattr(strange, name).requires_grad_()
    for name, found, right in zip(views, gradients(Problem.solve, strange), grads):
        scale = float(right.abs().max())
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5 * scale, msg=f"gradient of {name}")
    assert all(view.untouched() for view in views.values())


@pytest.mark.parametrize("channels", (3, 7))
@pytest.mark.parametrize("dim", range(4))
def test_expanded_inputs_and_gradients(backend: str, channels: int, dim: int) -> None:
    """Stride 0 in x, z0, dictionary and in the gradient that arrives."""
    problem = random_problem(dtype=torch.float32, channels=channels, padding=1, z0=True, n_iter=2)
    problem.step_size = problem.step_size.item()
    for name in ("x", "z0", "dictionary"):
        value = getattr(problem, name)
        setattr(problem, name, value.narrow(dim, 0, 1).expand_as(value))
    dense = problem.map(lambda t: t.clone(memory_format=torch.contiguous_format)).leaves()
    expanded = problem.map(torch.Tensor.detach)
    for name in ("x", "z0", "dictionary"):
        getattr(expanded, name).requires_grad_()
    grad = torch.randn(problem.code_shape, generator=torch.Generator().manual_seed(0))
    grad = grad.narrow(dim, 0, 1).expand(problem.code_shape)
    found = expanded.solve()
    torch.testing.assert_close(found, dense.solve(), rtol=1e-5, atol=1e-6)
    wanted = ("x", "z0", "dictionary")
    for name, a, b in zip(
        wanted,
        torch.autograd.grad(found, [getattr(expanded, n) for n in wanted], grad),
        torch.autograd.grad(dense.solve(), [getattr(dense, n) for n in wanted], grad.contiguous()),
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()), msg=name)


# NaN and infinity: a kernel that skips, pads or vectorises in another way must not change who is struck.

SPOTS = {"corner": (0, 0), "middle": (4, 4), "end": (-1, -1)}


def assert_same_strikes(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.isposinf(), expected.isposinf())
    assert torch.equal(actual.isneginf(), expected.isneginf())


def problems_struck(
    channels: int, where: str, spot: tuple[int, int], value: float, size: tuple[int, int] = (9, 10)
) -> Iterator[Problem]:
    """Problems of every kind with one value in one place."""
    for stride, nonneg, n_iter in itertools.product((1, 2), (True, False), (1, 2, 3)):
        problem = random_problem(
            dtype=torch.float32, channels=channels, atoms=64 if channels == 64 else 9, size=size,
            padding=1, stride=stride, nonneg=nonneg, n_iter=n_iter, z0=where == "z0" or nonneg,
            mask="float" if where == "mask" else None,
        )  # fmt: skip
        struck = getattr(problem, where)
        struck[0, 0, spot[0], spot[1] % struck.shape[3]] = value
        yield problem


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf), ids=str)
@pytest.mark.parametrize("spot", SPOTS)
@pytest.mark.parametrize("where", ("x", "z0", "mask"))
@pytest.mark.parametrize("channels", (1, 3, 5, 16))
def test_nan_and_infinity_spread_as_in_the_reference(
    backend: str, channels: int, where: str, spot: str, value: float
) -> None:
    for problem in problems_struck(channels, where, SPOTS[spot], value):
        # Winograd's tiles spread them further: see the next test.
        with use_path("direct"):
            actual = problem.solve()
        assert_same_strikes(actual, problem.plain())
        if problem.z0 is not None:
            x, z, dictionary, mask = problem.x, problem.z0, problem.dictionary, problem.mask
            with use_path("direct"):
                actual = csc.residual(x, z, dictionary, stride=problem.stride, padding=1, mask=mask)
            assert_same_strikes(actual, reference.residual(x, z, dictionary, *problem.geometry, mask))


@pytest.mark.parametrize("value", (torch.nan, -torch.inf), ids=str)
@pytest.mark.parametrize("spot", SPOTS)
@pytest.mark.parametrize("where", ("x", "z0", "mask"))
def test_winograd_hides_no_nan_and_spreads_it_by_its_tiles_alone(
    backend: str, where: str, spot: str, value: float
) -> None:
    """Sums of a tile's entries make infinity NaN, and reach a pixel beyond the kernel, each convolution anew."""
    for problem in problems_struck(64, where, SPOTS[spot], value, size=(17, 20)):
        if problem.stride != 1:
            assert_same_strikes(problem.solve(), problem.plain())
            continue
        struck = ~problem.solve().isfinite()
        expected = problem.plain()
        assert not (expected.isnan() & ~struck).any()
        assert not struck[1:].any()
        reach = 2 * (2 * problem.n_iter)
        row, column = (i % n for i, n in zip(SPOTS[spot], problem.x.shape[2:]))
        rows, columns = torch.meshgrid(*map(torch.arange, struck.shape[2:]), indexing="ij")
        near = ((rows - row).abs() <= reach) & ((columns - column).abs() <= reach)
        assert not near.all() and not (struck & ~near).any()


@pytest.mark.parametrize("spot", ((0, 0), (1, 1), (2, 2)))
@pytest.mark.parametrize("channels", (1, 3, 5, 16, 64))
def test_a_nan_in_the_dictionary_is_never_hidden(backend: str, channels: int, spot: tuple[int, int]) -> None:
    """Whether NaN times the zeros of the padding is computed is the kernel's choice, as in PyTorch's own."""
    for problem in problems_struck(channels, "dictionary", spot, torch.nan):
        missed = problem.plain().isnan() & ~problem.solve().isnan()
        assert not missed.any()


@pytest.mark.parametrize("channels", (3, 7))
@pytest.mark.parametrize("nonneg", (True, False))
def test_a_nan_in_one_sample_stays_in_that_sample(backend: str, nonneg: bool, channels: int) -> None:
    problem = random_problem(dtype=torch.float32, channels=channels, batch=3, padding=1, nonneg=nonneg, n_iter=3)
    clean = problem.solve()
    problem.x[1] = torch.nan
    struck = problem.solve()
    assert struck[1].isnan().all()
    torch.testing.assert_close(struck[[0, 2]], clean[[0, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", (1e-30, 1e-10, 1e10, 1e18))
@pytest.mark.parametrize("channels", (3, 7, 64))
def test_extreme_scales_keep_the_error(backend: str, channels: int, scale: float) -> None:
    """x, z0 and lmbda scale together: the code scales with them."""
    atoms = 64 if channels == 64 else 8
    problem = random_problem(
        dtype=torch.float32, channels=channels, atoms=atoms, padding=1, z0=True, n_iter=3, lmbda="atom"
    )
    for name in ("x", "z0", "lmbda"):
        setattr(problem, name, getattr(problem, name) * scale)
    assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain())
