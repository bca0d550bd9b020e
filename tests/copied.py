"""A copy of the repository, to compile its CPU kernels in another way: for scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_repository(folder: Path) -> Path:
    """The sources, without what is built from them, in a new folder in `folder`."""
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "__pycache__", "results", ".hypothesis")
    return Path(shutil.copytree(ROOT, folder / "csc_kernels_copy", ignore=ignored))


def build_cpu(folder: Path, flags: str) -> None:
    """Compile the CPU kernels of a copy in place."""
    environment = os.environ | {"CFLAGS": flags, "CSC_KERNELS_NATIVE": "1", "CSC_KERNELS_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
