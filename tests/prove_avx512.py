"""Tests the kernels of AVX-512 on a processor that has AVX2 alone: python tests/prove_avx512.py [PYTEST ARGUMENTS]

Their sources are compiled for vectors of 16 lanes in two registers each, in a copy of the repository. Registers and
instructions are others; lanes, blocks and the order of all sums are those of AVX-512.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from copied import build_cpu, copy_repository

NAMES = "tiles strided_tiles pairs exact_sums fista properties backends paths symbol golden"
TESTS = [f"tests/test_{name}.py" for name in NAMES.split()]


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_repository(Path(scratch))
        build_cpu(folder, "-DCSC_EMULATED_AVX512 -Wno-psabi")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "python")])}
        probe = "from csc_kernels import native; raise SystemExit(native.build_info()['isa'] != 'avx512')"
        if subprocess.run([sys.executable, "-c", probe], cwd=folder, env=environment).returncode:
            print("this processor has no AVX2")
            return 2
        arguments = sys.argv[1:] or ["-n", "auto", *TESTS]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
