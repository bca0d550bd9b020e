"""Random problems, and what the ops must survive of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

import csc_kernels as csc
from csc_kernels import reference
from csc_kernels.geometry import code_size, normalize_padding, normalize_stride, step_weights

TENSORS = ("x", "dictionary", "lmbda", "mu", "step_size", "z0", "mask")


@dataclass
class Problem:
    """The arguments of one `csc.fista`; absent tensors are None."""

    x: Tensor
    dictionary: Tensor
    lmbda: float | Tensor = 0.1
    mu: float | Tensor = 0.0
    step_size: float | Tensor = 0.1
    z0: Tensor | None = None
    mask: Tensor | None = None
    n_iter: int = 2
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    nonneg: bool = True
    momentum: str = "fista"

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        stride = normalize_stride(self.stride)
        return stride, normalize_padding(self.padding, tuple(self.dictionary.shape[2:]), stride)

    @property
    def code_shape(self) -> tuple[int, ...]:
        stride, pads = self.geometry
        size = code_size(self.x.shape[-2:], self.dictionary.shape[2:], stride, pads)
        return (*self.x.shape[:-3], self.dictionary.shape[0], *size)

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with every tensor changed."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{n: change(v) for n, v in values if isinstance(v, Tensor)})

    def to(self, dtype: torch.dtype) -> Problem:
        return self.map(lambda t: t.detach().to(dtype) if t.is_floating_point() else t)

    def leaves(self) -> Problem:
        """Every floating tensor a leaf that asks for a gradient."""
        return self.map(lambda t: t.detach().clone().requires_grad_() if t.is_floating_point() else t)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors whose gradients can be asked for."""
        found = ((name, getattr(self, name)) for name in TENSORS)
        return {n: v for n, v in found if isinstance(v, Tensor) and v.is_floating_point()}

    def solve(self, **changes: Any) -> Tensor:
        """What is tested: csc.fista on these arguments."""
        return csc.fista(**{f.name: getattr(self, f.name) for f in fields(self)} | changes)

    def plain(self) -> Tensor:
        """The definition in plain PyTorch, in the precision of the tensors, differentiable."""
        return reference.fista(
            self.x, self.dictionary, *self.parameters, self.z0, self.mask, self.n_iter, *self.geometry,
            self.nonneg, self.momentum,
        )[0][-1]  # fmt: skip

    @property
    def parameters(self) -> list[Tensor]:
        """lmbda, mu and step_size as tensors."""
        values = (self.lmbda, self.mu, self.step_size)
        return [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in values]

    def margin(self) -> float:
        """How far the closest entry of all steps is from the threshold, in float64."""
        wide = self.to(torch.float64)
        lmbda, mu, step_size = wide.parameters
        z = y = wide.z0
        closest = math.inf
        for beta in step_weights(self.n_iter, self.momentum):
            point = z if self.momentum == "sdnet" else y
            nothing = torch.zeros((), dtype=torch.float64)
            v, _ = reference.step(
                wide.x, y, point, wide.dictionary, nothing, nothing, step_size, *wide.geometry,
                False, wide.mask,
            )  # fmt: skip
            size = v if self.nonneg else v.abs()
            if size.numel():
                closest = min(closest, (size - step_size * lmbda).abs().min().item())
            z_next = reference.prox(v, lmbda, mu, step_size, self.nonneg)
            y = z_next + beta * (z_next - z) if beta else z_next
            z = z_next
        return closest


def rough_norm(dictionary: Tensor, **geometry: Any) -> Tensor:
    """||A||^2 by as few products as change it by a twentieth.

    By hand, so that the problems stay as they are when `lipschitz` stops otherwise.
    """
    norms = [csc.lipschitz(dictionary, tol=0, max_iter=1, **geometry)]
    while len(norms) < 2 or norms[-1] - norms[-2] > 0.05 * norms[-1]:
        norms.append(csc.lipschitz(dictionary, tol=0, max_iter=len(norms) + 1, **geometry))
    return norms[-1]


