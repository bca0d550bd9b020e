"""What does dropping dead work give, and what does each kernel give? Writes ablation.csv.

Contenders that answer it by their ratios: `published` does everything that the published layer does, `cleaned` only
what the code needs, both in PyTorch; csc.fista then computes the same with each backend, and natively with direct
products alone, without Winograd's in wide layers and without pairs of rows and tiles in stems.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from cases import CASES, LAYOUTS, MODES, contender
from harness import Contender, choose_allocator, interleave, provenance, show, update_csv

import csc_kernels as csc
from csc_kernels.native import use_path

ABLATED = (
    "CIFAR stem 3->64, 32x32, k3, batch 64",
    "ImageNet stem 3->64, 224, k7 s2, batch 8",
    "64->64, 32x32, batch 64",
    "256->256, 8x8, batch 64",
)


def with_backend(backend: str, case: str, layout: str, mode: str) -> Contender:
    """csc.fista served by one backend."""
    one = contender("csc.fista", CASES[case], layout, mode, torch.float32)
    serve = one.call

    def call() -> object:
        with csc.use_backend(backend):
            return serve()

    one.call = call
    one.backend = backend
    return one


def with_direct_products(case: str, layout: str, mode: str) -> Contender:
    """csc.fista served natively, every product computed."""
    one = with_backend("native", case, layout, mode)
    serve = one.call

    def call() -> object:
        with use_path("direct"):
            return serve()

    one.call = call
    one.backend = "native direct"
    return one


def main(
    rounds: Annotated[int, typer.Option(min=2, help="At least so many rounds.")] = 7,
    quick: Annotated[bool, typer.Option(help="Three rounds, stems only.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    allocator: Annotated[str, typer.Option(help="keep or system, see harness.choose_allocator.")] = "keep",
    out: Annotated[Path, typer.Option(help="Folder for ablation.csv.")] = Path("bench/results"),
) -> None:
    """Separate dropped dead work from faster kernels."""
    torch.set_num_threads(threads)
    choose_allocator(allocator)
    for case in ABLATED[:2] if quick else ABLATED:
        for mode in MODES:
            contenders = []
            for layout in LAYOUTS:
                contenders += [
                    contender(name, CASES[case], layout, mode, torch.float32) for name in ("published", "cleaned")
                ]
                contenders += [with_backend(name, case, layout, mode) for name in csc.available_backends()]
                contenders.append(with_direct_products(case, layout, mode))
            title = f"{case}, {mode}"
            interleave(contenders, title, rounds=3 if quick else rounds, seconds=0 if quick else 3)
            facts = {"case": case, "mode": mode, "dtype": "float32", "allocator": allocator, **provenance()}
            rows = [{**facts, **one.row()} for one in contenders]
            update_csv(out / "ablation.csv", rows)
            show(title, rows)


if __name__ == "__main__":
    typer.run(main)
