"""Compiles csrc/cuda as host code, with the emulated headers, into the process that stands for a GPU."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc" / "cuda"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = ["-std=c++20", "-Og", "-g1", "-Wno-unknown-pragmas", "-Wno-psabi", "-DCSC_EMULATION"]


def compiler() -> str | None:
    return shutil.which("g++")


def build(folder: Path, kernels: Path = CUDA, jobs: int = 2, sanitized: bool = True) -> Path:
    """The runner's executable in `folder`, compiled anew where a source changed; `kernels` may be a copy.

    Without the sanitizers it runs faster, and only the emulation watches what kernels do. The emulation itself is
    compiled without them in any case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sanitizers = SANITIZERS if sanitized else []
    flags = [*FLAGS, "-DCSC_SANITIZED"] if sanitized else FLAGS
    sources = [*sorted(kernels.glob("*.cu")), *sorted(HERE.glob("*.cpp"))]
    headers = [*sorted(kernels.glob("*.cuh")), *sorted(kernels.glob("*.h")), *sorted((HERE / "include").iterdir())]
    common = b"".join(path.read_bytes() for path in headers) + " ".join([*flags, *sanitizers]).encode()

    def compile_one(source: Path) -> Path:
        digest = hashlib.sha256(common + source.read_bytes()).hexdigest()[:16]
        target = folder / f"{source.stem}-{digest}.o"
        if not target.exists():
            include = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{kernels.parents[1]}"]
            partial = target.with_suffix(f".{os.getpid()}.partial")
            own = sanitizers if source.name != "device.cpp" else []
            command = [compiler(), *flags, *own, *include, "-x", "c++", "-c", str(source), "-o", str(partial)]
            subprocess.run(command, check=True)
            partial.rename(target)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, sources))
    names = " ".join(path.name for path in objects).encode()
    runner = folder / f"runner-{hashlib.sha256(names).hexdigest()[:16]}"
    if not runner.exists():
        partial = runner.with_suffix(f".{os.getpid()}.partial")
        subprocess.run(
            [compiler(), *sanitizers, *map(str, objects), "-o", str(partial)],
            check=True,
        )
        partial.rename(runner)
    return runner
