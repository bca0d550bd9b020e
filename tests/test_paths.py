"""Wide layers by every path forced: direct convolutions, and Winograd's with tiles of 2 x 2 and of 4 x 4."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conditions import BACKENDS, ISAS, examples
from error_rule import assert_error, assert_gradients, ways
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import CASES, Problem, random_problem
from test_golden import OUTPUTS, error, load, solve
from torch import Tensor

import csc_kernels as csc
from csc_kernels import native
from csc_kernels.native import paths

pytestmark = pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not there")

# F(4x4, 3x3) is asked for by torch.set_float32_matmul_precision("high"); its errors are then at most
# this many times the largest of PyTorch's own: docs/performance.md states it.
HIGH = 16.0
ALLOWED = {"direct": 2.0, "f2": 2.0, "f4": HIGH}
each_path = pytest.mark.parametrize("path", paths.PATHS)
tiled = pytest.mark.parametrize("path", ("f2", "f4"))
ROUNDED = "native" in BACKENDS and torch.ops.csc_native.winograd_bfloat16()
with_bfloat16 = pytest.mark.skipif(not ROUNDED, reason="this processor has no units for bfloat16")


@contextmanager
def forced(path: str) -> Iterator[None]:
    with csc.use_backend("native"), native.use_path(path):
        yield


def by_path(path: str) -> Callable[[Problem], Tensor]:
    """csc.fista by one path, forward and backward."""

    def compute(problem: Problem) -> Tensor:
        with forced(path):
            return problem.solve()

    return compute


@st.composite
def tile_problems(draw: st.DrawFn) -> dict:
    """Layers of 3x3 atoms and stride 1 that have whole and broken tiles and vectors."""
    padding = draw(st.sampled_from((0, 1, 2, (0, 1), (2, 1), 3, (1, 4), "same")))
    smallest = 3 if padding == 0 or isinstance(padding, tuple) else 1
    return {
        "batch": draw(st.integers(0, 3)),
        "channels": draw(st.integers(5, 70)),
        "atoms": draw(st.integers(1, 70)),
        "size": draw(st.tuples(st.integers(smallest, 13), st.integers(smallest, 13))),
        "padding": padding,
        "n_iter": draw(st.integers(1, 3)),
        "nonneg": draw(st.booleans()),
        "momentum": draw(st.sampled_from(("fista", "none", "sdnet"))),
        "z0": draw(st.booleans()),
        "mask": draw(st.sampled_from((None, "bool", "channel"))),
        "lmbda": draw(st.sampled_from((0.1, "atom", "sample", "full"))),
        "mu": draw(st.sampled_from((0.0, 0.1))),
        "seed": draw(st.integers(0, 1000)),
    }


@each_path
@examples(80)
@given(options=tile_problems())
def test_any_solve_obeys_the_rule(path: str, options: dict) -> None:
    problem = random_problem(dtype=torch.float32, **options)
    peers, oracle = ways(Problem.plain, problem), problem.to(torch.float64).plain()
    assert_error(by_path(path)(problem), peers, oracle, times=ALLOWED[path])


@each_path
@examples(60)
@given(options=tile_problems())
def test_any_gradient_obeys_the_rule(path: str, options: dict) -> None:
    problem = random_problem(dtype=torch.float32, **options)
    assume(problem.margin() > (1e-5 if path == "f4" else 2e-6))
    with forced(path):
        assert_gradients(Problem.solve, Problem.plain, problem, times=ALLOWED[path])


@with_bfloat16
@examples(80)
@given(options=tile_problems())
def test_any_solve_in_bfloat16_obeys_the_rule(options: dict) -> None:
    problem = random_problem(dtype=torch.bfloat16, **options)
    peers, oracle = ways(Problem.plain, problem), problem.to(torch.float64).plain()
    assert_error(by_path("f2")(problem), peers, oracle)


@with_bfloat16
def test_tiles_of_bfloat16_are_hardly_less_precise_than_convolutions() -> None:
    """The rule's allowance for single numbers left out: at the widths of networks, where errors are averages."""
    for channels, size in ((64, 24), (128, 16), (256, 8), (512, 4)):
        options = {"channels": channels, "atoms": channels, "size": (size, size), "padding": 1, "batch": 4}
        problem = random_problem(dtype=torch.bfloat16, **options)
        oracle = problem.to(torch.float64).plain()
        tiles = by_path("f2")(problem)
        assert not torch.equal(tiles, by_path("direct")(problem))
        own, found = ((z.double() - oracle).square().mean() for z in (problem.plain(), tiles))
        assert found < (1.5**2) * own, f"{(found / own).sqrt()} of PyTorch's rms error at {channels} channels"


