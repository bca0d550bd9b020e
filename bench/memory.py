"""Peak memory of one training step of one contender, in a process of its own.

What the kernel counts: the peak of the resident set during the step above what was resident before it, so
that scratch memory counts wherever it comes from. x and the dictionary are there before; the code, what is
saved for the backward, the gradient that comes from above and the gradients that go out are not.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from cases import CASES, Problem, forward, train

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes(case: str, name: str, layout: str, dtype: str) -> int | str:
    """The peak of a layer's training step in bytes; empty where the system does not tell (it takes Linux)."""
    return of_process(name, [__file__, case, name, layout, dtype, str(torch.get_num_threads())])


def of_process(name: str, arguments: list[str]) -> int | str:
    """What a script prints last, which is its `peak_of`; empty where the system does not tell."""
    if not _CLEAR.exists():
        return ""
    # Blocks of 64 KiB and more go back to the system when they are freed: resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"the memory of {name} could not be measured:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def peak_of(call: Callable[[], object]) -> int:
    """The peak of the resident set during a call above what is resident before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")  # The peak starts anew from here (proc(5)).
    start = _resident("VmRSS")
    call()
    return _resident("VmHWM") - start


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _step(name: str, problem: Problem) -> None:
    compute, before = forward(name, problem)
    before()
    train(compute, problem)


def main(case: str, name: str, layout: str, dtype: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    number = getattr(torch, dtype)
    # Libraries, threads and code come in with a small step. What torch.compile needs to compile the large
    # one is not its memory either: it is run once, and what that left behind is given back.
    _step(name, Problem.draw(CASES[case].tiny(), layout, number, training=True))
    problem = Problem.draw(CASES[case], layout, number, training=True)
    compute, before = forward(name, problem)
    before()
    if name == "compiled":
        train(compute, problem)
    print(peak_of(lambda: train(compute, problem)))


if __name__ == "__main__":
    main(*sys.argv[1:])
