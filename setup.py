"""Builds the C++ kernels behind torch's stable ABI: one wheel for every CPython >= 3.10 and torch >= 2.10.

CSC_KERNELS_NATIVE=0 installs pure Python. Without a C++ compiler that is what happens too, with one line that
says so; with CSC_KERNELS_NATIVE=1 a failed build is an error. MAX_JOBS limits the compilers that run at once.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup

STABLE_ABI = "0x020a000000000000"  # torch 2.10
PYTHON_ABI = "cp310"


def compiler() -> str | None:
    names = [os.environ["CXX"].split()[0]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


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

    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    sources = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
    sources += sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))
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