@with_bfloat16
def test_the_gradients_of_a_residual_in_bfloat16_obey_the_rule() -> None:
    problem = random_problem(dtype=torch.bfloat16, channels=40, atoms=50, size=(13, 10), padding=1, z0=True)
    tensors, grad = (problem.x, problem.z0, problem.dictionary), torch.randn(problem.x.shape).bfloat16()

    def gradients(dtype: torch.dtype, path: str | None = None) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
        with forced(path) if path else csc.use_backend("reference"):
            return torch.autograd.grad(csc.residual(*leaves, padding=1), leaves, grad.to(dtype))

    for found, own, oracle in zip(
        *(gradients(*way) for way in ((torch.bfloat16, "f2"), (torch.bfloat16,), (torch.float64,)))
    ):
        assert_error(found, own, oracle)


@tiled
@pytest.mark.parametrize("case", [name for name in CASES if "wide" in name])
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_obeys_the_rule(isa: str, case: str, path: str) -> None:
    with native.use_isa(isa), forced(path):
        problem = random_problem(dtype=torch.float32, margin=1e-5, **CASES[case])
        peers, oracle = ways(Problem.plain, problem), problem.to(torch.float64).plain()
        assert_error(problem.solve(), peers, oracle, times=ALLOWED[path])
        assert_gradients(Problem.solve, Problem.plain, problem, times=ALLOWED[path])


@each_path
def test_equals_the_published_layer(golden_file: Path, path: str) -> None:
    """In float32, on the files of the published layer."""
    golden = load(golden_file)
    with native.use_path(path):
        found = solve(golden, torch.float32)
    with csc.use_backend("reference"):
        plain = solve(golden, torch.float32)
    for name in OUTPUTS:
        floor = 4 * torch.finfo(torch.float32).eps * golden[name].abs().max().item()
        limit = ALLOWED[path] * (error(plain[name], golden[name]) + floor)
        assert error(found[name], golden[name]) <= limit, name


@tiled
def test_in_float64_a_wide_published_layer_is_equalled_to_ten_digits(path: str) -> None:
    """The same templates, so that what they do is told from how they round."""
    problem = random_problem(channels=19, atoms=21, size=(7, 10), padding=1, z0=True, n_iter=3, margin=1e-6)
    with forced(path):
        torch.testing.assert_close(problem.solve(), problem.plain(), rtol=1e-10, atol=1e-12)


@tiled
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", ({}, {"nonneg": False, "mask": "bool", "padding": 2}, {"momentum": "sdnet"}))
def test_gradients_of_the_templates_pass_gradcheck_in_float64(isa: str, path: str, options: dict) -> None:
    options = {"padding": 1, "z0": True, "n_iter": 3, "lmbda": "atom"} | options
    problem = random_problem(channels=6, atoms=5, size=(5, 6), batch=1, margin=1e-5, **options)
    problem.step_size = float(problem.step_size)
    leaves = problem.leaves()

    def function(*tensors: Tensor) -> Tensor:
        return Problem(**(vars(leaves) | dict(zip(leaves.tensors, tensors)))).solve()

    with native.use_isa(isa), forced(path):
        assert torch.autograd.gradcheck(function, tuple(leaves.tensors.values()), fast_mode=True)


@tiled
@pytest.mark.parametrize("side", (3, 8, 17, 64))
def test_every_entry_of_a_small_solve_is_right_for_each_tap_and_pixel(path: str, side: int) -> None:
    """One tap and one pixel at a time: a wrong entry of a matrix has nothing to hide behind."""
    x = torch.zeros(9, side, 6, 7, dtype=torch.float64)
    for i in range(9):
        x[i, i % side, (2 * i) % 6, (3 * i) % 7] = 1
    for tap in range(9):
        dictionary = torch.zeros(side + 1, side, 3, 3, dtype=torch.float64)
        dictionary.flatten(2)[:, :, tap] = torch.randn(side + 1, side, dtype=torch.float64)
        problem = Problem(x, dictionary, lmbda=0.0, step_size=0.01, nonneg=False, padding=1)
        if side <= 4:
            dictionary = dictionary.repeat(1, 3, 1, 1)
            problem = Problem(x.repeat(1, 3, 1, 1), dictionary, lmbda=0.0, step_size=0.01, nonneg=False, padding=1)
        with forced(path):
            torch.testing.assert_close(problem.solve(), problem.plain(), rtol=1e-11, atol=1e-13)


