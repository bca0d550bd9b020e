"""Whether a backend computes what the float64 oracle says, on the machine that it runs on.

The rule is that of flash-attention's tests: the error against float64 is at most twice that of plain
PyTorch in the same precision, plus a few units in the last place of the largest value.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import reference
from .backends import GPU_BACKENDS, use_backend
from .functional import fista, fista_step, residual
from .geometry import Pads, code_size, normalize_padding, normalize_stride, step_weights
from .lipschitz import lipschitz

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
GPU_DTYPES = (*DTYPES, torch.float16)
BETA = 0.4  # the momentum of a single step


@dataclass(frozen=True)
class Case:
    """One problem that every backend has to solve."""

    name: str
    size: tuple[int, int, int, int]
    atoms: int
    kernel: int
    stride: int = 1
    padding: int = 1
    n_iter: int = 2
    nonneg: bool = True
    momentum: str = "fista"
    channels_last: bool = False
    mask: str | None = None  # "bool" or "weights"
    start: bool = False  # from a code z0 instead of zero

    @property
    def geometry(self) -> tuple[tuple[int, int], Pads]:
        stride = normalize_stride(self.stride)
        return stride, normalize_padding(self.padding, (self.kernel, self.kernel), stride)

    @property
    def ops(self) -> tuple[str, ...]:
        return ("fista", "residual", "fista_step") if self.start else ("fista", "residual")


CASES = (
    Case("RGB 3x3", (2, 3, 12, 13), 64, 3),
    Case("RGB 3x3 channels_last", (2, 3, 12, 13), 64, 3, channels_last=True),
    Case("RGB 7x7 stride 2", (1, 3, 25, 26), 48, 7, stride=2, padding=3),
    Case("RGB 3x3 mask, z0, signed", (2, 3, 9, 10), 20, 3, n_iter=4, nonneg=False, mask="bool", start=True),
    Case("RGB 3x3 published momentum", (1, 3, 10, 9), 24, 3, n_iter=5, momentum="sdnet"),
    Case("grey 5x5 ten steps", (1, 1, 11, 7), 17, 5, padding=2, n_iter=10),
    Case("wide 3x3", (2, 32, 8, 9), 32, 3),
    Case("wide 3x3 channels_last", (2, 32, 8, 9), 32, 3, channels_last=True),
    Case("wide 3x3 stride 2 weights, z0", (2, 20, 9, 8), 24, 3, stride=2, n_iter=3, mask="weights", start=True),
)


@dataclass
class Check:
    """One tensor of one op: its error as a share of what the rule allows, or why there is none."""

    backend: str
    isa: str | None
    dtype: str
    op: str
    case: str
    tensor: str
    status: str  # "ok", "failed" or "not served"
    share: float | None = None
    detail: str = ""


@dataclass
class Problem:
    """The tensors of a case; `z` is the code that a residual, a step, or a solve with z0 starts from."""

    case: Case
    x: Tensor
    dictionary: Tensor
    lmbda: Tensor
    z: Tensor
    mask: Tensor | None
    step_size: float

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What has a gradient that is compared."""
        return {"x": self.x, "dictionary": self.dictionary, "lmbda": self.lmbda, "z": self.z}

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Problem:
        """The same problem in fresh leaves, the images and codes in the case's layout."""
        layout = torch.channels_last if self.case.channels_last else torch.contiguous_format

        def leaf(tensor: Tensor) -> Tensor:
            copy = tensor.detach().to(device, dtype, copy=True, memory_format=layout)
            return copy.requires_grad_()

        mask = self.mask
        if mask is not None:
            mask = mask.to(device, mask.dtype if mask.dtype is torch.bool else dtype)
        leaves: dict[str, Any] = {name: leaf(tensor) for name, tensor in self.tensors.items()}
        return replace(self, **leaves, mask=mask)

    def solve(self, op: str) -> Tensor:
        """What is checked: the public functions."""
        case = self.case
        where: dict[str, Any] = {"stride": case.stride, "padding": case.padding, "mask": self.mask}
        if op == "residual":
            return residual(self.x, self.z, self.dictionary, **where)
        how: dict[str, Any] = {"nonneg": case.nonneg, "momentum": case.momentum} | where
        arguments = (self.dictionary, self.lmbda, self.step_size)
        if op == "fista_step":
            return fista_step(self.x, self.z, *arguments, beta=BETA, **how)[1]
        return fista(self.x, *arguments, case.n_iter, z0=self.z if case.start else None, **how)

    def plain(self, op: str) -> Tensor:
        """The definition in plain PyTorch, in the precision of the tensors."""
        case = self.case
        stride, pads = case.geometry
        if op == "residual":
            return reference.residual(self.x, self.z, self.dictionary, stride, pads, self.mask)
        step_size = self.lmbda.new_tensor(self.step_size)
        arguments = (self.dictionary, self.lmbda, self.lmbda.new_zeros(()), step_size)
        if op == "fista_step":
            return reference.fista_step(
                self.x, self.z, self.z, *arguments, BETA, stride, pads, case.nonneg,
                case.momentum == "sdnet", self.mask,
            )[1]  # fmt: skip
        return reference.fista(
            self.x, *arguments, self.z if case.start else None, self.mask, case.n_iter, stride, pads,
            case.nonneg, case.momentum,
        )[0][-1]  # fmt: skip


