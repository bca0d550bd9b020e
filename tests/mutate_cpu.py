"""Breaks the kernels of csrc/cpu on purpose and shows that the tests notice: python tests/mutate_cpu.py [FILE ...]

The mutations of mutations_cpu.py are compiled into one library, each behind a number, in a copy of the repository.
The tests must pass with none of them and fail with each. Exits with 1 when a mutation survives, and with 2 when the
tests fail without any.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from copied import build_cpu, copy_repository
from mutations_cpu import MUTATIONS

DECLARATION = 'extern "C" __attribute__((visibility("default"))) int csc_mutant;\n'
DEFINITION = '\nextern "C" { int csc_mutant = 0; }\n'
WORKERS = 2


class Mutation(NamedTuple):
    """One that was planted; `needed`: the instruction set that it takes to notice it, if not every one will do."""

    number: int
    file: str
    text: str
    needed: tuple[str, ...]


def plant(folder: Path, names: list[str]) -> list[Mutation]:
    """Put the mutations of some files into the sources of `folder`."""
    planted = []
    for name in names:
        path = folder / "csrc" / "cpu" / name
        source = path.read_text()
        for marked, replacement, *needed in MUTATIONS[name][1]:
            before, rest = marked.split("<<", 1)
            expression, after = rest.rsplit(">>", 1)  # The last one: the expression may hold a shift.
            passage = before + expression + after
            if source.count(passage) != 1:
                raise SystemExit(f"{name}: {passage!r} occurs {source.count(passage)} times, not once")
            number = len(planted) + 1
            chosen = f"{before}(csc_mutant == {number} ? ({replacement}) : ({expression})){after}"
            source = source.replace(passage, chosen)
            planted.append(Mutation(number, name, f"{expression}  ->  {replacement}", tuple(needed)))
        path.write_text(source)
    return planted


def build_mutants(folder: Path) -> None:
    header = folder / "mutant.h"
    header.write_text(DECLARATION)
    with (folder / "csrc" / "cpu" / "isa.cpp").open("a") as file:
        file.write(DEFINITION)
    build_cpu(folder, f"-include {header}")


def fork_tests(number: int, tests: tuple[str, ...], library: ctypes.CDLL) -> int:
    """The process that runs the tests with one mutation, 0 being none."""
    process = os.fork()
    if process:
        return process
    import pytest

    ctypes.c_int.in_dll(library, "csc_mutant").value = number
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "not reference", *tests])))


def instruction_sets() -> set[str]:
    """What this processor runs."""
    import torch

    from csc_kernels import native

    found = set(native.build_info()["isa_available"])
    return found | {"avx512_bf16"} if torch.ops.csc_native.winograd_bfloat16() else found


def run_tests(planted: list[Mutation]) -> int:
    """In the copy: the tests once without any mutation, and once with each, each time in a fork of this process."""
    import hypothesis

    import csc_kernels

    # A failure is enough: nobody reads its smallest example.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutations", phases=phases, database=None)
    hypothesis.settings.load_profile("mutations")
    csc_kernels.available_backends()  # Loads the library.
    library = ctypes.CDLL(str(next(Path("csc_kernels").glob("_native*.so")).resolve()))
    runnable = instruction_sets()
    noticeable = [mutation for mutation in planted if runnable.issuperset(mutation.needed)]

    for tests in {MUTATIONS[mutation.file][0] for mutation in noticeable}:
        _, status = os.waitpid(fork_tests(0, tests, library), 0)
        if status:
            print(f"{' '.join(tests)}: fail without any mutation")
            return 2
    waiting, running, survivors = list(noticeable), {}, 0
    while waiting or running:
        while waiting and len(running) < WORKERS:
            mutation = waiting.pop(0)
            process = fork_tests(mutation.number, MUTATIONS[mutation.file][0], library)
            running[process] = (mutation, time.perf_counter())
        process, status = os.wait()
        mutation, start = running.pop(process)
        survivors += status == 0
        verdict = "SURVIVED" if status == 0 else "caught"
        print(f"{verdict} {mutation.file}: {mutation.text} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(f"{len(noticeable) - survivors} of {len(noticeable)} mutations are caught")
    return 1 if survivors else 0


def main() -> int:
    names = sys.argv[1:] or list(MUTATIONS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_repository(Path(scratch))
        planted = plant(folder, names)
        print(f"{len(planted)} mutations of {len(names)} files", flush=True)
        build_mutants(folder)
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        return run_tests(planted)


if __name__ == "__main__":
    sys.exit(main())
