"""Impulse noise taken off a photograph by three data terms: python examples/impulse_noise.py [--amount 0.1].

Squared, as in every CSC layer; Huber's, which limits how hard an outlier pulls; and squared with a mask over the
pixels that were hit, for those who know which. Each at the best of some lmbdas, in PSNR against the clean picture.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.ndimage import median_filter
from sdnet.demo import HELD_OUT, Settings, learn, progress_bar
from sdnet.pictures import low_pass, photographs, psnr
from torch import Tensor

LMBDAS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


def main(
    amount: Annotated[float, typer.Option(help="Share of the numbers that become 0 or 1.", min=0, max=1)] = 0.1,
    huber: Annotated[float, typer.Option(help="Where the loss becomes linear, in units of a pixel.")] = 0.05,
    iterations: Annotated[int, typer.Option(help="FISTA iterations.", min=1)] = 60,
    steps: Annotated[int, typer.Option(help="Steps of Adam for the dictionary.", min=0)] = 120,
) -> None:
    """Learn a dictionary from five photographs, and restore a sixth."""
    console, generator = Console(), torch.Generator().manual_seed(0)
    pictures = photographs((192, 256))
    truth = pictures.pop(HELD_OUT)
    hit = torch.rand(truth.shape, generator=generator) < amount
    noisy = torch.where(hit, (torch.rand(truth.shape, generator=generator) < 0.5).to(truth), truth)
    # The low frequencies are not coded (see the demo); outliers must not reach them either.
    median = torch.from_numpy(median_filter(noisy.numpy(), (1, 1, 3, 3)))
    low = low_pass(median)

    with progress_bar(console) as progress:
        layer = learn(torch.cat([x - low_pass(x) for x in pictures.values()]), Settings(steps=steps), progress)
        layer.n_iter = iterations

        def best(mask: Tensor | None = None) -> tuple[float, float]:
            found = []
            for lmbda in progress.track(LMBDAS, description="restoring"):
                layer.lmbda = lmbda
                found.append((psnr((low + layer.reconstruct(layer(noisy - low, mask))).clamp(0, 1), truth), lmbda))
            return max(found)

        with torch.no_grad():
            results = {"squared": best(), "squared, known mask": best(~hit)}
            layer.huber = huber
            results[f"Huber, {huber:g}"] = best()

    table = Table("data term", "best lmbda", "PSNR", title=f"{HELD_OUT}, {amount:.0%} impulse noise")
    table.add_row("none: the noisy picture", "", f"{psnr(noisy, truth):.1f} dB")
    table.add_row("none: 3x3 median", "", f"{psnr(median, truth):.1f} dB")
    for name, (decibel, lmbda) in results.items():
        table.add_row(name, f"{lmbda:g}", f"{decibel:.1f} dB")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
