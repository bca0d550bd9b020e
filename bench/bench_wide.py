"""Is the path that a wide layer chooses ever slower than direct convolutions? Writes wide.csv.

Each shape is solved, and trained, by every path forced and by the one that csc_kernels chooses, all interleaved.
"""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from cases import MODES, Case, contender
from harness import Contender, choose_allocator, console, interleave, provenance, update_csv

from csc_kernels.native import paths

CHANNELS = (8, 12, 16, 24, 32, 40, 64, 96, 128, 200, 256, 512)
SIZES = (1, 2, 3, 4, 5, 7, 8, 11, 14, 16, 25, 31, 32)
BATCHES = (1, 2, 4, 16, 64, 256)
# Multiply-adds of one convolution: beyond these a shape takes minutes, or nothing but the call.
SMALLEST, LARGEST = 1e5, 1.2e9
PRECISIONS = {"default": "highest", "high": "high"}


def shapes() -> list[Case]:
    """3x3 layers of every width, size and batch, as many channels in as out or twice as many, shuffled."""
    found = []
    for channels in CHANNELS:
        for size in SIZES:
            for batch in BATCHES:
                atoms = channels * (2 if (size + batch) % 5 == 0 and channels < 512 else 1)
                work = 9 * channels * atoms * size * size * batch
                if SMALLEST <= work <= LARGEST:
                    found.append(Case(channels, atoms, size, 3, 1, 1, batch))
    random.Random(0).shuffle(found)
    return found


def by_path(path: str, case: Case, mode: str, dtype: torch.dtype) -> Contender:
    """csc.fista by one path, or by the chosen one as torch's precision allows."""
    one = contender("csc.fista", case, "channels_last", mode, dtype)
    solve = one.call
    forced = path in paths.PATHS

    def call() -> object:
        torch.set_float32_matmul_precision(PRECISIONS.get(path, "highest"))
        with paths.use_path(path) if forced else nullcontext():
            return solve()

    one.name = path
    one.call = call
    if not forced:
        one.backend += f" {chosen(case, PRECISIONS[path], mode, dtype)}"
    return one


def chosen(case: Case, precision: str, mode: str, dtype: torch.dtype) -> str:
    """The path of the convolutions, and in training that of the dictionary's gradient."""
    torch.set_float32_matmul_precision(precision)
    dictionary = torch.empty(case.atoms, case.in_channels, case.kernel, case.kernel, dtype=dtype)
    size = (case.code_size, case.code_size)
    gradients = (False, True) if mode == "training" else (False,)
    return "+".join(paths.choose_path(dictionary, (1, 1), case.batch, size, gradient) for gradient in gradients)


def name_of(case: Case) -> str:
    return f"{case.in_channels}->{case.atoms}, {case.size}x{case.size}, batch {case.batch}"


def main(
    first: Annotated[int, typer.Option(min=0, help="Skip so many shapes.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Measure so many.")] = 1000,
    mode: Annotated[str, typer.Option(help="forward or training; both when empty.")] = "",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    rounds: Annotated[int, typer.Option(min=3)] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    allocator: Annotated[str, typer.Option(help="keep or system, see harness.choose_allocator.")] = "keep",
    out: Annotated[Path, typer.Option(help="Folder for wide.csv.")] = Path("bench/results"),
) -> None:
    """Time every path of wide layers over many shapes."""
    torch.set_num_threads(threads)
    choose_allocator(allocator)
    # Of bfloat16 there are no tiles of 4 x 4, and precision is nothing that is asked for.
    names = ("direct", "f2", "default") if dtype == "bfloat16" else (*paths.PATHS, *PRECISIONS)
    for case in shapes()[first : first + count]:
        for kind in [mode] if mode else MODES:
            contenders = [by_path(name, case, kind, getattr(torch, dtype)) for name in names]
            interleave(contenders, f"{name_of(case)}, {kind}", rounds=rounds, seconds=0.3, warm_up=1)
            facts = {"case": name_of(case), "mode": kind, "dtype": dtype, "allocator": allocator}
            rows = [{**facts, **provenance(), **one.row()} for one in contenders]
            update_csv(out / "wide.csv", rows)
            medians = {str(row["contender"]): float(str(row["p50_ms"])) for row in rows}
            shown = "  ".join(f"{path} {value / medians['direct']:.2f}" for path, value in medians.items())
            text = f"{name_of(case):28} {kind:8} {medians['direct']:7.2f} ms  {shown}"
            console.print(text, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
