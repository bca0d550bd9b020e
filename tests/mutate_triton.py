"""Breaks the Triton kernels on purpose and shows that the tests notice: python tests/mutate_triton.py [KERNEL ...]

A mutant is a copy of csc_kernels/triton with one piece of text replaced, in the ways of mutations_triton.py; the
tests of test_triton.py that are named for its kernel run on it in triton's interpreter until one fails. Exits with
1 when a mutation survives, and with 2 when the tests fail without any.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: E402
import test_triton  # noqa: E402
import torch  # noqa: E402
from mutations_triton import MUTATIONS, Battery  # noqa: E402

import csc_kernels as csc  # noqa: E402

PACKAGE = Path(csc.__file__).parent / "triton"
FORK = multiprocessing.get_context("fork")


def broken(file: str, text: str, replacement: str, kernel: str, folder: Path) -> None:
    """A copy of the package in `folder` with one mutation."""
    shutil.copytree(PACKAGE, folder, dirs_exist_ok=True)
    source = (folder / file).read_text()
    # Kernels of one file repeat each other's text: the mutation is the kernel's own where it is there.
    start = max(source.find(f"def {kernel}("), 0)
    if source.find(text, start) < 0:
        start = 0
    at = source.find(text, start)
    if at < 0:
        raise SystemExit(f"{file} has no {text!r}: bring the table of mutations up to date")
    (folder / file).write_text(source[:at] + replacement + source[at + len(text) :])


def use(folder: Path) -> None:
    """Let the backend import its modules from `folder`."""
    for name in [
        name for name in sys.modules if name.startswith("csc_kernels.triton.") or name == "csc_kernels.triton"
    ]:
        del sys.modules[name]
    location = [str(folder)]
    spec = importlib.util.spec_from_file_location(
        "csc_kernels.triton", folder / "__init__.py", submodule_search_locations=location
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["csc_kernels.triton"] = module
    spec.loader.exec_module(module)
    csc.triton = module


def caught(battery: Battery) -> str | None:
    """The first test that fails, None when all pass."""
    for name, arguments in battery:
        try:
            with csc.use_backend("triton"):
                getattr(test_triton, name).__wrapped__(**arguments)
        except Exception:
            return f"{name}{list(arguments.values())}"
    return None


def mutants(kernels: list[str]) -> Iterator[tuple[str, str, Battery, str, str]]:
    for kernel in kernels:
        file, battery, changes = MUTATIONS[kernel]
        for text, replacement in changes:
            yield kernel, file, battery, text, replacement


def verdict(file: str, text: str, replacement: str, kernel: str, battery: Battery) -> str | None:
    """What notices a mutation, in a fork of this process: a kernel that writes anywhere may take it along."""
    receive, send = FORK.Pipe(duplex=False)

    def check() -> None:
        with tempfile.TemporaryDirectory() as root:
            broken(file, text, replacement, kernel, Path(root))
            use(Path(root))
            send.send(caught(battery))

    process = FORK.Process(target=check)
    process.start()
    process.join()
    return f"a crash, exit code {process.exitcode}" if process.exitcode else receive.recv()


def main() -> int:
    torch.set_num_threads(1)
    interpreter.quicken()
    kernels, start = sys.argv[1:] or list(MUTATIONS), time.perf_counter()
    verdicts: list[str | None] = []
    for battery in {id(MUTATIONS[kernel][1]): MUTATIONS[kernel][1] for kernel in kernels}.values():
        failed = caught(battery)
        if failed is not None:
            print(f"{failed} fails without any mutation")
            return 2
    for kernel, file, battery, text, replacement in mutants(kernels):
        begin = time.perf_counter()
        found = verdict(file, text, replacement, kernel, battery)
        verdicts.append(found)
        what = "SURVIVED" if found is None else f"caught by {found}"
        print(f"{kernel}: {text!r} -> {replacement!r}: {what} ({time.perf_counter() - begin:.1f} s)", flush=True)
    survivors, count = verdicts.count(None), len(verdicts)
    print(f"{count - survivors} of {count} mutations are caught in {time.perf_counter() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
