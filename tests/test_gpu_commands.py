"""What make test DEVICE=cuda, make bench DEVICE=cuda and make profile do on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_the_tests_say_that_there_is_none() -> None:
    done = run("-m", "pytest", "tests/test_gpu_commands.py", CSC_TEST_DEVICE="cuda")
    assert done.returncode == 1 and done.stderr == "DEVICE=cuda: torch sees no GPU on this machine\n"


def test_the_benchmark_says_that_there_is_none(tmp_path: Path) -> None:
    done = run("bench/bench_gpu.py", "--out", str(tmp_path))
    assert done.returncode == 1 and "there is none" in done.stderr and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_profile_is_of_the_cpu_and_says_so(tmp_path: Path) -> None:
    done = run("bench/profile_gpu.py", "--out", str(tmp_path))
    assert done.returncode == 0 and "torch sees no GPU" in done.stderr
    commands = (tmp_path / "nsight.txt").read_text()
    assert "nsys profile" in commands and "ncu --set full" in commands
    assert json.loads((tmp_path / "trace-cpu.json").read_text())["traceEvents"]
