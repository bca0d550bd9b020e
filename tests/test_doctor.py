"""csc-kernels doctor: what it reports, and that it notices a backend that is wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

import csc_kernels as csc
from csc_kernels import backends, cli, doctor, parity, reference_backend


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases instead of all."""
    monkeypatch.setattr(parity, "CASES", [case for case in parity.CASES if case.start])


@pytest.fixture
def alone(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the only backend."""
    monkeypatch.setattr(backends, "_MODULES", {"reference": ".reference_backend"})


def spoil(monkeypatch: pytest.MonkeyPatch, op: str, change: Callable[[Any], Any]) -> None:
    """What `op` of the reference backend returns goes through `change`."""
    right = getattr(reference_backend, op)
    monkeypatch.setattr(reference_backend, op, lambda *arguments: change(right(*arguments)))


def failures() -> set[tuple[str, str]]:
    """(op, tensor) of the checks that failed."""
    return {(c.op, c.tensor) for c in doctor.collect().checks if c.status == "failed"}


def test_every_backend_agrees_in_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "every backend agrees" in printed
    for text in (csc.__version__, torch.__version__, "triton     not available", *csc.available_backends()):
        assert text in printed


def test_json_is_one_document_with_everything(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {
        "versions", "platform", "cpu", "threads", "native", "backends", "checks", "speed", "ok",
    }  # fmt: skip
    assert report["versions"]["csc_kernels"] == csc.__version__
    assert report["threads"] == torch.get_num_threads()
    running = {name for name, reason in report["backends"].items() if reason is None}
    assert running == set(csc.available_backends())
    assert {check["backend"] for check in report["checks"]} == running
    served = [check for check in report["checks"] if check["status"] != "not served"]
    assert all(check["status"] == "ok" and 0 <= check["share"] <= 1 for check in served)
    dtypes = {"float64", "float32", "bfloat16"}
    assert {check["dtype"] for check in report["checks"]} == dtypes
    assert {check["dtype"] for check in served if check["backend"] == "reference"} == dtypes
    assert report["speed"]["backend"] == csc.available_backends()[0]
    assert report["speed"]["csc_ms"] > 0 and report["speed"]["pytorch_ms"] > 0
    assert report["ok"] is True


def test_each_instruction_set_is_checked(quick: None) -> None:
    report = doctor.collect()
    wanted = {None} if report.native is None else {None, *report.native["isa_available"]}
    assert {check.isa for check in report.checks} == wanted


def test_an_instruction_set_that_is_wrong_is_named(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if backends.unavailable("native") is not None:
        pytest.skip("the native backend does not run here")
    from csc_kernels import native

    wrong = native.build_info()["isa_available"][-1]
    right = native.fista

    def fista(*arguments: Any) -> Any:
        result = right(*arguments)
        if native.build_info()["isa"] == wrong:
            result[0].mul_(1.001)
        return result

    monkeypatch.setattr(native, "fista", fista)
    found = {(check.backend, check.isa) for check in doctor.collect().checks if check.status == "failed"}
    assert found == {("native", wrong)}


def test_a_wrong_result_makes_exit_code_1(
    alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, "fista", lambda result: (result[0] * (1 + 1e-4), *result[1:]))
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED reference float32: fista" in printed and "every backend agrees" not in printed


def test_a_wrong_gradient_is_found_in_its_tensor(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "fista_backward", lambda grads: (grads[0], grads[1] * (1 + 1e-4), *grads[2:]))
    assert failures() == {("fista", "gradient of dictionary")}


def test_one_wrong_entry_is_found(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(result: torch.Tensor) -> torch.Tensor:
        result[-1, -1, -1, -1] += 0.05
        return result

    spoil(monkeypatch, "residual", touch)
    assert failures() == {("residual", "result")}


def test_nan_is_a_failure_and_valid_json(
    alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, "residual", lambda result: result * float("nan"))
    assert cli.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    failed = [check for check in report["checks"] if check["status"] == "failed"]
    assert failed and all(check["share"] is None and "nan" in check["detail"] for check in failed)


def test_a_backend_that_raises_is_a_failure(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(result: Any) -> Any:
        raise ZeroDivisionError("broken")

    spoil(monkeypatch, "fista_step", refuse)
    failed = [check for check in doctor.collect().checks if check.status == "failed"]
    assert {check.op for check in failed} == {"fista_step"}
    assert all("ZeroDivisionError: broken" in check.detail for check in failed)


def test_what_a_backend_does_not_serve_is_told_and_no_failure(
    alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(op: str, x: torch.Tensor, **facts: Any) -> str | None:
        return "no bfloat16 today" if x.dtype is torch.bfloat16 else None

    # Without a force nothing else could serve the call; forced, it is the backend's own answer.
    monkeypatch.setattr(reference_backend, "unsupported", unsupported)
    assert cli.main(["doctor"]) == 0
    assert "not served" in (printed := capsys.readouterr().out) and "no bfloat16 today" in printed


@pytest.mark.parametrize("case", parity.CASES, ids=lambda case: case.name)
def test_rounding_cannot_change_the_support_of_a_case(case: parity.Case) -> None:
    problem = parity.problem_of(case)
    moved = problem.to(torch.float32).to(torch.float64)
    assert parity.margin(problem) > 1e-6
    assert torch.equal(problem.plain("fista") != 0, moved.plain("fista") != 0)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"csc-kernels {csc.__version__}"


@pytest.mark.parametrize("arguments", [[], ["nurse"], ["doctor", "--yaml"]])
def test_an_unknown_command_or_option_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: csc-kernels" in capsys.readouterr().err


def test_interrupted_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "collect", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_backend_that_gives_no_answer_fails_and_does_not_hang() -> None:
    (check,) = doctor.check_apart("reference", seconds=0.1)
    assert check.status == "failed" and "no answer within 0 s" in check.detail


def test_a_gpus_backends_are_checked_apart_and_one_that_hangs_fails(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine with a GPU, played: "triton" answers, "cuda" makes two checks and hangs."""
    sound = {"isa": None, "dtype": "float16", "op": "fista", "case": "RGB 3x3", "tensor": "result", "status": "ok"}
    asked = []

    def run(command: list[str], timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess:
        if "csc_kernels.parity" not in command:  # platform.platform() asks for the processor so.
            raise FileNotFoundError
        backend = command[-1]
        asked.append((backend, timeout))
        output = (json.dumps(sound | {"backend": backend, "share": 0.5}) + "\n") * 2
        if backend == "cuda":
            raise subprocess.TimeoutExpired(command, timeout, (output + '{"backend": "cu').encode())
        return subprocess.CompletedProcess(command, 0, output, "")

    monkeypatch.setattr(doctor, "available_backends", lambda: ["cuda", "triton", "reference"])
    monkeypatch.setattr(subprocess, "run", run)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert asked == [("cuda", doctor.TIME_LIMIT), ("triton", doctor.TIME_LIMIT)]
    assert "FAILED cuda: any, the check after these" in printed and "no answer within 900 s" in printed
    assert "FAILED triton" not in printed and "FAILED reference" not in printed


def test_a_backend_that_crashes_fails_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "false")
    (check,) = doctor.check_apart("reference")
    assert check.status == "failed" and "its process ended with 1" in check.detail


def test_checks_of_another_process_are_the_same_checks(quick: None) -> None:
    here = {(c.op, c.case, c.tensor, c.dtype) for c in parity.check_backend("reference")}
    there = doctor.check_apart("reference")
    assert all(check.status == "ok" for check in there)
    assert here <= {(c.op, c.case, c.tensor, c.dtype) for c in there}
