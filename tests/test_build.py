"""setup.py: which CUDA kernels are built, for what, and what happens where they cannot be; nvcc is a script."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
NO_NVCC = "csc_kernels: no nvcc found, installing without the CUDA kernels"
# Compiles anything into an empty file, and writes when it starts and ends.
NVCC = """#!/bin/sh
if [ "$1" = --list-gpu-arch ]; then echo {architectures}; exit; fi
if [ "$1" = --dryrun ]; then echo '#$ TOP={home}' >&2; exit; fi
echo begin >> {home}/log; sleep 0.1; echo end >> {home}/log
while [ "$1" != -o ]; do shift; done
: > "$2"
"""
KNOWN = "compute_75 compute_80 compute_90 compute_100 compute_120"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CSC_KERNELS_CUDA", "CSC_KERNELS_NATIVE", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAX_JOBS", "2")
    monkeypatch.setenv("CXX", os.environ.get("CXX", "c++"))  # setup.py sets it where it is not.
    monkeypatch.chdir(ROOT)
    if shutil.which(os.environ["CXX"].split()[0]) is None:
        pytest.skip("without a C++ compiler nothing is built")


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Callable[[], SimpleNamespace]:
    """Runs setup.py but for its last line, whose arguments are `options`."""

    def run() -> SimpleNamespace:
        options: dict[str, Any] = {}
        monkeypatch.setattr(setuptools, "setup", lambda **given: options.update(given))
        return SimpleNamespace(**runpy.run_path("setup.py"), options=options)

    return run


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a toolkit into CUDA_HOME."""

    def make(architectures: str = KNOWN, script: str = NVCC) -> Path:
        program = tmp_path / "cuda" / "bin" / "nvcc"
        program.parent.mkdir(parents=True)
        program.write_text(script.format(architectures=architectures, home=tmp_path / "cuda"))
        program.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        return program

    return make


def targets(flags: list[str]) -> list[str]:
    return [flag.rpartition("=")[2] for flag in flags if flag.startswith("arch=")]


def test_every_architecture_and_ptx_of_the_newest_is_built(setup, nvcc) -> None:
    flags = setup().architecture_flags(str(nvcc()))
    assert targets(flags) == ["sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]


def test_an_older_nvcc_builds_what_it_knows(setup, nvcc) -> None:
    flags = setup().architecture_flags(str(nvcc("compute_70 compute_80 compute_90")))
    assert targets(flags) == ["sm_80", "sm_90", "compute_90"]


@pytest.mark.parametrize("given", ("8.6;9.0+PTX", "8.6 9.0+PTX", "8.6, 9.0+PTX"))
def test_torch_cuda_arch_list_is_what_is_built(setup, nvcc, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    assert targets(setup().architecture_flags(str(nvcc()))) == ["sm_86", "sm_90", "compute_90"]


@pytest.mark.parametrize("jobs", (1, 2))
def test_no_more_compilers_run_than_max_jobs(
    setup, nvcc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: int
) -> None:
    monkeypatch.setenv("MAX_JOBS", str(jobs))
    nvcc()
    built = setup().compile_cuda(tmp_path / "cuda", tmp_path / "objects")
    assert {Path(path).stem for path in built} == {path.stem for path in Path("csrc/cuda").glob("*.cu")}
    running = most = 0
    for line in (tmp_path / "cuda" / "log").read_text().split():
        running += 1 if line == "begin" else -1
        most = max(most, running)
    assert 1 <= most <= jobs


def test_only_what_changed_is_compiled_again(setup, nvcc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc()
    log = tmp_path / "cuda" / "log"
    compile_cuda = setup().compile_cuda
    first = compile_cuda(tmp_path / "cuda", tmp_path / "objects")
    count = log.read_text().count("begin")
    assert compile_cuda(tmp_path / "cuda", tmp_path / "objects") == first
    assert log.read_text().count("begin") == count
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    compile_cuda(tmp_path / "cuda", tmp_path / "objects")
    assert log.read_text().count("begin") == 2 * count


def test_zero_leaves_the_cuda_kernels_out(
    setup, nvcc, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nvcc()
    assert setup().cuda_toolkit() is not None
    monkeypatch.setenv("CSC_KERNELS_CUDA", "0")
    found = setup()
    assert found.cuda_toolkit() is None and found.options["ext_modules"]
    assert capsys.readouterr().out == ""


@pytest.fixture
def without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))


def test_without_nvcc_one_line_says_so_and_the_rest_is_built(
    without_nvcc, setup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup().options["ext_modules"]
    assert capsys.readouterr().out == f"{NO_NVCC}\n"


def test_one_makes_a_missing_nvcc_an_error(without_nvcc, setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSC_KERNELS_CUDA", "1")
    with pytest.raises(SystemExit, match=NO_NVCC):
        setup()


@pytest.mark.parametrize("wanted", (None, "1"))
def test_a_failed_compilation_leaves_them_out_unless_they_were_asked_for(
    setup, nvcc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    if wanted is not None:
        monkeypatch.setenv("CSC_KERNELS_CUDA", wanted)
    nvcc(script="#!/bin/sh\nif [ \"$1\" = --list-gpu-arch ]; then echo '{architectures}'; else exit 2; fi")
    options = setup().options
    build, (extension,) = options["cmdclass"]["build_ext"], options["ext_modules"]
    sources = list(extension.sources)
    command = SimpleNamespace(build_temp=str(tmp_path / "temp"))
    if wanted is None:
        build.add_cuda(command, extension)
        assert extension.sources == sources and not extension.extra_objects
        assert "the CUDA kernels did not build, installing without them" in capsys.readouterr().out
    else:
        with pytest.raises(subprocess.CalledProcessError):
            build.add_cuda(command, extension)


def test_a_machine_without_triton_imports_and_runs() -> None:
    code = """
import sys
sys.modules["triton"] = None  # `import triton` raises ImportError, and nobody finds it.
import torch
import csc_kernels as csc
from csc_kernels import cli
assert "triton" not in csc.available_backends()
assert csc.backends.unavailable("triton") == "triton is not installed"
layer = csc.CSCConv2d(3, 8, 3, padding=1)
layer(torch.randn(2, 3, 8, 9)).sum().backward()
torch.compile(layer, backend="aot_eager")(torch.randn(2, 3, 8, 9))
sys.exit(cli.main(["resources"]))
"""
    environment = os.environ | {"CSC_TEST_DEVICE": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)


def test_every_package_is_installed() -> None:
    """Those of pyproject.toml are the folders that hold Python."""
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [(ROOT, "csc_kernels"), (ROOT / "python", "sdnet")]
    found = [
        ".".join(path.parent.relative_to(base).parts)
        for base, name in folders
        for path in (base / name).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)
