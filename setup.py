"""Builds the kernels behind torch's stable ABI: one wheel for every CPython >= 3.10 and torch >= 2.10.

CSC_KERNELS_NATIVE=0 installs pure Python. Without a C++ compiler that is what happens too, with one line that
says so; with CSC_KERNELS_NATIVE=1 a failed build is an error. The CUDA kernels are built where nvcc is found, with
or without a GPU; CSC_KERNELS_CUDA=0 leaves them out, and with CSC_KERNELS_CUDA=1 it is an error not to have them.
TORCH_CUDA_ARCH_LIST names their architectures. MAX_JOBS limits the compilers that run at once.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

STABLE_ABI = "0x020a000000000000"  # torch 2.10
PYTHON_ABI = "cp310"
ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")
NVCC_FLAGS = ["-O3", "-std=c++17", "--extended-lambda", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"]


def compiler() -> str | None:
    names = [os.environ["CXX"].split()[0]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def cuda_home() -> Path | None:
    """The toolkit of CUDA_HOME, or of the nvcc on PATH."""
    if "CUDA_HOME" in os.environ:
        home = Path(os.environ["CUDA_HOME"])
        return home if (home / "bin" / "nvcc").exists() else None
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    # nvcc may be a script elsewhere that calls the real one: its own answer says where the toolkit lies.
    answer = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    tops = [line.split("TOP=", 1)[1].strip() for line in answer.splitlines() if "TOP=" in line]
    return Path(tops[0]).resolve() if tops else None


def architectures(nvcc: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, or those of ours that this nvcc knows, and PTX of the newest for what comes after."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if given is not None:
        return given.replace(",", " ").replace(";", " ").split()
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    found = [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in known]
    return [*found[:-1], f"{found[-1]}+PTX"]


def architecture_flags(nvcc: str) -> list[str]:
    """nvcc's -gencode for the architectures."""
    flags = []
    for name in architectures(nvcc):
        number = name.removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if name.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def compile_cuda(home: Path, folder: Path) -> list[str]:
    """Objects of csrc/cuda/*.cu, of which those older than a source are compiled again.

    Device code includes nothing of torch, so that plain nvcc compiles it whatever torch is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = str(home / "bin" / "nvcc")
    flags = NVCC_FLAGS + architecture_flags(nvcc)
    record = folder / "flags"
    if not record.exists() or record.read_text() != " ".join(flags):
        for old in folder.glob("*.o"):
            old.unlink()
        record.write_text(" ".join(flags))
    shared = [*Path("csrc/cuda").glob("*.h"), *Path("csrc/cuda").glob("*.cuh")]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        newest = max(path.stat().st_mtime for path in (source, *shared))
        if not target.exists() or target.stat().st_mtime < newest:
            command = [nvcc, *flags, "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
        return str(target)

    # The longest first: they decide how long the build takes.
    sources = sorted(Path("csrc/cuda").glob("*.cu"), key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(int(os.environ["MAX_JOBS"])) as pool:
        return list(pool.map(compile_one, sources))


def cuda_toolkit() -> Path | None:
    """Where to compile the CUDA kernels with; says so where they are left out."""
    wanted = os.environ.get("CSC_KERNELS_CUDA")
    if wanted == "0":
        return None
    home = cuda_home()
    if home is None:
        message = "csc_kernels: no nvcc found, installing without the CUDA kernels"
        if wanted == "1":
            raise SystemExit(message)
        print(message)
    return home


def native_options() -> dict:
    wanted = os.environ.get("CSC_KERNELS_NATIVE")
    if wanted == "0":
        return {}
    if compiler() is None:
        message = "csc_kernels: no C++ compiler found, installing without the native kernels"
        if wanted == "1":
            raise SystemExit(message)
        print(message)
        return {}
    os.environ.setdefault("CXX", compiler())

    from torch.utils.cpp_extension import BuildExtension, CppExtension

    home = cuda_toolkit()

    class Build(BuildExtension):
        """An extension that fails to build leaves a pure Python installation, unless it was asked for."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted == "1":
                    raise
                print(f"csc_kernels: the native kernels did not build, installing without them: {error}")
                self.extensions = []

        def build_extension(self, extension) -> None:
            if home is not None:
                self.add_cuda(extension)
            super().build_extension(extension)

        def add_cuda(self, extension) -> None:
            try:
                objects = compile_cuda(home, Path(self.build_temp) / "cuda")
            except subprocess.CalledProcessError as error:
                if os.environ.get("CSC_KERNELS_CUDA") == "1":
                    raise
                print(f"csc_kernels: the CUDA kernels did not build, installing without them: {error}")
                return
            extension.sources.append("csrc/cuda/bindings.cpp")
            extension.extra_objects += objects
            extension.include_dirs.append(str(home / "include"))
            extension.define_macros += [("CSC_WITH_CUDA", None), ("USE_CUDA", None)]
            # The static runtime: the library loads where there is no CUDA at all.
            extension.library_dirs += [str(home / "lib64"), str(home / "lib")]
            extension.libraries += ["cudart_static", "dl", "rt", "pthread"]

    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    sources = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
    sources += sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))
    sources.append("csrc/cuda/plan.cpp")
    extension = CppExtension(
        "csc_kernels._native",
        sources,
        include_dirs=[str(Path(__file__).parent / "csrc")],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI)],
        extra_compile_args=["-O3", "-std=c++20", "-g0", "-fvisibility=hidden", "-Wno-psabi"],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": PYTHON_ABI}},
    }


setup(**native_options())
