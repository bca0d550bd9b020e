"""Times candidate block sizes on the GPU at hand and keeps the best in the user's table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import blocks as table
from .blocks import Blocks
from .cases import CIFAR_STEM, LAYOUTS, WIDE, Case, run
from .launch import Launch, launch, recorded

ROUNDS = 20


def candidates(row: Blocks) -> Iterator[Blocks]:
    """The row itself, and rows with half and twice its pixels, its atoms, its warps, or other stages."""
    yield row
    for name in ("pixels", "atoms", "warps"):
        for value in (getattr(row, name) // 2, getattr(row, name) * 2):
            if value >= (1 if name == "warps" else 16) and not (name == "warps" and value > 16):
                yield replace(row, **{name: value})
    for stages in (1, 2, 4):
        if stages != row.stages:
            yield replace(row, stages=stages)


def milliseconds(call: Callable[[], None], flush: Tensor) -> float:
    """The median time of a call on the current GPU, its second-level cache cold."""
    times = []
    for _ in range(ROUNDS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _launches(case: Case, tensors: Sequence[Tensor], row: Blocks) -> list[Launch]:
    """The launches of the row's kernel in `case`, with other block sizes."""
    with table.using(row), recorded() as found:
        run(case, *tensors)
    return [launch for launch in found if launch.blocks == row]


def tune(
    cases: Sequence[Case] = (CIFAR_STEM, WIDE),
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    layout: str = "contiguous",
    device: str = "cuda",
) -> dict[str, tuple[float, float]]:
    """See csc_kernels.tune; `cases` are the layers to tune for, one for each kind of shape."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {tuple(LAYOUTS)}, got {layout!r}")
    where = torch.device(device)
    best: dict[tuple[str, str, str, str], Blocks] = {row.key: row for row in table.read(table.user_table())}
    report: dict[str, tuple[float, float]] = {}
    with torch.cuda.device(where):
        flush = torch.empty(2**28, dtype=torch.uint8, device=where)
        for case in cases:
            for dtype in dtypes:
                tensors = case.tensors(dtype, device, layout)
                for tensor in tensors:
                    tensor.normal_()
                with recorded() as found:
                    run(case, *tensors)
                for row in dict.fromkeys(launch.blocks for launch in found):
                    times = _time(case, tensors, row, flush)
                    if not times:
                        continue
                    fastest = min(times, key=times.__getitem__)
                    own = replace(fastest, architecture=table.architecture(where))
                    best[own.key] = own
                    report[" ".join(own.key)] = (times.get(row, float("nan")), times[fastest])
    table.write(table.user_table(), best.values())
    table.table.cache_clear()
    return report


def _time(case: Case, tensors: Sequence[Tensor], row: Blocks, flush: Tensor) -> dict[Blocks, float]:
    """Milliseconds of the candidates of a row that run."""
    times: dict[Blocks, float] = {}
    for candidate in candidates(row):
        launches = _launches(case, tensors, candidate)
        if not launches:
            continue

        def call(launches: list[Launch] = launches) -> None:
            for one in launches:
                launch(one.kernel, one.programs, tensors[0].device, one.blocks, one.arguments)

        try:
            call()  # Compiles.
            torch.cuda.synchronize()
        except Exception:  # Whatever the compiler or the driver says, this candidate is none.
            continue
        times[candidate] = milliseconds(call, flush)
    return times
