"""The emulated device: torch.ops.csc_cuda on CPU tensors, served by a process that runs the kernels."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import csc_kernels as csc
from csc_kernels import cuda, cudnn
from csc_kernels.cuda import library
from csc_kernels.geometry import step_weights

OPS = ("synthesis", "analysis", "correlation", "residual_tail", "step_tail", "fista", "fista_backward")
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

# Bytes of shared memory that a block has on every device from compute capability 8.0 on. A smaller limit cuts
# solves on chip into tiles, which are planned for it; the other kernels take the same everywhere.
LEAST_SHARED = 99 * 1024

# The usual state of a device: bytes of shared memory, multiprocessors, the order of blocks and threads, whether
# lmbda, mu and the step size lie on the device, the allow_tf32 of torch's convolutions, and by how many elements
# the samples of every tensor are moved apart.
FULL = {
    "shared_limit": 227 * 1024,
    "processors": 3,
    "seed": 0,
    "device_numbers": True,
    "tf32": False,
    "stretch": 0,
}


class EmulationError(Exception):
    """What the emulation, or a sanitizer, found wrong with a launch."""


@dataclass
class Traffic:
    """Of one call: bytes loaded from and stored to each tensor, and multiplications on tensor cores."""

    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    products: int = 0


class Device:
    """A process that runs calls one after the other; started anew after an error."""

    def __init__(self, runner: Path) -> None:
        self.runner = runner
        self.process: subprocess.Popen | None = None
        self.mutant = 0  # Which of tests/mutations_cuda.py the kernels are.
        for name, value in FULL.items():
            setattr(self, name, value)
        self.calls: list[tuple[str, dict[str, Any], Traffic]] = []

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def _start(self) -> subprocess.Popen:
        if self.process is None:
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
            environment = {"ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0:exitcode=86"}
            self.process = subprocess.Popen(
                [str(self.runner)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                env=environment,
            )  # fmt: skip
        return self.process

    def call(self, op: str, arguments: dict[str, Any], written: set[str]) -> Traffic:
        """Run one op; tensors named in `written` are updated in place."""
        process = self._start()
        shared = self.shared_limit if op.startswith("fista") else LEAST_SHARED
        lines = [f"op {op}", f"shared {shared}", f"seed {self.seed}"]
        lines += [f"int device_numbers {int(self.device_numbers)}", f"int stretch {self.stretch}"]
        lines.append(f"int mutant {self.mutant}")
        tensors = []
        for name, value in arguments.items():
            if value is None:
                continue
            if isinstance(value, Tensor):
                tensors.append((name, value))
                lines.append(self._announce(name, value, name in written))
                continue
            values = value if isinstance(value, (list, tuple)) else [value]
            kind = "float" if any(isinstance(v, float) for v in values) else "int"
            lines.append(" ".join([kind, name, *(repr(v) if kind == "float" else str(int(v)) for v in values)]))
        lines.append("end\n")
        try:
            process.stdin.write("\n".join(lines).encode())
            for _, tensor in tensors:
                process.stdin.write(_bytes(tensor))
            process.stdin.flush()
            traffic = self._answer(process)
            for name, tensor in tensors:
                if name in written:
                    _span(tensor).view(torch.uint8).copy_(self._read(process, tensor))
        except (BrokenPipeError, EOFError):
            process.wait()
            self.errors.seek(0)
            message = self.errors.read().decode(errors="replace")
            self.process = None
            raise EmulationError(f"csc_cuda.{op}: {message}") from None
        self.calls.append((op, {n: v for n, v in arguments.items() if not isinstance(v, Tensor)}, traffic))
        return traffic

    def _announce(self, name: str, tensor: Tensor, written: bool) -> str:
        span = _span(tensor)
        fields = [
            name, ELEMENTS[tensor.dtype], int(written), span.numel() * tensor.element_size(),
            tensor.data_ptr() % 64, tensor.dim(), *tensor.shape, *tensor.stride(),
        ]  # fmt: skip
        return " ".join(map(str, ["tensor", *fields]))

    @staticmethod
    def _answer(process: subprocess.Popen) -> Traffic:
        traffic = Traffic()
        while (line := process.stdout.readline()) != b"end\n":
            match line.decode().split():
                case ["products", count]:
                    traffic.products = int(count)
                case ["traffic", name, loaded, stored]:
                    traffic.loaded[name], traffic.stored[name] = int(loaded), int(stored)
                case _:
                    raise EOFError
        return traffic

    @staticmethod
    def _read(process: subprocess.Popen, tensor: Tensor) -> Tensor:
        size = _span(tensor).numel() * tensor.element_size()
        data = process.stdout.read(size)
        if len(data) != size:
            raise EOFError
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)


def _span(tensor: Tensor) -> Tensor:
    """All of the storage that a tensor's elements lie in, as a flat view."""
    if tensor.numel() == 0:
        return tensor.new_empty(0)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.detach().as_strided((last + 1,), (1,))


def _bytes(tensor: Tensor) -> bytes:
    return _span(tensor).contiguous().view(torch.uint8).numpy().tobytes()


def tiled(problem: Any, backward: bool = False, spare: int = 8) -> dict[str, int]:
    """The state of a device with so little shared memory that the problem is cut into tiles on chip.

    `spare`: KiB beyond the least with which that can be done at all.
    """
    x, stride, pads = problem.x, *problem.geometry
    shape = [*x.shape, *problem.code_shape[1:], *problem.dictionary.shape[2:], *stride, pads[0], pads[2]]
    momentum = any(step_weights(problem.n_iter, problem.momentum)[:-1])
    options = (problem.n_iter, problem.z0 is not None, momentum, backward, x.element_size())
    processors = 2

    def plan(kilobytes: int) -> list[int]:
        return torch.ops.csc_cuda.plan(shape, *options, kilobytes * 1024, processors)

    least = next(kilobytes for kilobytes in range(30, 228, 2) if plan(kilobytes)) + spare
    rows, columns, *_ = plan(least)
    assert rows < shape[5] or columns < shape[6], f"a tile of {rows} x {columns} is the whole code"
    return {"shared_limit": least * 1024, "processors": processors}


_current: list[Device] = []
_library = torch.library.Library("csc_cuda", "IMPL")


def _register(op: str) -> None:
    schema = getattr(torch.ops.csc_cuda, op).default._schema
    names = [argument.name for argument in schema.arguments]
    written = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}

    def kernel(*values: Any) -> None:
        _current[-1].call(op, dict(zip(names, values)), written)

    _library.impl(op, kernel, "CPU")


if csc.backends.unavailable("native") is None:
    for _op in OPS:
        _register(_op)


@contextmanager
def emulated(device: Device) -> Iterator[Device]:
    """The backends "cuda" and "cudnn" serve CPU tensors, on the emulated device, until the context ends."""
    patches = {
        "serves_device": lambda x: x.device.type == "cpu",
        "is_device_number": lambda value: device.device_numbers or value.dim() > 0,
        "limits": lambda _: (device.shared_limit, device.processors),
        "allows_tf32": lambda dtype: dtype is torch.float32 and device.tf32,
    }
    _current.append(device)
    try:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(library, **patches))
            for backend in (cuda, cudnn):
                stack.enter_context(mock.patch.object(backend, "unavailable", lambda: None))
            yield device
    finally:
        _current.pop()
