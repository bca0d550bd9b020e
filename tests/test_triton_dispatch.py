"""What is launched for a call on a GPU, seen without one: on meta and fake tensors, and with launches recorded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from interpreter import with_triton
from problems import random_problem
from torch._subclasses.fake_tensor import FakeTensorMode

import csc_kernels as csc
from csc_kernels import triton_backend

# Programs of every kernel at the rows that ship. CIFAR stem: 64 images 32x32, 3 -> 64 channels; wide: 64 -> 64.
# A solve cuts 16x16 regions with a halo of 2 into tiles of 12, 3 x 3 an image. A step has tiles of 8 x 16 (stem) or
# 16 x 16 (wide) times blocks of 32 or 64 atoms; a residual of 32 x 16 or 16 x 16 times blocks of 16 or 64 channels.
PROGRAMS = {
    "CIFAR stem": {
        "fista_kernel": 64 * 3 * 3,
        "residual_kernel": 64 * 2,
        "fista_step_kernel": 64 * 4 * 2 * 2,
        "threshold_gradient_kernel": 64 * 16 * 2,
        "code_gradient_kernel": 64 * 4 * 2 * 2,
    },
    "wide": {
        "residual_kernel": 64 * 4,
        "fista_step_kernel": 64 * 4,
        "image_gradient_kernel": 64 * 4,
        "threshold_gradient_kernel": 64 * 16 * 2,
        "correlation_kernel": 9 * 29,  # Blocks of taps; 29 parts of 1130 pixels or a few less.
        "code_gradient_kernel": 64 * 4,
    },
}
ARCHITECTURES = ("sm80", "sm90", "sm100", "sm120", "gfx942", "any")
CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("case", PROGRAMS)
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@with_triton
def test_every_row_of_the_table_gets_its_kernel_with_its_grid(dtype: torch.dtype, case: str) -> None:
    from csc_kernels.triton.cases import CASES, launches

    for architecture in ARCHITECTURES:
        found = {
            launch.kernel.fn.__name__: launch for launch in launches(CASES[case], dtype, "contiguous", architecture)
        }
        assert PROGRAMS[case].keys() <= found.keys()
        for kernel, programs in PROGRAMS[case].items():
            assert found[kernel].programs == programs, (kernel, architecture)
        for kernel, launch in found.items():
            assert f"{launch.blocks.kernel}_kernel" == kernel
            assert launch.blocks.architecture in (architecture, "any")
            assert launch.blocks.dtype == ("float32" if dtype is torch.float32 else "half")


@with_triton
def test_every_shipped_row_is_reached() -> None:
    from csc_kernels.triton import blocks
    from csc_kernels.triton.cases import CASES, launches

    used = set()
    for case in CASES.values():
        for dtype in CUDA_DTYPES:
            for architecture in ARCHITECTURES:
                used |= {launch.blocks for launch in launches(case, dtype, "contiguous", architecture)}
    assert used == set(blocks.read(blocks.SHIPPED))


@with_triton
def test_a_whole_solve_is_one_launch_and_a_step_two() -> None:
    from csc_kernels.triton.launch import recorded

    problem = random_problem(dtype=torch.float32, padding=1)
    with recorded() as launches:
        problem.solve()
        assert len(launches) == 1
        problem.solve(n_iter=3)
        assert len(launches) == 1 + 5  # The first of three steps needs no residual.
        csc.fista_step(problem.x, torch.zeros(problem.code_shape), problem.dictionary, 0.1, 0.1, padding=1)
        assert len(launches) == 1 + 5 + 2


@with_triton
def test_what_does_not_fit_on_chip_goes_by_steps() -> None:
    from csc_kernels.triton.fista_kernels import fista_kernel
    from csc_kernels.triton.launch import recorded

    for options in (
        {"n_iter": 3}, {"stride": 2}, {"z0": True}, {"mask": "bool"}, {"kernel": (7, 7), "padding": 3},
        {"channels": 5}, {"kernel": (1, 7), "padding": (0, 3), "size": (5, 40)},
    ):  # fmt: skip
        with recorded() as launches:
            random_problem(dtype=torch.float32, **{"padding": 1} | options).solve()
        assert launches and all(launch.kernel is not fista_kernel for launch in launches), options


@with_triton
def test_numbers_are_arguments_and_a_gpus_tensors_are_not_read() -> None:
    """A step size on the device is loaded by the kernel: reading it here would wait for the GPU."""
    from csc_kernels.triton.cases import CASES, launches

    for launch in launches(CASES["wide"], torch.bfloat16, "contiguous", "sm90"):
        constants = {launch.kernel.arg_names[i] for i in getattr(launch.kernel, "constexprs", ())}
        assert not constants & {"lmbda", "mu", "step_size", "beta", "scale", "first_scale", "base_scale"}
        for name in ("step_size", "scale"):
            if name in launch.arguments:
                assert launch.arguments[name].device.type == "meta"


WRONG = {
    "channels": (lambda p: p.solve(dictionary=p.dictionary[:, :2]), ValueError),
    "dtype": (lambda p: p.solve(dictionary=p.dictionary.half()), TypeError),
    "z0": (lambda p: p.solve(z0=p.x), ValueError),
    "lmbda": (lambda p: p.solve(lmbda=torch.ones(5, 1, 1)), ValueError),
    "negative lmbda": (lambda p: p.solve(lmbda=-1.0), ValueError),
    "n_iter": (lambda p: p.solve(n_iter=0), ValueError),
    "padding": (lambda p: p.solve(padding=-1), ValueError),
    "mask": (lambda p: p.solve(mask=torch.ones(3, 3, 3, 3)), ValueError),
    "device": (lambda p: p.solve(dictionary=p.dictionary.to("meta")), ValueError),
    "step_size": (lambda p: p.solve(step_size=torch.ones(2)), ValueError),
}


@pytest.mark.parametrize("mistake", WRONG)
@with_triton
def test_a_mistake_is_an_error_before_any_launch(mistake: str) -> None:
    from csc_kernels.triton.launch import recorded

    call, error = WRONG[mistake]
    with recorded() as launches, pytest.raises(error):
        call(random_problem(dtype=torch.float32, padding=1))
    assert launches == []


def test_tensors_on_two_devices_are_an_error_that_names_both() -> None:
    with FakeTensorMode():
        x = torch.empty(1, 3, 8, 8, device="cuda:0")
        with pytest.raises(ValueError, match="cuda:1.*cuda:0"):
            csc.fista(x, torch.empty(4, 3, 3, 3, device="cuda:1"), 0.1, 0.1)


# Tracing for a GPU that is not there.


class Layer(torch.nn.Module):
    def forward(self, x: torch.Tensor, dictionary: torch.Tensor, lmbda: torch.Tensor) -> torch.Tensor:
        return csc.fista(x, dictionary, lmbda, 0.1, n_iter=3, padding=1)


@pytest.mark.parametrize("channels", (3, 8))
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last))
def test_fake_tensors_on_a_gpu(memory_format: torch.memory_format, channels: int) -> None:
    with FakeTensorMode():
        x = torch.empty(2, channels, 9, 8, device="cuda").contiguous(memory_format=memory_format)
        dictionary = torch.empty(6, channels, 3, 3, device="cuda")
        lmbda = torch.empty(1, 6, 1, 1, device="cuda")
        z = Layer()(x, dictionary, lmbda)
        assert z.device == x.device and z.shape == (2, 6, 9, 8) and z.is_contiguous(memory_format=memory_format)
        # The autograd engine asks the GPU for its context, so that the backward is called as it would call it.
        inputs = (x, dictionary, lmbda, torch.zeros((), device="cuda"), torch.zeros((), device="cuda"), None, None)
        needs = [True] * 5 + [False] * 2
        kept = x.new_empty(0)
        grads = csc.ops.fista_backward(z, *inputs, z, kept, kept, 3, (1, 1), (1, 1, 1, 1), True, "fista", needs)
        for grad, leaf in zip(grads, inputs[:5]):
            assert grad.shape == leaf.shape and grad.device == leaf.device


@contextmanager
def autocast_cuda(dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast("cuda") turns itself off where there is no GPU."""
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_autocast_on_a_gpu() -> None:
    with FakeTensorMode(), autocast_cuda(torch.bfloat16):
        x = torch.empty(2, 3, 9, 8, device="cuda")
        z = Layer()(x, torch.empty(6, 3, 3, 3, device="cuda"), torch.empty((), device="cuda"))
        assert z.dtype is torch.bfloat16


