"""Where does the time of a Winograd convolution go, and how far is it from the roofline? Writes phases.csv.

The products of the transformed tiles are what the arithmetic units must do; transforms and epilogue come on top.
The roofline is the rate of a large direct convolution in the same run: torch's matrix product is slower here.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from cases import CASES, Case, peak, peak_rate
from harness import choose_allocator, console, provenance
from torch import Tensor

import csc_kernels as csc
from csc_kernels.native import paths
from csc_kernels.native.convolutions import Direct, Winograd

PHASES = ("transforms", "products", "epilogue")


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def peak_flops(rounds: int) -> float:
    """Of the large convolution that the other benchmarks take for the machine's peak, too."""
    return peak_rate(1e3 * median_seconds(peak(torch.float32).call, rounds))


def phases(call: Callable[[Tensor], object], rounds: int) -> list[float]:
    """Seconds of a thread in each phase, per call."""
    seconds = torch.zeros(torch.get_num_threads(), len(PHASES), dtype=torch.float64)
    for _ in range(rounds):
        call(seconds)
    return (seconds.mean(0) / rounds).tolist()


def measure(case: Case, path: str, peak: float, rounds: int) -> list[dict[str, object]]:
    """Rows of one analysis and of one gradient of the dictionary."""
    shape = (case.batch, case.in_channels, case.size, case.size)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    dictionary = 0.05 * torch.randn(case.atoms, case.in_channels, case.kernel, case.kernel)
    pads, size = (case.padding,) * 4, (case.size, case.size)
    direct = 2 * dictionary.numel() * case.batch * case.code_size**2
    if path == "direct":
        way = Direct(dictionary, (1, 1), pads, 0.1, size)
        z = way.analysis(x, None, None, False)
        calls = {
            "analysis": (lambda: way.analysis(x, None, None, False), None),
            "gradient": (lambda: way.correlation([x], [z]), None),
        }
        operations = direct
    else:
        side = int(path[1])
        tiled = Winograd(dictionary, pads, 0.1, size, side)
        transform, threshold, gradient = tiled.transforms[0], torch.zeros(case.atoms), torch.zeros_like(dictionary)
        z = torch.empty(case.batch, case.atoms, *tiled.z_size).contiguous(memory_format=torch.channels_last)

        def analysis(seconds: Tensor | None = None) -> None:
            torch.ops.csc_native.winograd(x, transform, side, *pads[::2], threshold, x, True, seconds, z)

        def correlation(seconds: Tensor | None = None) -> None:
            torch.ops.csc_native.winograd_gradient([x], [z], side, *pads[::2], 1.0, seconds, gradient)

        calls = {"analysis": (analysis, analysis), "gradient": (correlation, correlation)}
        tiles = case.batch * (-(-case.code_size // side)) ** 2
        operations = 2 * (side + 2) ** 2 * tiles * case.atoms * case.in_channels
    rows = []
    for name, (call, measured) in calls.items():
        seconds = median_seconds(call, rounds)
        parts = phases(measured, rounds) if measured else [0.0, seconds, 0.0]
        rows.append(
            {
                "operation": name,
                "path": path,
                "ms": round(1e3 * seconds, 3),
                **{f"{phase}_ms": round(1e3 * part, 3) for phase, part in zip(PHASES, parts)},
                "products_of_roofline": round(operations / max(parts[1], 1e-9) / peak, 3),
                "products_floor_of_time": round(operations / peak / seconds, 3),
                "as_direct_of_roofline": round(direct / seconds / peak, 3),
            }
        )
    return rows


def main(
    rounds: Annotated[int, typer.Option(min=3)] = 9,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option(help="Folder for phases.csv.")] = Path("bench/results"),
) -> None:
    """Time the phases of the wide layers' convolutions."""
    torch.set_num_threads(threads)
    choose_allocator("keep")
    csc.available_backends()  # Loads the library.
    rows = []
    for name, case in CASES.items():
        if case.stem:
            continue
        peak = peak_flops(rounds)
        for path in paths.PATHS:
            for row in measure(case, path, peak, rounds):
                rows.append({"case": name, **row, "peak_gflops": round(peak / 1e9, 1), **provenance()})
                parts = "  ".join(f"{phase} {row[f'{phase}_ms']}" for phase in PHASES)
                console.print(f"{name} {row['operation']} {path}: {row['ms']} ms: {parts}", highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "phases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