def random_problem(case: Case, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    dictionary = normal(case.atoms, case.size[1], case.kernel, case.kernel)
    dictionary /= dictionary.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    stride, pads = case.geometry
    size = code_size(case.size[2:], dictionary.shape[2:], stride, pads)
    mask = normal(*case.size).sigmoid() if case.mask else None
    if mask is not None and case.mask == "bool":
        mask = mask > 0.4
    return Problem(
        case,
        x=normal(*case.size),
        dictionary=dictionary,
        lmbda=0.1 * (0.5 + normal(1, case.atoms, 1, 1).abs()),
        z=(0.1 * normal(case.size[0], case.atoms, *size)).relu(),
        mask=mask,
        step_size=1 / lipschitz(dictionary, stride=stride, method="bound").item(),
    )


def margin(problem: Problem) -> float:
    """How close an entry of any step comes to its threshold, where rounding would make a gradient jump."""
    case = problem.case
    step_size = problem.lmbda.new_tensor(problem.step_size)
    threshold, zero = step_size * problem.lmbda, step_size.new_zeros(())
    z = y = problem.z if case.start else None
    closest = math.inf
    for beta in step_weights(case.n_iter, case.momentum):
        point = z if case.momentum == "sdnet" else y
        v, _ = reference.step(
            problem.x, y, point, problem.dictionary, zero, zero, step_size, *case.geometry, False,
            problem.mask,
        )  # fmt: skip
        closest = min(closest, ((v if case.nonneg else v.abs()) - threshold).abs().min().item())
        z_next = reference.shrink(v, threshold, case.nonneg)
        y = z_next if z is None else z_next + beta * (z_next - z)
        z = z_next
    return closest


@cache
def problem_of(case: Case) -> Problem:
    """A random problem whose codes keep their support in float32: of eight, the widest margin."""
    return max((random_problem(case, seed) for seed in range(8)), key=margin)


def compute(function: Callable[[str], Tensor], problem: Problem, op: str, backward: bool) -> dict[str, Tensor]:
    """The result of an op or, for `backward`, the gradients of its product with a fixed random tensor."""
    result = function(op)
    if not backward:
        return {"result": result.detach()}
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(result.shape, dtype=torch.float64, generator=generator).to(result)
    inputs = problem.tensors
    found = torch.autograd.grad(result, list(inputs.values()), grad, allow_unused=True)
    return {f"gradient of {name}": g for name, g in zip(inputs, found) if g is not None}


def share_of_allowed(actual: Tensor, plain: Tensor, oracle: Tensor, largest: bool) -> float:
    """The error of `actual` over what the rule allows, in rms and, when `largest`, in the maximum too."""
    # Against itself float64 has no error to allow twice of: what remains is the order of sums.
    units = 32 if actual.dtype is torch.float64 else 4
    # Of a 16-bit gradient, one code whose support rounding has changed is a few per cent of the small cases' rms.
    slack = units * torch.finfo(actual.dtype).eps if largest else 0.1
    oracle = oracle.cpu()
    error, own = actual.double().cpu() - oracle, plain.double().cpu() - oracle
    measures: list[Callable[[Tensor], Tensor]] = [lambda t: t.square().mean().sqrt()]
    if largest:
        measures.append(lambda t: t.abs().amax())
    # A tensor's maximum, unlike Python's, keeps a NaN.
    return torch.stack([m(error) / (2 * m(own) + slack * m(oracle)) for m in measures]).amax().item()


def compare(problem: Problem, op: str, dtype: torch.dtype, backward: bool, device: str) -> dict[str, float]:
    """Of every tensor that the current backend gives, the error as a share of what is allowed."""
    mine, own = problem.to(dtype, device), problem.to(dtype, device)
    wide = own.to(torch.float64)
    actual = compute(mine.solve, mine, op, backward)
    plain = compute(own.plain, own, op, backward)
    oracle = compute(wide.plain, wide, op, backward)
    # In 16 bits rounding changes the support of a code, so that single entries of a gradient may jump.
    largest = not (backward and dtype in (torch.bfloat16, torch.float16))
    return {name: share_of_allowed(actual[name], plain[name], oracle[name], largest) for name in oracle}


def check_backend(backend: str, isa: str | None = None) -> Iterator[Check]:
    """Every case in every dtype with one backend; `isa` forces one variant of the native kernels."""
    device = "cuda" if backend in GPU_BACKENDS and torch.cuda.is_available() else "cpu"
    for case in CASES:
        problem = problem_of(case)
        for dtype, op, backward in (
            (d, o, b) for d in (DTYPES if device == "cpu" else GPU_DTYPES) for o in case.ops for b in (False, True)
        ):
            what = (backend, isa, str(dtype).removeprefix("torch."), op, case.name)
            try:
                with use_backend(backend), forced_isa(isa):
                    shares = compare(problem, op, dtype, backward, device)
            except Exception as error:
                tensor = "gradients" if backward else "result"
                if "cannot serve" in str(error):
                    yield Check(*what, tensor, "not served", detail=str(error))
                else:
                    yield Check(*what, tensor, "failed", detail=f"{type(error).__name__}: {error}")
                continue
            for tensor, share in shares.items():
                finite = share if math.isfinite(share) else None
                detail = "" if finite is not None else f"the error is {share}"
                yield Check(*what, tensor, "ok" if share <= 1 else "failed", finite, detail)


def forced_isa(isa: str | None) -> AbstractContextManager[None]:
    if isa is None:
        return nullcontext()
    from .native import use_isa

    return use_isa(isa)


if __name__ == "__main__":
    # For the doctor, which gives a GPU's backends a process and a time limit: one JSON object a line and a check.
    for check in check_backend(sys.argv[1]):
        print(json.dumps(asdict(check)), flush=True)