@tiled
@pytest.mark.parametrize("threads", (1, 2, 3, 7))
@pytest.mark.parametrize("batch", (1, 5))
@pytest.mark.parametrize("shape", ((5, 5), (64, 64), (70, 130), (130, 70)), ids=str)
def test_threads_share_blocks_and_slices_without_changing_bits(
    path: str, threads: int, shape: tuple[int, int], batch: int
) -> None:
    options = {"channels": shape[0], "atoms": shape[1], "size": (9, 6), "padding": 1, "batch": batch}
    problem = random_problem(dtype=torch.float32, lmbda=0.0, nonneg=False, **options)  # No support to jump.
    problem.step_size = float(problem.step_size)
    torch.set_num_threads(threads)

    def everything(problem: Problem, compute: Callable[[Problem], Tensor]) -> tuple[Tensor, ...]:
        leaves = problem.leaves()
        z = compute(leaves)
        with forced(path):
            grads = torch.autograd.grad(z.square().sum(), (leaves.x, leaves.dictionary))
        return z.detach(), *grads

    first = everything(problem, by_path(path))
    for found, again, exact in zip(
        first, everything(problem, by_path(path)), everything(problem.to(torch.float64), Problem.plain)
    ):
        assert torch.equal(found, again)
        scale = float(exact.abs().max())
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5 * scale)


@tiled
def test_each_of_many_atoms_has_its_own_threshold_and_code_to_add_to(path: str) -> None:
    """More atoms and channels than are worked on at a time."""
    options = {"channels": 70, "atoms": 150, "size": (5, 6), "padding": 1, "z0": True, "lmbda": "atom"}
    problem = random_problem(dtype=torch.float32, **options)
    peers, oracle = ways(Problem.plain, problem), problem.to(torch.float64).plain()
    assert_error(by_path(path)(problem), peers, oracle, times=ALLOWED[path])


@tiled
def test_weights_that_no_cache_holds_are_right_in_large_blocks(path: str) -> None:
    problem = random_problem(dtype=torch.float32, channels=370, atoms=380, size=(17, 18), padding=1, batch=6)
    peers, oracle = ways(Problem.plain, problem), problem.to(torch.float64).plain()
    assert_error(by_path(path)(problem), peers, oracle, times=ALLOWED[path])


@pytest.mark.parametrize("channels", (64, 72, 68), ids="{} channels".format)
def test_pictures_too_large_for_a_cache_are_written_around_it(channels: int) -> None:
    """4 MiB and more; the pixels of 68 channels are aligned to the vectors of no instruction set but the least."""
    options = {"channels": channels, "atoms": 136 - channels, "size": (131, 127), "padding": 1, "batch": 1}
    problem = random_problem(dtype=torch.float32, **options)
    peers, oracle = ways(Problem.plain, problem), problem.to(torch.float64).plain()
    for isa, path in itertools.product(ISAS, ("f2", "f4")):
        with native.use_isa(isa):
            assert_error(by_path(path)(problem), peers, oracle, f"{path} with {isa}", times=ALLOWED[path])


@pytest.mark.parametrize("value", (torch.nan, torch.inf), ids=str)
@pytest.mark.parametrize(
    "path, dtype, reach",
    (
        ("direct", torch.float32, 1),
        ("f2", torch.float32, 2),
        ("f4", torch.float32, 4),
        pytest.param("f2", torch.bfloat16, 2, marks=with_bfloat16),
    ),
)
def test_what_is_not_finite_spreads_no_further_than_a_tile_at_each_convolution(
    path: str, dtype: torch.dtype, reach: int, value: float
) -> None:
    for spot in ((0, 0), (7, 8), (16, 17)):
        problem = random_problem(dtype=dtype, channels=16, atoms=16, size=(17, 18), padding=1)
        problem.x[0, 3, spot[0], spot[1]] = value
        struck = ~by_path(path)(problem).isfinite()
        assert not (~problem.plain().isfinite() & ~struck).any()
        assert not struck[1].any()
        rows, columns = torch.meshgrid(torch.arange(17), torch.arange(18), indexing="ij")
        far = ((rows - spot[0]).abs() > 3 * reach) | ((columns - spot[1]).abs() > 3 * reach)
        assert not (struck & far).any()