def random_problem(
    *,
    batch: int | None = 2,
    channels: int = 3,
    atoms: int = 8,
    size: tuple[int, int] = (8, 9),
    kernel: tuple[int, int] = (3, 3),
    lmbda: float | str = 0.1,
    mu: float | str = 0.0,
    z0: bool = False,
    mask: str | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    margin: float = 0.0,
    **options: Any,
) -> Problem:
    """A problem with random tensors; lmbda and mu may be "scalar", "atom", "sample" or "full" tensors.

    Tensors are drawn in float64 and rounded to `dtype`. With a margin, seeds are tried until no entry of any
    step is closer to the threshold, so that rounding cannot change the support.
    """
    lead = () if batch is None else (batch,)
    for attempt in range(seed, seed + 100):
        generator = torch.Generator().manual_seed(attempt)

        def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        dictionary = normal(atoms, channels, *kernel)
        dictionary /= dictionary.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        problem = Problem(normal(*lead, channels, *size), dictionary, **options)
        norm = rough_norm(dictionary, stride=problem.stride, padding=problem.padding, input_size=size)
        # Every position of the code may lie in the padding; then A is zero.
        problem.step_size = 0.9 / torch.where(norm > 0, norm, 1)

        def parameter(kind: float | str, scale: float, code: tuple[int, ...], normal=normal) -> Any:
            if not isinstance(kind, str):
                return kind
            shapes = {"scalar": (), "atom": (atoms, 1, 1), "sample": (*lead, 1, 1, 1), "full": code}
            return scale * (0.5 + normal(*shapes[kind]).abs())

        problem.lmbda = parameter(lmbda, 0.1, problem.code_shape)
        problem.mu = parameter(mu, 0.2, problem.code_shape)
        if z0:
            problem.z0 = 0.1 * normal(*problem.code_shape)
        problem.mask = random_mask(mask, problem.x, generator)
        problem = problem.to(dtype)
        if margin == 0 or problem.margin() > margin:
            return problem
    raise AssertionError(f"no seed from {seed} on has a margin of {margin}")


def random_mask(kind: str | None, x: Tensor, generator: torch.Generator) -> Tensor | None:
    """A mask of x: "bool" or "float" in x's shape, "pixel" (bool) and "channel" (float) that broadcast."""
    if kind is None:
        return None
    shape = {
        "bool": x.shape,
        "float": x.shape,
        "pixel": (1, *x.shape[-2:]),
        "channel": (x.shape[-3], 1, 1),
    }
    uniform = torch.rand(shape[kind], dtype=torch.float64, generator=generator)
    return uniform > 0.3 if kind in ("bool", "pixel") else uniform


# A as a matrix, from its definition alone: no convolution of PyTorch is involved.


