"""Bytes and operations of every Triton kernel: the formulas of traffic.py against what the interpreter does."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from conditions import DEVICE
from interpreter import with_triton
from problems import random_problem
from test_fista_step import Step, compute
from torch import Tensor


class Counter:
    """The bytes of images and codes that each program reads and writes, and the operations of its products.

    What is read more than once by a program is counted once, and the dictionary once for all programs.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        shared = arguments.get("dictionary")
        self.dictionary = (
            range(0) if shared is None else range(shared.data_ptr(), shared.data_ptr() + shared.nbytes)
        )
        self.read = self.written = self.operations = 0
        self.shared: set[int] = set()
        self.program: tuple[int, ...] | None = None
        self.seen: set[int] = set()

    def load(self, builder, pointers, mask) -> None:
        addresses = set(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].ravel().tolist())
        element = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if self.program != builder.grid_idx:
            self.program, self.seen = builder.grid_idx, set()
        shared = {a for a in addresses if a in self.dictionary}
        fresh = addresses - shared - self.seen
        self.read += element * (len(fresh) + len(shared - self.shared))
        self.seen |= fresh
        self.shared |= shared

    def store(self, pointers, mask) -> None:
        element = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        self.written += element * int(np.broadcast_to(mask.data, pointers.data.shape).sum())


@contextmanager
def counted(counter: Counter) -> Iterator[None]:
    """Everything that the interpreter loads, stores and multiplies meanwhile."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    load, store, dot = Builder.create_masked_load, Builder.create_masked_store, Builder.create_dot

    def counted_load(self, pointers, mask, *rest):
        counter.load(self, pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self, pointers, value, mask, *rest):
        counter.store(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_dot(self, a, b, *rest):
        counter.operations += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(self, a, b, *rest)

    Builder.create_masked_load, Builder.create_masked_store = counted_load, counted_store
    Builder.create_dot = counted_dot
    try:
        yield
    finally:
        Builder.create_masked_load, Builder.create_masked_store, Builder.create_dot = load, store, dot


LAYERS = {
    "stem": {"size": (18, 21), "padding": 1, "atoms": 5},
    "stem_7x7_stride": {"size": (17, 22), "padding": 3, "kernel": (7, 7), "stride": 2, "atoms": 6},
    "grey_valid": {"channels": 1, "size": (9, 12), "kernel": (2, 3), "atoms": 4},
    "wide": {"channels": 20, "size": (9, 11), "padding": 1, "atoms": 24},
    "wide_stride_3": {"channels": 9, "size": (11, 13), "padding": 1, "stride": 3, "atoms": 10, "kernel": (2, 2)},
}


@pytest.mark.parametrize("mask", (None, "bool"))
@pytest.mark.parametrize("layer", LAYERS)
@with_triton
def test_what_is_counted_is_what_the_formula_says(layer: str, mask: str | None) -> None:
    from csc_kernels.triton import passes, solve
    from csc_kernels.triton.launch import Launch
    from csc_kernels.triton.traffic import traffic

    if DEVICE != "cpu":
        pytest.skip("counts in the interpreter")
    problem = random_problem(dtype=torch.float32, z0=True, mask=mask, batch=3, lmbda="scalar", **LAYERS[layer])
    counted_kernels = []

    def launch(kernel, programs, device, blocks, arguments) -> None:
        counter = Counter(arguments)
        with counted(counter):
            before(kernel, programs, device, blocks, arguments)
        counted_kernels.append(kernel)
        expected = traffic(Launch(kernel, programs, blocks, arguments))
        found = (counter.read, counter.written, counter.operations)
        assert found == (expected.read, expected.written, expected.operations), kernel.fn.__name__

    before, passes.launch, solve.launch = passes.launch, launch, launch
    try:
        step = Step(**vars(problem), y=0.5 * problem.z0, beta=0.3)
        for t in step.tensors.values():
            t.requires_grad_()
        compute(step).square().sum().backward()
        problem.map(Tensor.detach).solve(z0=None, mask=None)
    finally:
        passes.launch = solve.launch = before
    assert len(set(counted_kernels)) == (6 if problem.stride != 1 or problem.dictionary[0].numel() > 32 else 7)


@with_triton
def test_the_kernels_move_little_more_than_they_must() -> None:
    from csc_kernels.traffic import GPUS
    from csc_kernels.triton.cases import CASES, launches
    from csc_kernels.triton.traffic import solve_launches, traffic

    stem = CASES["CIFAR stem"]
    for architecture in (gpu.architecture for gpu in GPUS.values()):
        x, z, _ = stem.tensors(torch.bfloat16, "meta", "contiguous")
        (solve,) = solve_launches(stem, torch.bfloat16, architecture)
        assert traffic(solve).moved <= 1.25 * (x.nbytes + z.nbytes)
        for case in (CASES["CIFAR stem"], CASES["wide"]):
            for launch in launches(case, torch.bfloat16, "contiguous", architecture):
                if launch.kernel.fn.__name__ in ("residual_kernel", "fista_step_kernel"):
                    tensors = {id(t): t for t in launch.arguments.values() if isinstance(t, Tensor)}
                    floor = sum(t.nbytes for t in tensors.values() if t.dim() == 4)
                    assert traffic(launch).moved <= 1.1 * floor, launch.kernel.fn.__name__


@with_triton
def test_the_committed_table_is_what_the_formulas_give() -> None:
    from csc_kernels import traffic
    from csc_kernels.triton.traffic import predictions

    with traffic.FILE.open() as file:
        committed = [row for row in csv.DictReader(file) if row["kind"] == "triton"]
    assert committed == [{name: str(value) for name, value in vars(row).items()} for row in predictions()]
