"""Times contenders side by side, and keeps the numbers with the facts that they depend on."""

from __future__ import annotations

import csv
import ctypes
import datetime
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import csc_kernels as csc
from csc_kernels.doctor import cpu_name as processor_name

# A CSV file holds one row per contender. Rows that share their group were taken in one interleaved run, and
# only those are ever compared.
GROUP = ("case", "mode", "dtype", "threads", "allocator")
COLUMNS = (
    *GROUP, "contender", "layout", "p20_ms", "p50_ms", "p80_ms", "rounds", "peak_bytes", "backend", "cpu",
    "torch", "csc_kernels", "date",
)  # fmt: skip

console = Console()


def nothing() -> None:
    """Before a call that needs no preparation."""


@dataclass
class Contender:
    """One way to do the work: `call` is timed, `before` runs ahead of every call, untimed."""

    name: str
    layout: str
    call: Callable[[], object]
    before: Callable[[], object] = nothing
    backend: str = "torch"
    peak_bytes: int | str = ""
    times: list[float] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        """This contender's part of a CSV row."""
        times = 1e3 * torch.tensor(self.times, dtype=torch.float64)
        quantiles = {f"p{q}_ms": round(float(times.quantile(q / 100)), 4) for q in (20, 50, 80)}
        return {
            "contender": self.name,
            "layout": self.layout,
            **quantiles,
            "rounds": len(self.times),
            "peak_bytes": self.peak_bytes,
            "backend": self.backend,
        }


def choose_allocator(name: str) -> None:
    """ "keep": memory that was freed stays with the process, as in PyTorch's CUDA allocator or tcmalloc.

    "system" leaves glibc as it is. It gives large tensors back to the kernel and faults them in again, at a
    cost above the layer's own, on some calls and not on others as the heap of the whole process happens to
    lie. Keeping is the careful choice here: it helps those most who allocate most.
    """
    if name == "system" or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def interleave(
    contenders: Sequence[Contender],
    title: str,
    *,
    rounds: int = 7,
    seconds: float = 6.0,
    warm_up: int = 2,
) -> None:
    """One call per contender and round, so that a busy machine slows all of them alike.

    The order is drawn anew for every round. Before the first each contender has `warm_up` untimed calls.
    There are at least `rounds` rounds, and up to 50 until `seconds` are spent.
    """
    order = random.Random(0)
    with progress_bar() as progress:
        task = progress.add_task(f"{title}: warm-up", total=len(contenders) * warm_up)
        for contender in contenders:
            for _ in range(warm_up):
                contender.before()
                contender.call()
                progress.advance(task)
        progress.reset(task, description=title, total=rounds)
        start = time.perf_counter()
        done = 0
        while done < rounds or (done < 50 and time.perf_counter() - start < seconds):
            for contender in order.sample(contenders, len(contenders)):
                contender.before()
                begin = time.perf_counter()
                contender.call()
                contender.times.append(time.perf_counter() - begin)
            done += 1
            progress.update(task, completed=done, total=max(rounds, done))


def cpu_name() -> str:
    """The processor's name, the best instruction set of it that the kernels use, and this process' cores."""
    isa = f" ({csc.native.build_info()['isa_available'][0]})" if "native" in csc.available_backends() else ""
    return f"{processor_name()}{isa}, {len(os.sched_getaffinity(0))} cores"


def backend_name() -> str:
    """The backend that csc_kernels prefers here, and its instruction set where it has a choice."""
    name = csc.available_backends()[0]
    return f"{name} {torch.ops.csc_native.isa()}" if name == "native" else name


def provenance() -> dict[str, object]:
    """The columns that say where a number comes from."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "csc_kernels": csc.__version__,
        "date": datetime.date.today().isoformat(),
    }


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """The medians of one run, the fastest first."""
    console.print(f"[bold]{title}[/] (ms)", highlight=False)
    named = [
        (float(str(row["p50_ms"])), f"{row['contender']} {row['layout']} [dim]{row['backend']}[/]") for row in rows
    ]
    for milliseconds, name in sorted(named):
        console.print(f"  {milliseconds:9.2f}  {name}", highlight=False)


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def middle_rows(rows: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """Of rows that several processes measured, those with the median time of each contender, and all its rounds."""
    names = [*GROUP, "contender", "layout"]
    measured: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        measured.setdefault(tuple(row[name] for name in names), []).append(row)
    found: list[dict[str, object]] = []
    for group in measured.values():
        ordered = sorted(group, key=lambda row: float(row["p50_ms"]))
        rounds = sum(int(row["rounds"]) for row in group)
        found.append({**ordered[(len(ordered) - 1) // 2], "rounds": rounds})
    return found


def update_csv(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str] = COLUMNS) -> None:
    """Put whole groups of rows into the file in place of their last measurement."""
    new = [{name: str(row.get(name, "")) for name in columns} for row in rows]
    measured = {tuple(row[name] for name in GROUP) for row in new}
    kept = [row for row in read_csv(path) if tuple(row[name] for name in GROUP) not in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(kept + new)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
