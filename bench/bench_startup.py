"""What does it cost to import the package, and to build it? Writes startup.csv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from harness import Contender, backend_name, console, provenance, show, update_csv

ROOT = Path(__file__).resolve().parents[1]

# Both in one process: what csc_kernels adds once torch is there.
_IMPORT = """
import time
import torch
start = time.perf_counter()
import csc_kernels
print(time.perf_counter() - start)
"""
# What a clean tree does not have.
_PRODUCTS = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "results", "*.egg-info", "*.so", "*.o", "__pycache__", ".*_cache"
)


def import_seconds() -> float:
    """One import of csc_kernels in a fresh interpreter, without the time that torch takes."""
    # With byte code, as pip installs it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True, env=env)
    return float(done.stdout)


def build_seconds() -> float:
    """One wheel from a clean copy of the tree, with the compiler and for the CPU only."""
    with tempfile.TemporaryDirectory() as folder:
        tree = shutil.copytree(ROOT, Path(folder) / "tree", ignore=_PRODUCTS)
        command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet"]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--wheel-dir", folder, str(tree)],
            check=True,
            env={**os.environ, "CSC_KERNELS_CUDA": "0"},
        )
        return time.perf_counter() - start


def main(
    build: Annotated[bool, typer.Option(help="Also build a wheel, which takes a minute or two.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for startup.csv.")] = Path("bench/results"),
) -> None:
    """Time the import and the build."""
    measured = [("import csc_kernels", Contender("beyond import torch", "", import_seconds))]
    with console.status("import csc_kernels"):
        import_seconds()  # Writes the byte code and fills the file cache.
        measured[0][1].times = [import_seconds() for _ in range(9)]
    if build:
        measured.append(("build", Contender("pip wheel, clean tree", "", build_seconds)))
        with console.status("building a wheel from a clean copy of the tree"):
            measured[1][1].times = [build_seconds()]
    facts = {"mode": "startup", "allocator": "system", "dtype": "", **provenance()}
    rows = [{**facts, "case": case, **one.row(), "backend": backend_name()} for case, one in measured]
    update_csv(out / "startup.csv", rows)
    show("startup", rows)


if __name__ == "__main__":
    typer.run(main)