def test_compile_and_export_keep_a_solve_whole_on_a_gpu() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    with FakeTensorMode():
        inputs = (
            torch.empty(2, 3, 9, 8, device="cuda"),
            torch.empty(6, 3, 3, 3, device="cuda"),
            torch.empty((), device="cuda"),
        )
        exported = torch.export.export(Layer(), inputs).graph_module
    torch.compile(Layer(), backend=backend, fullgraph=True)(*(torch.zeros(t.shape) for t in inputs))
    for graph in (*graphs, exported):
        assert [str(node.target) for node in graph.graph.nodes if str(node.target).startswith("csc.")] == [
            "csc.fista.default"
        ]


@pytest.mark.parametrize("channels", (3, 6))
@with_triton
def test_opcheck(channels: int) -> None:
    problem = random_problem(
        dtype=torch.float32, channels=channels, atoms=4, size=(5, 6), padding=1, lmbda="atom", z0=True
    ).leaves()  # fmt: skip
    mu = torch.zeros((), dtype=torch.float64)
    parameters = (problem.lmbda, mu, problem.step_size.detach())
    geometry = problem.geometry
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static")
    x, z, dictionary = problem.x, problem.z0, problem.dictionary
    for op, arguments in (
        (csc.ops.residual, (x, z, dictionary, *geometry, None)),
        (csc.ops.fista_step, (x, z, z, dictionary, *parameters, 0.3, *geometry, True, False, None)),
        (csc.ops.fista, (x, dictionary, *parameters, None, None, 2, *geometry, True, "fista", False)),
    ):
        torch.library.opcheck(op, arguments, test_utils=checks)


@with_triton
def test_the_doctor_finds_the_kernels_sound(whole: bool) -> None:
    """Every case and layout; without --whole one case."""
    from csc_kernels import parity

    cases = parity.CASES[::2] if whole else parity.CASES[3:4]
    with mock.patch.object(parity, "CASES", cases):
        checks = list(parity.check_backend("triton"))
    assert {(c.case, c.dtype) for c in checks if c.status == "ok"} == {(case.name, "float32") for case in cases}
    assert [c for c in checks if c.status == "failed"] == []


def test_importing_csc_kernels_imports_no_triton() -> None:
    code = "import sys, csc_kernels; csc_kernels.available_backends(); assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_triton_the_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "find_spec", lambda name: None)
    triton_backend.unavailable.cache_clear()
    try:
        assert triton_backend.unavailable() == "triton is not installed"
    finally:
        triton_backend.unavailable.cache_clear()


def test_tf32_is_used_only_where_convolutions_may() -> None:
    from csc_kernels.triton.launch import precision

    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for allowed in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = allowed
            assert precision(torch.float32) == allowed
            assert precision(torch.bfloat16) == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
