"""The demo: learns a dictionary from photographs, codes them, takes noise off one, and times the layer."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import csc_kernels as csc

from .pictures import low_pass, photographs, psnr, random_crops, written_aside
from .race import Race, run_races
from .sheet import draw_sheet

ATOMS, KERNEL = 64, 7
# Not among the photographs that the dictionary is learned from.
HELD_OUT = "astronaut"
NOISE = 0.1
# lmbda of the denoised pictures, in multiples of the one given.
RISING = (0.25, 0.5, 1.0, 1.5, 3.0, 6.0)


@dataclass(frozen=True)
class Settings:
    """What the command line chooses. `quick` is for tests: small pictures, no torch.compile."""

    lmbda: float = 0.1
    iterations: int = 40
    steps: int = 120
    seed: int = 0
    quick: bool = False


@dataclass
class Coded:
    """A picture, what was coded, and what the code gives back."""

    name: str
    lmbda: float
    truth: Tensor
    given: Tensor  # the truth, or the truth with noise
    code: Tensor
    reconstruction: Tensor
    milliseconds: float

    @property
    def nonzero(self) -> float:
        """Share of the coefficients that are not zero."""
        return (self.code != 0).float().mean().item()

    @property
    def psnr(self) -> float:
        return psnr(self.reconstruction, self.truth)


def learn(images: Tensor, settings: Settings, progress: Progress) -> csc.CSCConv2d:
    """A dictionary for the images (N, 3, H, W), by gradient descent through the sparse code.

    Minimises 1/2 ||x - A z(x)||^2 + lmbda ||z(x)||_1 over the atoms with Adam, on random crops; the first
    atoms are patches of the images.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    layer = csc.CSCConv2d(
        images.shape[1], ATOMS, KERNEL, padding=KERNEL // 2, lmbda=settings.lmbda, n_iter=8, nonneg=False
    )
    with torch.no_grad():
        layer.weight.copy_(random_crops(images, ATOMS, KERNEL, generator))
        layer.weight.copy_(layer.dictionary())
    rate, count = 0.03, 8
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    task = progress.add_task("learning the dictionary", total=settings.steps)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / settings.steps))
        x = random_crops(images, count, 32, generator)
        z = layer(x)
        r = csc.residual(x, z, layer.dictionary(), padding=layer.padding)
        loss = (0.5 * r.square().sum() + settings.lmbda * z.abs().sum()) / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.update(task, advance=1, description=f"learning the dictionary, loss {loss.item():.2f}")
    return layer.eval()


@torch.no_grad()
def code(layer: csc.CSCConv2d, name: str, truth: Tensor, given: Tensor) -> Coded:
    """Code a picture (1, 3, H, W) without its low frequencies, and put it together again."""
    low = low_pass(given)
    start = time.perf_counter()
    z = layer(given - low)
    taken = 1e3 * (time.perf_counter() - start)
    reconstruction = (low + layer.reconstruct(z)).clamp(0, 1)
    return Coded(name, float(layer.lmbda), truth, given, z, reconstruction, taken)


def run(out: Path, settings: Settings, console: Console) -> None:
    """Everything; writes sheet.png and results.csv into the folder `out` when all is done."""
    pictures = photographs((64, 80) if settings.quick else (192, 256))
    console.print(
        f"csc_kernels {csc.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"backend {csc.available_backends()[0]}"
    )
    with progress_bar(console) as progress:
        seen = torch.cat([x - low_pass(x) for name, x in pictures.items() if name != HELD_OUT])
        layer = learn(seen, settings, progress)

        layer.n_iter = settings.iterations
        coded = []
        for name, x in progress.track(pictures.items(), description="coding the photographs"):
            coded.append(code(layer, name, x, x))

        truth = pictures[HELD_OUT]
        generator = torch.Generator().manual_seed(settings.seed + 1)
        noisy = truth + NOISE * torch.randn(truth.shape, generator=generator)
        denoised = []
        for factor in progress.track(RISING, description="taking noise off"):
            csc.set_lmbda(layer, factor * settings.lmbda)
            denoised.append(code(layer, HELD_OUT, truth, noisy))
        csc.set_lmbda(layer, settings.lmbda)

        races = run_races(layer, truth, progress, quick=settings.quick)

    console.print(picture_table(coded, settings), denoising_table(denoised), *map(race_table, races))
    with written_aside(out / "sheet.png", out / "results.csv") as (sheet, results):
        draw_sheet(sheet, layer, coded, denoised)
        write_rows(results, rows(coded, denoised, races))
    console.print(f"written: {out / 'sheet.png'}, {out / 'results.csv'}")


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


