"""Breaks every kernel of csrc/cpu on purpose and shows that the tests notice: python tests/mutate_cpu.py [FILE ...]

The mutations of mutations.py are compiled into one library, each behind a number that an environment variable
chooses, in a copy of the repository. The tests must pass with none of them and fail with each. Exits with 1 when a
mutation survives, and with 2 when the tests fail without any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent
HEADER = 'extern "C" int csc_mutant;\n'
DEFINITION = """
#include <cstdlib>
extern "C" {
int csc_mutant = std::getenv("CSC_MUTANT") ? std::atoi(std::getenv("CSC_MUTANT")) : 0;
}
"""
WORKERS = 2


def plant(folder: Path, names: list[str]) -> list[tuple[int, str, str]]:
    """Put the mutations of some files into the sources of `folder`; their numbers, files and descriptions."""
    planted = []
    for name in names:
        path = folder / "csrc" / "cpu" / name
        source = path.read_text()
        for marked, replacement in MUTATIONS[name][1]:
            before, rest = marked.split("<<", 1)
            # The last >>, since an expression may hold a shift.
            expression, after = rest.rsplit(">>", 1)
            passage = before + expression + after
            if source.count(passage) != 1:
                raise SystemExit(f"{name}: {passage!r} occurs {source.count(passage)} times, not once")
            number = len(planted) + 1
            chosen = f"{before}(csc_mutant == {number} ? ({replacement}) : ({expression})){after}"
            source = source.replace(passage, chosen)
            planted.append((number, name, f"{expression}  ->  {replacement}"))
        path.write_text(source)
    return planted


def build(folder: Path) -> None:
    header = folder / "mutant.h"
    header.write_text(HEADER)
    with (folder / "csrc" / "cpu" / "isa.cpp").open("a") as file:
        file.write(DEFINITION)
    environment = os.environ | {
        "CPPFLAGS": f"-include {header}",
        "CFLAGS": f"-include {header}",
        "CSC_KERNELS_NATIVE": "1",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def passes(folder: Path, number: int, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass with one mutation; 0 is none."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not reference", *tests]
    environment = os.environ | {"CSC_MUTANT": str(number), "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1) and done.returncode > 0:
        raise SystemExit(f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> int:
    names = sys.argv[1:] or list(MUTATIONS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "mutated"
        ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "__pycache__", "results", ".hypothesis")
        shutil.copytree(ROOT, folder, ignore=ignored)
        planted = plant(folder, names)
        print(f"{len(planted)} mutations of {len(names)} files", flush=True)
        build(folder)
        for tests in {MUTATIONS[name][0] for name in names}:
            if not passes(folder, 0, tests):
                print(f"{' '.join(tests)}: fail without any mutation")
                return 2
        survivors = []

        def run(mutation: tuple[int, str, str]) -> None:
            number, name, text = mutation
            start = time.perf_counter()
            survived = passes(folder, number, MUTATIONS[name][0])
            verdict = "SURVIVED" if survived else "caught"
            print(f"{verdict} {name}: {text} ({time.perf_counter() - start:.0f} s)", flush=True)
            if survived:
                survivors.append(mutation)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(run, planted))
    print(f"{len(planted) - len(survivors)} of {len(planted)} mutations are caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
