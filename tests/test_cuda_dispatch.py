"""What reaches the CUDA kernels: nothing after a user's error, and the planned launch otherwise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from emulation.fixtures import device, emulated_process  # noqa: F401
from problems import random_problem
from torch._subclasses.fake_tensor import FakeTensorMode

import csc_kernels as csc
from csc_kernels import backends, parity
from csc_kernels.cuda import library


def on_cuda(**changes: Any) -> dict[str, Any]:
    """Arguments of csc.fista on a device that is not there."""
    arguments = {
        "x": torch.empty(2, 3, 8, 9, device="cuda"),
        "dictionary": torch.empty(4, 3, 3, 3, device="cuda"),
        "lmbda": 0.1,
        "step_size": 0.1,
        "padding": 1,
    }
    return arguments | changes


def test_a_solve_and_its_gradients_trace_on_a_cuda_device() -> None:
    with FakeTensorMode():
        arguments = on_cuda()
        z = csc.fista(**arguments)
        assert z.shape == (2, 4, 8, 9) and z.device.type == "cuda"
        number, nothing = torch.empty((), device="cuda"), torch.empty(0, device="cuda")
        tensors = (arguments["x"], arguments["dictionary"], number, number, number, None, None, z, nothing, nothing)
        needs = [True] * 5 + [False] * 2
        grads = torch.ops.csc.fista_backward(z, *tensors, 2, [1, 1], [1, 1, 1, 1], True, "fista", needs)
        for grad, tensor in zip(grads, tensors[:5]):
            assert grad.shape == tensor.shape and grad.device.type == "cuda"


ERRORS = {
    "channels": (lambda: {"dictionary": torch.empty(4, 2, 3, 3, device="cuda")}, ValueError, "2 input channels"),
    "dtype": (lambda: {"dictionary": torch.empty(4, 3, 3, 3, device="cuda").half()}, TypeError, "float16"),
    "code": (lambda: {"z0": torch.empty(2, 4, 8, 8, device="cuda")}, ValueError, r"\(2, 4, 8, 9\)"),
    "n_iter": (lambda: {"n_iter": 0}, ValueError, "at least 1"),
    "lmbda": (lambda: {"lmbda": -1.0}, ValueError, "lmbda"),
    "two_devices": (lambda: {"dictionary": torch.empty(4, 3, 3, 3, device="cuda:1")}, ValueError, "cuda:1.*cuda:0"),
    "host_and_device": (lambda: {"dictionary": torch.empty(4, 3, 3, 3)}, ValueError, "cpu.*cuda:0"),
    "parameter_elsewhere": (lambda: {"lmbda": torch.empty(4, 1, 1)}, ValueError, "lmbda is on cpu, x is on cuda:0"),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_a_users_error_is_raised_before_any_launch(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "choose", lambda *args, **facts: pytest.fail("a backend was asked"))
    changes, kind, message = ERRORS[error]
    with FakeTensorMode(), pytest.raises(kind, match=message):
        csc.fista(**on_cuda(**changes()))


def test_the_order_of_backends_follows_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    on_chip, on_tensor_cores, plain = (backends._GPU_ORDER[kind] for kind in backends._GPU_ORDER)
    assert (on_chip[0], on_tensor_cores[0], plain[0]) == ("cuda", "triton", "cudnn")
    monkeypatch.setattr(backends._module("cuda"), "unavailable", lambda: None)
    monkeypatch.setattr(library, "limits", lambda _: (227 * 1024, 132))

    def order(op: str, channels: int, *solve: Any, tf32: bool = True) -> tuple[str, ...]:
        monkeypatch.setattr(backends, "allows_tf32", lambda: tf32)
        with FakeTensorMode():
            x = torch.empty(2, channels, 8, 8, device="cuda")
            dictionary = torch.empty(8, channels, 3, 3, device="cuda")
            return tuple(backends._order(op, x, dictionary, ([1, 1], [1] * 4, *solve, False) if solve else None))

    assert order("fista", 4, 5, "fista") == order("fista_backward", 4, 2, "fista") == on_chip
    # Too many channels, momentum in a backward, too many steps; and one step alone.
    assert order("fista", 5, 5, "fista") == order("fista_backward", 4, 3, "fista") == on_tensor_cores
    assert order("fista", 4, 65, "fista") == order("residual", 4) == on_tensor_cores
    assert order("fista_backward", 4, 3, "none") == on_chip
    assert order("fista", 5, 5, "fista", tf32=False) == order("residual", 4, tf32=False) == plain
    assert backends._order("fista", torch.empty(1), torch.empty(8, 3, 3, 3), None) == ("native", "reference")


def test_the_ops_tell_the_table_of_solves_that_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def order(op: str, x: torch.Tensor, dictionary: torch.Tensor, solve: Any) -> list[str]:
        asked.append((op, None if solve is None else tuple(map(_plain, solve))))
        return ["reference"]

    monkeypatch.setattr(backends, "_order", order)
    for channels in (3, 5):
        x, dictionary = torch.randn(1, channels, 6, 7), torch.randn(4, channels, 3, 3, requires_grad=True)
        csc.fista(x, dictionary, 0.1, 0.1, 3, stride=(1, 2), padding=1, momentum="none").sum().backward()
        csc.residual(x, torch.zeros(1, 4, 4, 5), dictionary.detach())
    stem = ((1, 2), (1, 1, 1, 1), 3, "none", False)
    assert asked == [
        ("fista", stem), ("fista_backward", stem), ("residual", None),
        ("fista", None), ("fista_backward", None), ("residual", None),
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("backward", (False, True))
def test_every_planned_solve_asks_for_its_kernel_and_grid(device, backward: bool, monkeypatch) -> None:
    """A double stands for the launcher: nothing runs."""
    from emulation.device import Traffic

    from csc_kernels.cuda.resources import STEMS, plan_of
    from csc_kernels.resources import ARCHITECTURES

    def record(op: str, arguments: dict[str, Any], written: set[str]) -> Traffic:
        device.calls.append((op, arguments, Traffic()))
        for name in written:
            if isinstance(arguments[name], torch.Tensor):
                arguments[name].zero_()
        return Traffic()

    monkeypatch.setattr(device, "call", record)
    for stem in STEMS.values():
        for name in ("sm80", "sm90", "sm100", "sm120"):
            architecture = ARCHITECTURES[name]
            device.shared_limit, device.processors = architecture.block_bytes, architecture.processors
            planned = plan_of(stem, backward, 2, architecture)
            if not planned:
                continue
            device.calls.clear()
            x = torch.zeros(stem.x, dtype=torch.bfloat16, requires_grad=backward)
            dictionary = torch.zeros(stem.atoms, stem.x[1], stem.kernel, stem.kernel, dtype=torch.bfloat16)
            z = csc.fista(x, dictionary, 0.1, 0.1, stem.n_iter, stride=stem.stride, padding=stem.padding)
            if backward:
                z.sum().backward()
            op, arguments, _ = device.calls[-1]
            assert op == ("fista_backward" if backward else "fista")
            assert arguments["plan"] == planned[:3]
            rows, columns, blocks = planned[:3]
            tiles = -(-z.shape[2] // rows) * -(-z.shape[3] // columns) * z.shape[0]
            assert 1 <= blocks <= min(tiles, architecture.processors)


def test_the_doctor_finds_the_kernels_sound(device, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third case, in every dtype and layout; without --whole one case."""
    monkeypatch.setattr(parity, "CASES", parity.CASES[::3] if whole else parity.CASES[3:4])
    checks = list(parity.check_backend("cuda"))
    dtypes = ("float32", "bfloat16")
    wanted = {(case.name, dtype) for case in parity.CASES for dtype in dtypes}
    assert {(c.case, c.dtype) for c in checks if c.status == "ok"} == wanted
    assert [c for c in checks if c.status == "failed"] == []


def test_no_plan_is_made_of_numbers_that_overflowed(emulated_process) -> None:
    """Kernels so large that a tile's halo has more bytes than an int counts."""
    for kernel, side, n_iter in ((51, 4000, 30), (84, 30_000, 63), (30_000, 60_000, 2)):
        shape = [1, 1, side, side, 64, side, side, kernel, kernel, 1, 1, kernel // 2, kernel // 2]
        for backward, element in itertools.product((False, True), (2, 4)):
            assert torch.ops.csc_cuda.plan(shape, n_iter, False, False, backward, element, 227 * 1024, 132) == []


def test_out_of_shared_memory_a_solve_goes_step_by_step_and_leaves_no_state(device) -> None:
    problem = random_problem(dtype=torch.float32, padding=1)
    expected = problem.solve()
    device.shared_limit = 30 * 1024
    torch.testing.assert_close(problem.solve(), expected)
    device.shared_limit = 227 * 1024
    assert torch.equal(problem.solve(), expected)
