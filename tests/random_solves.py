"""Random problems for the GPU kernels: of shapes that are cut into tiles, and of shapes that hardly are any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from conditions import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption
from problems import random_problem

# Larger ones take seconds to interpret or to emulate. Products are the multiplications of one analysis.
MOST_CODES, MOST_PRODUCTS = 4_000, 200_000


@st.composite
def solves(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of random_problem, the memory format of its tensors under "layout".

    Padding may be larger than the kernel, the kernel larger than the image, the stride larger than both.
    """
    side = st.one_of(st.integers(1, 3), st.integers(1, 8))
    kernel = draw(st.tuples(side, side))
    stride = draw(st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 4), st.integers(1, 4))))
    padding = draw(st.tuples(st.integers(0, 7), st.integers(0, 7)))
    sides = (st.one_of(st.integers(least, least + 9), st.integers(least, 50)) for least in _least(kernel, padding))
    channels = draw(st.one_of(st.integers(1, 4), st.integers(1, 20)))
    options = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "size": draw(st.tuples(*sides)),
        "channels": channels,
        "atoms": draw(st.one_of(st.integers(1, 20), st.integers(1, 80))),
        "batch": draw(st.integers(0, 3)),
        "n_iter": draw(st.one_of(st.integers(1, 3), st.integers(1, 7))),
        "momentum": draw(st.sampled_from(("fista", "none", "sdnet"))),
        "nonneg": draw(st.booleans()),
        "z0": draw(st.booleans()),
        "mask": draw(st.sampled_from((None, None, "bool", "float", "pixel", "channel"))),
        "lmbda": draw(st.sampled_from((0.0, 0.1, "scalar", "atom", "sample", "full"))),
        "mu": draw(st.sampled_from((0.0, 0.2, "scalar", "atom", "sample", "full"))),
        "layout": draw(st.sampled_from((torch.contiguous_format, torch.channels_last))),
        "seed": draw(st.integers(0, 10_000)),
    }
    positions = [(s + 2 * p - k) // t + 1 for s, p, k, t in zip(options["size"], padding, kernel, stride)]
    codes = options["batch"] * options["atoms"] * positions[0] * positions[1]
    if codes > MOST_CODES or codes * channels * kernel[0] * kernel[1] > MOST_PRODUCTS:
        raise UnsatisfiedAssumption
    return options


def _least(kernel: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
    return tuple(max(1, k - 2 * p) for k, p in zip(kernel, padding))


def problem_of(options: dict[str, Any], dtype: torch.dtype = torch.float32):
    """The problem, its images and codes in the layout that was drawn."""
    layout = options.pop("layout")
    problem = random_problem(dtype=dtype, **options)
    return problem.map(lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t)


def each(count: int, check: Callable[..., None], **strategies: st.SearchStrategy) -> None:
    """Run a check on so many drawn arguments."""
    examples(count)(given(**strategies)(check))()