def dense_operator(dictionary: Tensor, stride: Any, padding: Any, size: Sequence[int]) -> Tensor:
    """A for images of `size` as a matrix, pixels (M H W) x codes (K H' W'), in float64."""
    atoms, channels, *kernel = dictionary.shape
    stride = normalize_stride(stride)
    pads = normalize_padding(padding, tuple(kernel), stride)
    rows, columns = code_size(size, kernel, stride, pads)
    canvas = (size[0] + pads[0] + pads[1], size[1] + pads[2] + pads[3])
    matrix = torch.zeros(channels, *canvas, atoms, rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride[0], j * stride[1]
            window = matrix[:, top : top + kernel[0], left : left + kernel[1], :, i, j]
            window.copy_(dictionary.detach().double().permute(1, 2, 3, 0))
    image = matrix[:, pads[0] : pads[0] + size[0], pads[2] : pads[2] + size[1]]
    return image.reshape(channels * size[0] * size[1], atoms * rows * columns)


def objective(problem: Problem, z: Tensor) -> float:
    """What a solve minimises, in float64."""
    wide = problem.to(torch.float64)
    lmbda, mu, _ = wide.parameters
    r = reference.residual(wide.x, z.double(), wide.dictionary, *wide.geometry, wide.mask)
    return (0.5 * r.square().sum() + (lmbda * z.abs()).sum() + (0.5 * mu * z.square()).sum()).item()


# What the ops must survive, by name: shapes (for random_problem), and everything else.

SHAPES: dict[str, dict[str, Any]] = {
    "rgb": {"padding": 1},
    "grey": {"channels": 1, "padding": 1, "atoms": 5},
    "two_channels": {"channels": 2, "padding": 1, "atoms": 7},
    "four_channels": {"channels": 4, "padding": 1, "atoms": 6},
    "wide_5": {"channels": 5, "padding": 1, "atoms": 6},
    "wide_17": {"channels": 17, "padding": 1, "atoms": 9, "size": (6, 7)},
    "wide_40": {"channels": 40, "padding": 1, "atoms": 33, "size": (5, 6)},
    "wide_64": {"channels": 64, "padding": 1, "atoms": 64, "size": (12, 13), "batch": 1},
    "wide_32_even": {"channels": 32, "padding": 1, "atoms": 48, "size": (8, 8), "batch": 1},
    "wide_valid": {"channels": 16, "atoms": 20, "size": (9, 7)},
    "wide_5x5": {"channels": 16, "padding": 2, "kernel": (5, 5), "atoms": 16, "size": (7, 6)},
    "wide_same_even": {"channels": 8, "padding": "same", "kernel": (2, 4), "atoms": 8},
    "wide_1x1": {"channels": 24, "kernel": (1, 1), "atoms": 12},
    "wide_one_pixel": {"channels": 16, "padding": 1, "size": (1, 1)},
    "wide_stride": {"channels": 16, "padding": 1, "atoms": 16, "size": (9, 8), "stride": 2},
    "atoms_1": {"atoms": 1, "padding": 1},
    "atoms_17": {"atoms": 17, "padding": 1},
    "atoms_35": {"atoms": 35, "padding": 1, "size": (6, 18)},
    "batch_0": {"batch": 0, "padding": 1},
    "batch_0_wide": {"batch": 0, "channels": 8, "padding": 1},
    "batch_1": {"batch": 1, "padding": 1},
    "batch_5": {"batch": 5, "padding": 1, "size": (4, 5)},
    "row": {"size": (1, 21), "padding": 1},
    "column": {"size": (21, 1), "padding": 1},
    "one_pixel": {"size": (1, 1), "padding": 1},
    "long_rows": {"size": (3, 70), "padding": 1, "atoms": 3},
    "long_columns": {"size": (70, 3), "padding": 1, "atoms": 3},
    "kernel_1x1": {"kernel": (1, 1)},
    "kernel_1x1_stride": {"kernel": (1, 1), "stride": 2, "padding": 1},
    "kernel_even": {"kernel": (2, 4), "padding": (1, 2)},
    "kernel_flat": {"kernel": (1, 5), "padding": (0, 2)},
    "kernel_tall": {"kernel": (5, 2), "padding": (2, 0)},
    "kernel_7": {"kernel": (7, 7), "padding": 3, "stride": 2, "size": (14, 15)},
    "kernel_11": {"kernel": (11, 11), "padding": 5, "stride": 4, "size": (19, 23)},
    "kernel_33_rows": {"kernel": (33, 2), "padding": (16, 1), "size": (20, 5), "atoms": 3},
    "kernel_is_image": {"kernel": (8, 9)},
    "kernel_past_image": {"kernel": (9, 10), "padding": 3},
    "padding_past_kernel": {"kernel": (2, 2), "padding": 4, "size": (4, 5)},
    "same_odd": {"padding": "same"},
    "same_even": {"kernel": (4, 2), "padding": "same"},
    "same_past_image": {"kernel": (8, 6), "padding": "same", "size": (3, 4)},
    "valid": {"padding": "valid"},
    "stride_2": {"stride": 2, "padding": 1},
    "stride_2_odd": {"stride": 2, "padding": 1, "size": (9, 11)},
    "stride_3": {"stride": 3, "padding": 1, "size": (10, 12)},
    "stride_pair": {"stride": (1, 3), "padding": (1, 0), "size": (6, 14)},
    "stride_past_kernel": {"stride": (4, 5), "kernel": (3, 2), "size": (12, 13)},
}

OPTIONS: dict[str, dict[str, Any]] = {
    "one_step": {"n_iter": 1},
    "three_steps": {"n_iter": 3},
    "ten_steps": {"n_iter": 10, "size": (5, 6)},
    "ista": {"n_iter": 4, "momentum": "none"},
    "sdnet": {"n_iter": 5, "momentum": "sdnet"},
    "signed": {"nonneg": False, "n_iter": 3},
    "signed_sdnet": {"nonneg": False, "n_iter": 4, "momentum": "sdnet", "z0": True},
    "signed_ista": {"nonneg": False, "n_iter": 3, "momentum": "none", "mask": "float"},
    "start": {"z0": True},
    "start_one_step": {"z0": True, "n_iter": 1},
    "start_signed": {"z0": True, "n_iter": 4, "nonneg": False},
    "no_threshold": {"lmbda": 0.0, "n_iter": 3},
    "no_threshold_signed": {"lmbda": 0.0, "n_iter": 3, "nonneg": False},
    "lmbda_huge": {"lmbda": 100.0},
    "lmbda_scalar": {"lmbda": "scalar"},
    "lmbda_atom": {"lmbda": "atom"},
    "lmbda_sample": {"lmbda": "sample"},
    "lmbda_full": {"lmbda": "full", "nonneg": False},
    "mu": {"mu": 0.5, "n_iter": 3},
    "mu_scalar": {"mu": "scalar"},
    "mu_atom": {"mu": "atom", "lmbda": "atom"},
    "mu_sample": {"mu": "sample", "lmbda": "full"},
    "mu_full": {"mu": "full", "nonneg": False, "n_iter": 3},
    "mask_bool": {"mask": "bool"},
    "mask_float": {"mask": "float", "n_iter": 3},
    "mask_pixel": {"mask": "pixel", "z0": True},
    "mask_channel": {"mask": "channel", "momentum": "sdnet", "n_iter": 3},
    "everything": {
        "lmbda": "full", "mu": "atom", "mask": "float", "z0": True, "nonneg": False, "n_iter": 4,
        "stride": 2, "size": (9, 8),
    },
    "everything_wide": {
        "channels": 12, "lmbda": "atom", "mu": "full", "mask": "channel", "z0": True, "n_iter": 3,
    },
}  # fmt: skip
CASES = {name: {"padding": 1} | case for name, case in OPTIONS.items()} | SHAPES
