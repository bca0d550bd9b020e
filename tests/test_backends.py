"""Which backend serves a call, and what every backend promises about memory, threads and NaN."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conditions import BACKENDS, EACH_DTYPE, ISAS, PRECISE
from error_rule import assert_error, assert_gradients, gradients, unless_refused, ways
from problems import CASES, Problem, random_problem
from torch import Tensor

import csc_kernels as csc
from csc_kernels import backends, native, reference_backend

OPS = ("residual", "fista_step", "fista")


def test_the_reference_is_always_there_and_last() -> None:
    assert csc.available_backends()[-1] == "reference"


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="reference.*'mkl'"), csc.use_backend("mkl"):
        pass


@pytest.mark.parametrize("name", sorted({"native", "triton", "cuda", "cudnn"} - set(BACKENDS)))
def test_a_backend_that_is_not_there_says_why(name: str) -> None:
    with pytest.raises(RuntimeError, match=f'"{name}" is not available: .+'), csc.use_backend(name):
        pass


def test_force_ends_with_the_context_also_after_an_exception() -> None:
    x = torch.zeros(1, 1, 3, 3)
    for name in BACKENDS:
        with pytest.raises(KeyError), csc.use_backend(name), csc.use_backend("reference"):
            raise KeyError
        assert backends._forced is None
        with csc.use_backend(name):
            with csc.use_backend("reference"):
                assert backends.choose("residual", x, dictionary=x) is reference_backend
            assert backends.choose("residual", x, dictionary=x) is backends._module(name)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_forced_backend_and_no_other_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for other in BACKENDS:
        for op in (*OPS, *(f"{op}_backward" for op in OPS)):
            function = getattr(backends._module(other), op)

            def spy(*args: object, function=function, other=other, op=op) -> object:
                called.append((other, op))
                return function(*args)

            monkeypatch.setattr(backends._module(other), op, spy)
    leaves = random_problem(dtype=torch.float32, padding=1, z0=True).leaves()
    leaves.step_size = leaves.step_size.detach()
    with csc.use_backend(name):
        everything(leaves)
    assert {other for other, _ in called} == {name}
    assert {op for _, op in called} == {*OPS, *(f"{op}_backward" for op in OPS)}


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "reference"])
def test_float64_is_the_references(name: str) -> None:
    problem = random_problem(padding=1)
    with csc.use_backend("reference"):
        expected = problem.solve()
    assert torch.equal(problem.solve(), expected)
    with (
        csc.use_backend(name),
        pytest.raises(RuntimeError, match=f'"{name}" cannot serve csc.fista.*float64'),
    ):
        problem.solve()


@pytest.mark.parametrize("channels", (1, 3, 4, 5, 16))
@pytest.mark.parametrize("parameter", (0.1, "scalar", "atom", "sample"))
@pytest.mark.parametrize("case", ("rgb", "start", "mask_bool", "mask_float", "stride_2", "sdnet", "signed"))
def test_only_gradients_of_the_mask_step_size_and_spatial_parameters_may_be_refused(
    backend: str, case: str, parameter: float | str, channels: int
) -> None:
    options = CASES[case] | {"channels": channels, "lmbda": parameter, "mu": parameter}
    problem = random_problem(dtype=torch.float32, **options)
    for name in ("x", "dictionary", "z0", "lmbda", "mu"):
        if isinstance(getattr(problem, name), Tensor):
            getattr(problem, name).requires_grad_()
    problem.solve().sum().backward()
    assert torch.isfinite(problem.x.grad).all()


# What one call after the other gives, with all gradients.


def everything(problem: Problem) -> dict[str, Tensor]:
    """Every result and every gradient of the three ops on one problem that has a z0."""
    leaves = {name: leaf for name, leaf in problem.tensors.items() if leaf.requires_grad}
    shape = {"stride": problem.stride, "padding": problem.padding, "mask": problem.mask}
    step = {"mu": problem.mu, "nonneg": problem.nonneg, "y": 0.5 * problem.z0, "beta": 0.3}

    def residual() -> tuple[Tensor, ...]:
        return (csc.residual(problem.x, problem.z0, problem.dictionary, **shape),)

    def fista_step() -> tuple[Tensor, ...]:
        return csc.fista_step(
            problem.x, problem.z0, problem.dictionary, problem.lmbda, problem.step_size, **step, **shape
        )

    def fista() -> tuple[Tensor, ...]:
        return (problem.solve(),)

    found: dict[str, Tensor] = {}
    for run in (residual, fista_step, fista):

        def both(run=run) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
            outputs = run()
            total = sum(output.square().sum() for output in outputs)
            return outputs, torch.autograd.grad(total, list(leaves.values()), allow_unused=True)

        outputs, grads = unless_refused(both)
        found |= {f"{run.__name__} {i}": output.detach() for i, output in enumerate(outputs)}
        found |= {f"{run.__name__} d{name}": g for name, g in zip(leaves, grads) if g is not None}
    return found


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


KINDS = {
    "rgb": {},
    "stride": {"stride": 2, "lmbda": "atom", "mu": "full"},
    "signed": {"nonneg": False, "mask": "float", "lmbda": "sample"},
    "grey": {"channels": 1, "atoms": 19, "mask": "bool"},
    "wide": {"channels": 9, "lmbda": "atom"},
    "wide_stride": {"channels": 16, "stride": 2, "mask": "float", "mu": "atom"},
    "wide_64": {"channels": 64, "atoms": 64, "mu": 0.1},
}
kinds = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("backend, dtype", EACH_DTYPE, indirect=["backend"])


def leaves_of(kind: str, dtype: torch.dtype) -> Problem:
    return random_problem(dtype=dtype, z0=True, n_iter=3, padding=1, **KINDS[kind]).leaves()


@contextmanager
def poisoned_memory():
    """torch.empty is full of NaN; what C++ allocates finds the NaN of tensors that were just freed."""
    filled, mode = torch.utils.deterministic.fill_uninitialized_memory, torch.get_deterministic_debug_mode()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for exponent in range(6, 20):
            freed = [torch.full((2**exponent,), torch.nan) for _ in range(8)]
            del freed
        gc.collect()
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@kinds
@each_dtype
def test_uninitialised_memory_is_never_read(backend: str, dtype: torch.dtype, kind: str) -> None:
    problem = leaves_of(kind, dtype)
    clean = everything(problem)
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        poisoned = everything(problem)
    assert all(torch.isfinite(t).all() for t in poisoned.values())
    assert_same_bits(clean, poisoned)


@kinds
@each_dtype
def test_inputs_are_never_written(backend: str, dtype: torch.dtype, kind: str) -> None:
    problem = leaves_of(kind, dtype)
    tensors = {name: value for name, value in vars(problem).items() if isinstance(value, Tensor)}
    before = {name: (value.detach().clone(), value._version) for name, value in tensors.items()}
    outputs = everything(problem)
    for name, value in tensors.items():
        assert torch.equal(value, before[name][0]) and value._version == before[name][1], name
        for output in outputs.values():
            assert output.untyped_storage().data_ptr() != value.untyped_storage().data_ptr(), name


@kinds
@each_dtype
def test_the_same_call_gives_the_same_bits(backend: str, dtype: torch.dtype, kind: str) -> None:
    problem, other = leaves_of(kind, dtype), leaves_of("rgb" if "wide" in kind else "wide", dtype)
    torch.set_num_threads(2)
    first = everything(problem)
    everything(other)
    assert_same_bits(first, everything(problem))


@kinds
@pytest.mark.parametrize("backend, dtype", PRECISE, indirect=["backend"])
def test_threads_share_the_work_without_changing_it(backend: str, dtype: torch.dtype, kind: str) -> None:
    problem = leaves_of(kind, dtype)
    alone = everything(problem)
    torch.set_num_threads(3)  # More than there is of most things: of samples, and of processors here.
    for name, tensor in everything(problem).items():
        scale = float(alone[name].abs().max())
        torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_concurrent_callers_do_not_disturb_each_other(backend: str) -> None:
    problems = [leaves_of(kind, torch.float32) for kind in KINDS]
    for problem in problems:  # A refused gradient would be asked for again without force: see unless_refused.
        problem.step_size, problem.mask, problem.mu = problem.step_size.item(), None, 0.1
    expected = [everything(problem) for problem in problems]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for found, right in zip(pool.map(everything, problems * 5), expected * 5):
            assert_same_bits(found, right)


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last))
@kinds
@each_dtype
def test_results_have_the_layout_of_x(
    backend: str, dtype: torch.dtype, kind: str, memory_format: torch.memory_format
) -> None:
    problem = leaves_of(kind, dtype)
    expected = everything(problem)
    problem.x = problem.x.detach().to(memory_format=memory_format).requires_grad_()
    problem.z0 = problem.z0.detach().to(memory_format=memory_format).requires_grad_()
    found = everything(problem)
    # An image of one channel is contiguous in both formats, and says nothing of what it wants.
    wanted = torch.contiguous_format if problem.x.shape[1] == 1 else memory_format
    for name, tensor in found.items():
        if name.endswith((" 0", " 1", " dx", " dz0")):
            assert tensor.is_contiguous(memory_format=wanted), name
        # All of it together: where the layouts round to either side of a threshold, an entry's gradient is another.
        error = (tensor - expected[name]).double().norm()
        assert error <= 16 * torch.finfo(dtype).eps * expected[name].double().norm(), name


@pytest.mark.parametrize("channels", (3, 8))
def test_the_same_tensor_may_be_several_arguments(backend: str, channels: int) -> None:
    problem = random_problem(
        dtype=torch.float32, channels=channels, atoms=channels, padding=1, lmbda="atom", n_iter=3
    )
    x, lmbda = problem.x, problem.lmbda
    apart = replace(problem, z0=x.clone(), mask=x.clone(), mu=lmbda.clone()).leaves()
    x, lmbda = x.clone().requires_grad_(), lmbda.clone().requires_grad_()
    together = replace(problem, x=x, z0=x, mask=x, lmbda=lmbda, mu=lmbda)
    assert torch.equal(together.solve(), apart.solve())
    found = dict(zip(apart.tensors, gradients(Problem.solve, apart)))
    total = unless_refused(lambda: torch.autograd.grad(together.solve().square().sum(), (x, lmbda)))
    torch.testing.assert_close(total[0], found["x"] + found["z0"] + found["mask"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total[1], found["lmbda"] + found["mu"], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    os.environ.get("CSC_KERNELS_NATIVE") == "0", reason="installed without native kernels, as asked"
)
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_where_there_is_a_compiler_there_are_native_kernels() -> None:
    """Without this a build that broke would skip its tests."""
    assert native.unavailable() is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_obeys_the_rule(isa: str, case: str) -> None:
    with csc.use_backend("native"), native.use_isa(isa):
        assert native.build_info()["isa"] == isa
        for dtype in (torch.float32, torch.bfloat16):
            problem = random_problem(dtype=dtype, **CASES[case])
            assert_error(problem.solve(), ways(Problem.plain, problem), problem.to(torch.float64).plain())
        problem = random_problem(dtype=torch.float32, margin=1e-5, **CASES[case])
        assert_gradients(Problem.solve, Problem.plain, problem)


def test_without_its_library_it_has_no_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.library, "unavailable", lambda: "there is none")
    with pytest.raises(RuntimeError, match="there is none"):
        native.build_info()
    with pytest.raises(RuntimeError, match="there is none"), native.use_isa("avx2"):
        pass


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("kernel", (3, 5))
@pytest.mark.parametrize("channels", (3, 32))
@pytest.mark.parametrize("n_iter", (1, 2, 3))
def test_nobody_writes_what_it_was_given(
    backend: str, n_iter: int, channels: int, kernel: int, channels_last: bool
) -> None:
    sizes = {"channels": channels, "atoms": 32, "kernel": (kernel, kernel), "size": (10, 16)}
    problem = random_problem(
        dtype=torch.float32, n_iter=n_iter, padding=kernel // 2, z0=True, mask="float", lmbda="atom", **sizes
    )
    if channels_last:
        problem = problem.map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t)
    before = problem.map(Tensor.clone)
    code = problem.solve()
    for tensor in (problem.x, problem.dictionary, problem.z0):
        assert tensor is not None
        tensor.requires_grad_()
    problem.solve().sum().backward()
    for name, tensor in problem.tensors.items():
        assert torch.equal(tensor, before.tensors[name]), name
        assert tensor.untyped_storage().data_ptr() != code.untyped_storage().data_ptr(), name


@pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not there")
@pytest.mark.parametrize("kernel", (3, 5))
@pytest.mark.parametrize("momentum", ("fista", "none", "sdnet"))
def test_inference_holds_no_codes_of_earlier_steps(
    monkeypatch: pytest.MonkeyPatch, momentum: str, kernel: int
) -> None:
    codes: list[weakref.ref[Tensor]] = []
    held = []
    plain = native.wide.Convolutions.analysis

    def analysis(self: Any, *args: Any) -> Tensor:
        code = plain(self, *args)
        codes.append(weakref.ref(code))
        held.append(sum(one() is not None for one in codes))
        return code

    monkeypatch.setattr(native.wide.Convolutions, "analysis", analysis)
    x, dictionary = torch.randn(2, 16, 12, 12), torch.randn(24, 16, kernel, kernel)
    csc.fista(x, dictionary, 0.1, 1e-3, n_iter=6, padding=kernel // 2, momentum=momentum)
    assert len(held) == 6 and max(held) <= 3


@pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not there")
def test_an_unknown_instruction_set_is_an_error() -> None:
    before = native.build_info()["isa"]
    with pytest.raises(RuntimeError), native.use_isa("mmx"):
        pass
    assert native.build_info()["isa"] == before


@pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not there")
@pytest.mark.parametrize(
    "case", ({"lmbda": "atom"}, {"lmbda": "sample", "mu": "full", "z0": True, "mask": "float"})
)
def test_a_long_solve_in_parts_is_the_same_solve(monkeypatch: pytest.MonkeyPatch, case: dict) -> None:
    problem = random_problem(dtype=torch.float32, batch=5, padding=1, n_iter=3, margin=1e-5, **case)
    tensors = problem.leaves()
    tensors.mask = tensors.mask if tensors.mask is None else tensors.mask.detach()
    tensors.step_size, tensors.mu = float(problem.step_size), problem.mu
    wanted = [t for t in tensors.tensors.values() if t.requires_grad]
    with csc.use_backend("native"):
        whole = tensors.solve()
        gradients = torch.autograd.grad(whole.square().sum(), wanted)
        for size in (1.0, 1e5):
            monkeypatch.setattr(native.stem, "INTERRUPTIBLE", size)
            parted = tensors.solve()
            assert torch.equal(parted, whole)
            for found, right in zip(torch.autograd.grad(parted.square().sum(), wanted), gradients):
                torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not there")
def test_an_interrupt_lands_between_the_parts_of_a_long_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, done, split = random_problem(dtype=torch.float32, batch=5, padding=1), [], native.stem.parts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A script's background ignores it.

    def interrupted(*arguments: Any) -> Iterator[slice | None]:
        for i, part in enumerate(split(*arguments)):
            if i == 2:
                signal.raise_signal(signal.SIGINT)
            yield part
            done.append(i)

    monkeypatch.setattr(native.stem, "INTERRUPTIBLE", 1.0)
    monkeypatch.setattr(native.stem, "parts", interrupted)
    try:
        with csc.use_backend("native"), pytest.raises(KeyboardInterrupt):
            problem.solve()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == [0, 1]
