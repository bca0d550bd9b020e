"""Proves that one wheel serves several Pythons and torches: builds it, and runs the doctor in each pair.

    python tests/check_wheel.py --python python3.10 --python python3.12 --torch 2.10.0 --torch 2.14.1

The wheel is built by the Python that runs this, with its torch. Every pair gets a virtual environment of its own,
in a temporary folder. Exit code 0 only when the native kernels load and agree with the oracle in every pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMES = ("python3.10", "python3.11", "python3.12", "python3.13", "python3.14")


def runs(python: str) -> bool:
    """Whether this is a Python; a version manager's stand-in may be none."""
    return (
        shutil.which(python) is not None and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
    )


def build(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return next(folder.glob("*.whl"))


def verdict(python: str, torch: str, wheel: Path, folder: Path) -> str:
    """What the doctor says of the wheel with this Python and this torch."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check"]
    installed = subprocess.run([*pip, f"torch=={torch}", "numpy", str(wheel)], capture_output=True, text=True)
    if installed.returncode:
        return f"not installed: {installed.stderr.strip().splitlines()[-1]}"
    doctor = subprocess.run(
        [str(folder / "bin" / "csc-kernels"), "doctor", "--json"], capture_output=True, text=True
    )
    if not doctor.stdout:
        return f"failed: {doctor.stderr.strip().splitlines()[-1]}"
    report = json.loads(doctor.stdout)
    missing = report["backends"]["native"]
    if missing is not None:
        return f"failed: no native backend, {missing}"
    return "ok" if doctor.returncode == 0 else "failed: a backend disagrees"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="default: every python3.x found that runs")
    parser.add_argument("--torch", action="append", help="default: 2.10.0 and 2.14.1")
    options = parser.parse_args()
    pythons = options.python or list(filter(runs, NAMES))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch))
        print(f"{wheel.name}, {wheel.stat().st_size / 2**20:.1f} MiB", flush=True)
        for python, torch in itertools.product(pythons, options.torch or ("2.10.0", "2.14.1")):
            folder = Path(scratch) / "venv"
            result = verdict(python, torch, wheel, folder)
            print(f"{python:12} torch {torch:8} {result}", flush=True)
            shutil.rmtree(folder)
            failed = failed or result != "ok"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
