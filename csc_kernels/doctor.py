"""What runs on this machine, why the rest does not, and whether every backend computes what it should."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import BACKENDS, GPU_BACKENDS, available_backends, unavailable
from .functional import fista
from .lipschitz import lipschitz
from .parity import Check, check_backend
from .version import __version__

TIME_LIMIT = 900.0  # seconds for all checks of a GPU backend, with the compilation of its kernels


def check_apart(backend: str, seconds: float = TIME_LIMIT) -> list[Check]:
    """The checks of a backend in a process of its own, which a kernel that hangs or crashes cannot take along."""
    command = [sys.executable, "-m", "csc_kernels.parity", backend]
    found: list[Check] = []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        output, ending = done.stdout, f"its process ended with {done.returncode}: {done.stderr[-300:]}"
        complete = done.returncode == 0
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        ending, complete = f"no answer within {seconds:.0f} s", False
    # A check is printed when it is done: the last line of a process that was killed may be half a one.
    for line in output.splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            found.append(Check(**json.loads(line)))
    if not complete:
        found.append(Check(backend, None, "", "any", "the check after these", "", "failed", detail=ending))
    return found


@dataclass
class Speed:
    """One solve against the same in plain PyTorch: medians of one interleaved run."""

    case: str
    backend: str
    csc_ms: float
    pytorch_ms: float


@dataclass
class Report:
    """Everything the doctor found; `ok` when no check failed."""

    versions: dict[str, str]
    platform: str
    cpu: str
    threads: int
    native: dict[str, Any] | None  # compiler, isa and isa_available; None when it is not available
    backends: dict[str, str | None]  # name: why it is not available, None when it is
    checks: list[Check]
    speed: Speed
    ok: bool


def collect() -> Report:
    """Examine this machine, which takes some seconds.

    >>> report = collect()
    >>> report.backends["reference"] is None
    True
    """
    native: dict[str, Any] | None = None
    if unavailable("native") is None:
        from .native import build_info

        native = dict(build_info())
    checks: list[Check] = []
    for backend in available_backends():
        variants = native["isa_available"] if native and backend == "native" else [None]
        if backend in GPU_BACKENDS:
            checks += check_apart(backend)
            continue
        for isa in variants:
            checks += check_backend(backend, isa)
    return Report(
        versions={
            "csc_kernels": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        platform=platform.platform(),
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        native=native,
        backends={name: unavailable(name) for name in BACKENDS},
        checks=checks,
        speed=measure_speed(),
        ok=all(check.status != "failed" for check in checks),
    )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def composition(x: Tensor, scaled: Tensor, threshold: Tensor, dictionary: Tensor) -> Tensor:
    """Two steps from zero, written with care: step size in the weight, threshold in the bias, in place."""
    z = F.conv2d(x, scaled, threshold, padding=1).relu_()
    r = x - F.conv_transpose2d(z, dictionary, padding=1)
    return F.conv2d(r, scaled, threshold, padding=1).add_(z).relu_()


@torch.inference_mode()
def measure_speed(rounds: int = 15) -> Speed:
    """The stem of a CIFAR network, batch 16, float32: the preferred backend against `composition`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, 32, 32, generator=generator, dtype=torch.float32)
    dictionary = torch.randn(64, 3, 3, 3, generator=generator, dtype=torch.float32)
    dictionary /= dictionary.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    step_size = 1 / lipschitz(dictionary, method="bound").item()
    scaled, threshold = step_size * dictionary, torch.full((64,), -0.1 * step_size, dtype=torch.float32)

    def solve() -> Tensor:
        return fista(x, dictionary, 0.1, step_size, padding=1)

    def plain() -> Tensor:
        return composition(x, scaled, threshold, dictionary)

    csc_ms, pytorch_ms = medians([solve, plain], rounds)
    case = "two steps, 3->64 channels, 3x3, 16 images of 32x32, float32"
    return Speed(case, available_backends()[0], csc_ms, pytorch_ms)


def medians(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of each call, one after the other in every round so that all see the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 2):
        for call, taken in zip(calls, times):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    # The first two rounds warm up.
    return [statistics.median(taken[2:]) for taken in times]