@each_path
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("kernel", (3, 5))
def test_what_an_evaluation_keeps_of_its_dictionary_serves_images_of_any_shape(
    path: str, dtype: torch.dtype, kernel: int
) -> None:
    layer = csc.CSCConv2d(20, 24, kernel, padding=kernel // 2, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(0)
    options = {"lmbda": layer.lmbda, "step_size": layer.step_size, "padding": kernel // 2}
    tiles = path == "f2" and kernel == 3 and ROUNDED
    # Of a number between two of bfloat16's, rounding errors of any size make one or the other.
    # Other instruction sets have no tiles of bfloat16, and round elsewhere.
    close = {} if dtype == torch.float32 else {"rtol": 0.016, "atol": 0.01 if tiles else 1e-3}
    with torch.no_grad(), forced(path):
        layer(torch.zeros(1, 20, 9, 12, dtype=dtype))  # The step size is that of the largest image so far.
        for shape in ((2, 20, 8, 9), (1, 20, 5, 5), (0, 20, 5, 5), (2, 20, 8, 9), (3, 20, 9, 12)):
            x = torch.randn(shape, generator=generator).to(dtype)
            expected = csc.fista(x, layer.dictionary().clone(), **options)
            assert torch.equal(layer(x), expected)
            with native.use_isa(ISAS[-1]):
                torch.testing.assert_close(layer(x), expected, **close)


# The choice.


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


SHAPES = [
    (atoms, channels, batch, size)
    for atoms, channels in ((8, 8), (64, 64), (40, 24), (512, 512))
    for batch in (0, 1, 64)
    for size in ((1, 1), (4, 5), (32, 32))
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_of_four_are_for_those_who_allow_them(precision: None, shape: tuple) -> None:
    atoms, channels, batch, size = shape
    dictionary = torch.empty(atoms, channels, 3, 3)
    for gradient in (False, True):
        torch.set_float32_matmul_precision("highest")
        assert paths.choose_path(dictionary, (1, 1), batch, size, gradient) in ("direct", "f2")
        chosen = {}
        for allowed in ("high", "medium"):
            torch.set_float32_matmul_precision(allowed)
            chosen[allowed] = paths.choose_path(dictionary, (1, 1), batch, size, gradient)
        assert chosen["high"] == chosen["medium"]


@pytest.mark.parametrize(
    "change",
    (
        lambda d: (d.double(), (1, 1)),
        lambda d: (d.half(), (1, 1)),
        lambda d: (d, (2, 1)),
        lambda d: (d[..., :2], (1, 1)),
    ),
    ids=("float64", "float16", "stride", "kernel"),
)
def test_what_tiles_do_not_fit_is_computed_directly(precision: None, change: Callable) -> None:
    torch.set_float32_matmul_precision("high")
    dictionary, stride = change(torch.empty(64, 64, 3, 3))
    assert paths.choose_path(dictionary, stride, 64, (32, 32)) == "direct"


def test_wide_layers_of_networks_take_tiles(precision: None) -> None:
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
        dictionary = torch.empty(channels, channels, 3, 3)
        for gradient in (False, True):
            torch.set_float32_matmul_precision("highest")
            assert paths.choose_path(dictionary, (1, 1), 64, (size, size), gradient) == "f2"
            torch.set_float32_matmul_precision("high")
            assert paths.choose_path(dictionary, (1, 1), 64, (size, size), gradient) == "f4"
            rounded = "direct" if gradient or not ROUNDED or paths.has_tile_units() else "f2"
            assert paths.choose_path(dictionary.bfloat16(), (1, 1), 64, (size, size), gradient) == rounded


@pytest.mark.parametrize("channels, path", [(8, "direct"), (16, "f2"), (24, "f2"), (32, "f2")])
def test_layers_of_few_channels_take_tiles_where_they_pay(precision: None, channels: int, path: str) -> None:
    torch.set_float32_matmul_precision("highest")
    assert paths.choose_path(torch.empty(channels, channels, 3, 3), (1, 1), 64, (32, 32)) == path


def test_the_precision_that_torch_was_asked_for_reaches_the_layer(precision: None) -> None:
    problem = random_problem(dtype=torch.float32, channels=64, atoms=64, size=(16, 16), padding=1, batch=16)
    default = problem.solve()
    torch.set_float32_matmul_precision("high")
    high = problem.solve()
    assert not torch.equal(default, high)
    assert torch.equal(high, by_path("f4")(problem))


def test_an_unknown_path_is_named() -> None:
    with pytest.raises(ValueError, match="f2.*'fft'"), native.use_path("fft"):
        pass


def test_force_ends_with_the_context() -> None:
    problem = random_problem(channels=6, padding=1)
    with native.use_path("f2"):
        pass
    with csc.use_backend("native"), pytest.raises(RuntimeError, match="float64"):
        problem.solve()