# What was found, for people and as CSV.


def picture_table(coded: Iterable[Coded], settings: Settings) -> Table:
    table = Table(title=f"photographs, lmbda {settings.lmbda:g}, {settings.iterations} iterations")
    for heading in ("picture", "nonzero coefficients", "per pixel", "PSNR", "time"):
        table.add_column(heading, justify="left" if heading == "picture" else "right")
    for item in coded:
        per_pixel = item.nonzero * item.code.shape[1]
        held_out = " (held out)" if item.name == HELD_OUT else ""
        table.add_row(
            item.name + held_out, f"{item.nonzero:.2%}", f"{per_pixel:.2f}", f"{item.psnr:.1f} dB",
            f"{item.milliseconds:.0f} ms",
        )  # fmt: skip
    return table


def denoising_table(denoised: list[Coded]) -> Table:
    before = psnr(denoised[0].given, denoised[0].truth)
    best = max(denoised, key=lambda item: item.psnr)
    table = Table(title=f"{HELD_OUT} with noise of deviation {NOISE:g}: {before:.1f} dB")
    for heading in ("lmbda", "nonzero coefficients", "PSNR"):
        table.add_column(heading, justify="right")
    for item in denoised:
        style = "bold" if item is best else None
        table.add_row(f"{item.lmbda:g}", f"{item.nonzero:.2%}", f"{item.psnr:.1f} dB", style=style)
    return table


def race_table(race: Race) -> Table:
    table = Table(title=f"speed: {race.case}")
    for heading in ("contender", "layout", "median", "against csc_kernels"):
        table.add_column(heading, justify="left" if heading in ("contender", "layout") else "right")
    for entry in race.entries:
        ratio = f"{entry.milliseconds / race.own.milliseconds:.2f}x"
        table.add_row(entry.name, entry.layout, f"{entry.milliseconds:.2f} ms", ratio)
    table.caption = race.note
    return table


COLUMNS = (
    "table", "case", "contender", "layout", "lmbda", "nonzero", "psnr_db", "ms", "backend", "threads",
    "torch", "csc_kernels", "date",
)  # fmt: skip


def rows(coded: Iterable[Coded], denoised: Iterable[Coded], races: Iterable[Race]) -> Iterable[dict[str, object]]:
    for table, items in (("code", coded), ("denoise", denoised)):
        for item in items:
            yield {
                "table": table,
                "case": item.name,
                "contender": "csc_kernels",
                "lmbda": f"{item.lmbda:g}",
                "nonzero": f"{item.nonzero:.6f}",
                "psnr_db": f"{item.psnr:.3f}",
                "ms": f"{item.milliseconds:.3f}",
            }
    for race in races:
        for entry in race.entries:
            yield {
                "table": "speed",
                "case": race.case,
                "contender": entry.name,
                "layout": entry.layout,
                "ms": f"{entry.milliseconds:.4f}",
            }


def write_rows(path: Path, found: Iterable[Mapping[str, object]]) -> None:
    same = {
        "backend": csc.available_backends()[0],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "csc_kernels": csc.__version__,
        "date": date.today().isoformat(),
    }
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({**same, **row} for row in found)
