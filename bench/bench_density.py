"""How sparse are the codes that a trained network synthesises from? Writes density.csv.

A product with zero changes nothing, so that a synthesis could skip the zeros of its code. What there is to skip
depends on how many there are and on how they lie: a direct convolution can skip a zero, Winograd's a 4 x 4 tile of
zeros, and its kernel, which loads a weight once for six tiles, six such tiles in a row.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import torch
import typer
from harness import console, progress_bar, provenance
from sdnet.models import sdnet18_all
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import csc_kernels as csc

TILES_AT_A_TIME = 6  # kTileBlock of csrc/cpu/winograd_kernels.h.


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits, (1797, 3, 16, 16) with mean 0 and variance 1, and their labels."""
    data = load_digits()
    x = torch.from_numpy(data.images).float().unsqueeze(1)
    x = F.interpolate((x - x.mean()) / x.std(), scale_factor=2.0, mode="bilinear").expand(-1, 3, -1, -1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order].contiguous(memory_format=torch.channels_last), torch.from_numpy(data.target)[order]


def train(model: nn.Module, x: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    with progress_bar() as progress:
        for step in progress.track(range(steps), description="training"):
            batch = torch.arange(64 * step, 64 * (step + 1)) % len(x)
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


def densities(code: Tensor) -> dict[str, float]:
    """The share of nonzero entries, of nonzero 4 x 4 tiles two apart, and of runs of such tiles."""
    nonzero = (code != 0).float()
    tiles = F.max_pool2d(F.pad(nonzero, (1, 2, 1, 2)), 4, stride=2)
    row = tiles.permute(1, 0, 2, 3).flatten(1)  # One atom's tiles in the kernel's order.
    row = row[:, : row.shape[1] // TILES_AT_A_TIME * TILES_AT_A_TIME]
    runs = row.unflatten(1, (-1, TILES_AT_A_TIME)).amax(2)
    return {name: float(t.mean()) for name, t in (("entries", nonzero), ("tiles", tiles), ("runs", runs))}


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, batch 64.")] = 100,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option(help="Folder for density.csv.")] = Path("bench/results"),
) -> None:
    """Train SDNet-18-all on digits and look at the codes of every layer's first step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, labels = digits()
    model = sdnet18_all().to(memory_format=torch.channels_last)
    train(model, x[:1500], labels[:1500], steps)
    model.eval()

    rows: list[dict[str, object]] = []

    def look(name: str, layer: csc.CSCConv2d, inputs: tuple[Tensor, ...]) -> None:
        first, layer.n_iter = layer.n_iter, 1
        try:
            code = layer.forward(*inputs)
        finally:
            layer.n_iter = first
        rows.append({"layer": name, "atoms": layer.out_channels, "size": code.shape[-1], **densities(code)})

    for name, layer in model.named_modules():
        if isinstance(layer, csc.CSCConv2d):
            layer.register_forward_pre_hook(lambda layer, inputs, name=name: look(name, layer, inputs))
    with torch.no_grad():
        accuracy = float((model(x[1500:]).argmax(1) == labels[1500:]).float().mean())
    out.mkdir(parents=True, exist_ok=True)
    with (out / "density.csv").open("w", newline="") as file:
        facts = {"accuracy": round(accuracy, 4), "steps": steps, **provenance()}
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
    console.print(f"accuracy {accuracy:.3f}")
    for row in rows:
        shares = "  ".join(f"{name} {row[name]:.2f}" for name in ("entries", "tiles", "runs"))
        console.print(f"{row['layer']:32} {shares}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
