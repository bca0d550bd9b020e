"""How fast is the layer, against every way to write it in PyTorch? Writes fista.csv."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from cases import CASES, HIGH, LAYOUTS, MODES, NAMES, contender, memory, peak
from harness import choose_allocator, console, interleave, middle_rows, provenance, read_csv, show, update_csv
from memory import peak_bytes

# Whose memory a training step of the stems is compared.
MEASURED_MEMORY = ("published", "cleaned", "compiled", "csc.fista", "CSCConv2d")


def run_case(
    case: str, mode: str, dtype: str, rounds: int, seconds: float, measure_memory: bool
) -> list[dict[str, object]]:
    """All contenders of one case, interleaved; the rows without the machine's columns."""
    torch._dynamo.reset()  # Each case compiles its own shapes, below the limit of recompilations.
    pairs = [(name, layout) for name in NAMES for layout in LAYOUTS]
    if not CASES[case].stem and dtype == "float32":
        pairs += [(HIGH, layout) for layout in LAYOUTS]
    contenders = [contender(name, CASES[case], layout, mode, getattr(torch, dtype)) for name, layout in pairs]
    if measure_memory and mode == "training" and CASES[case].stem:
        with console.status(f"{case}: memory"):
            for one in contenders:
                if one.name in MEASURED_MEMORY:
                    one.peak_bytes = peak_bytes(case, one.name, one.layout, dtype)
    contenders += [peak(getattr(torch, dtype)), memory()]
    interleave(contenders, f"{case}, {mode}, {dtype}", rounds=rounds, seconds=seconds)
    return [{"case": case, "mode": mode, "dtype": dtype, **one.row()} for one in contenders]


def in_processes(count: int, options: list[str]) -> list[dict[str, object]]:
    """Rows of so many fresh processes: of each contender that with the median of its medians."""
    rows = []
    for number in range(count):
        console.print(f"[dim]process {number + 1} of {count}[/]")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, __file__, *options, "--out", folder], check=True)
            rows += read_csv(Path(folder) / "fista.csv")
    return middle_rows(rows)


def main(
    case: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    mode: Annotated[str, typer.Option(help="forward or training; both when empty.")] = "",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    rounds: Annotated[int, typer.Option(min=2, help="At least so many rounds.")] = 7,
    processes: Annotated[
        int, typer.Option(min=1, help="Each row is the median of so many processes, between which times differ.")
    ] = 1,
    quick: Annotated[bool, typer.Option(help="Three rounds, no memory.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    allocator: Annotated[str, typer.Option(help="keep or system, see harness.choose_allocator.")] = "keep",
    out: Annotated[Path, typer.Option(help="Folder for fista.csv.")] = Path("bench/results"),
) -> None:
    """Time the layer against plain PyTorch."""
    for name, value, allowed in (
        ("mode", mode, ("", *MODES)),
        ("dtype", dtype, ("float32", "bfloat16")),
        ("allocator", allocator, ("keep", "system")),
    ):
        if value not in allowed:
            raise typer.BadParameter(f"{name} must be one of {allowed}, got {value!r}")
    chosen = [name for name in CASES if case.lower() in name.lower()]
    if not chosen:
        raise typer.BadParameter(f"no case contains {case!r}: {list(CASES)}")
    torch.set_num_threads(threads)
    choose_allocator(allocator)
    for name in chosen:
        for kind in [mode] if mode else MODES:
            if processes > 1:
                options = ["--case", name, "--mode", kind, "--dtype", dtype, "--allocator", allocator]
                options += ["--rounds", str(rounds), "--threads", str(threads), *(["--quick"] if quick else [])]
                rows = in_processes(processes, options)
            else:
                rows = run_case(name, kind, dtype, 3 if quick else rounds, 0 if quick else 6, not quick)
                rows = [{**row, "allocator": allocator, **provenance()} for row in rows]
            update_csv(out / "fista.csv", rows)
            show(f"{name}, {kind}, {dtype}", rows)


if __name__ == "__main__":
    typer.run(main)
