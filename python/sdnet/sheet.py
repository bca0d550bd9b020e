"""The demo's picture sheet, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from .pictures import psnr

if TYPE_CHECKING:
    import csc_kernels as csc

    from .demo import Coded

MAPS = 12


def draw_sheet(path: Path, layer: csc.CSCConv2d, coded: list[Coded], denoised: list[Coded]) -> None:
    """Inputs and reconstructions, atoms, code maps, and the noisy picture at rising lmbda, as one PNG."""
    figure = Figure(figsize=(16, 17), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(hspace=0.04, wspace=0.01)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[4.7, 5.8, 6.8], hspace=0.03)
    draw_pictures(top, coded)
    left, right = middle.subfigures(1, 2, width_ratios=[1, 1.9])
    dictionary = layer.dictionary().detach()
    draw_atoms(left, dictionary)
    draw_maps(right, dictionary, next(item for item in coded if item.name == denoised[0].name))
    draw_denoising(bottom, denoised)
    figure.savefig(path, dpi=100)


def draw_pictures(figure: SubFigure, coded: list[Coded]) -> None:
    figure.suptitle("Photographs, and what their sparse codes give back", fontsize=14)
    axes = figure.subplots(2, len(coded))
    for (above, below), item in zip(axes.T, coded):
        show(above, item.truth, item.name)
        show(below, item.reconstruction, f"{item.psnr:.1f} dB, {item.nonzero:.1%} nonzero")


def draw_atoms(figure: SubFigure, dictionary: Tensor) -> None:
    figure.suptitle(f"The {len(dictionary)} atoms", fontsize=14)
    axes = figure.subplots()
    axes.imshow(mosaic(dictionary).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.axis("off")


def mosaic(dictionary: Tensor, columns: int = 8) -> Tensor:
    """Atoms (K, 3, kH, kW) side by side, zero as grey: (3, rows, columns)."""
    count, channels, height, width = dictionary.shape
    largest = dictionary.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    tiles = 0.5 + 0.5 * dictionary / largest
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + 1) + 1, columns * (width + 1) + 1)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        sheet[:, top : top + height, left : left + width] = tile
    return sheet


def draw_maps(figure: SubFigure, dictionary: Tensor, item: Coded) -> None:
    """The code maps with most in them, each with its atom in the corner."""
    figure.suptitle(f"{item.name}: where {MAPS} of its most used atoms are (red +, blue -)", fontsize=14)
    code = item.code[0]
    chosen = unlike(dictionary, code.abs().sum(dim=(1, 2)).argsort(descending=True).tolist())
    largest = code[chosen].abs().flatten(1).quantile(0.99, dim=1).max().item() or 1.0
    for axes, atom in zip(figure.subplots(3, MAPS // 3).flat, chosen):
        axes.imshow(code[atom].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_title(f"{(code[atom] != 0).float().mean():.1%} nonzero", fontsize=10)
        frame(axes)
        corner = axes.inset_axes([0.0, 0.0, 0.21, 0.28])
        tile = mosaic(dictionary[atom : atom + 1], 1)
        corner.imshow(tile.permute(1, 2, 0).numpy(), interpolation="nearest")
        frame(corner)


def unlike(dictionary: Tensor, candidates: list[int]) -> list[int]:
    """The first MAPS candidates that look different: those alike come last."""
    atoms = dictionary.flatten(1)
    chosen: list[int] = []
    alike: list[int] = []
    for atom in candidates:
        similar = chosen and (atoms[chosen] @ atoms[atom]).abs().max() > 0.7
        (alike if similar else chosen).append(atom)
    return (chosen + alike)[:MAPS]


def draw_denoising(figure: SubFigure, denoised: list[Coded]) -> None:
    first, best = denoised[0], max(denoised, key=lambda item: item.psnr)
    noisy = psnr(first.given, first.truth)
    figure.suptitle(
        f"{first.name} with noise, and what its code gives back at rising lmbda "
        "(the dictionary comes from the other pictures)",
        fontsize=14,
    )
    axes = figure.subplots(2, -(-(len(denoised) + 2) // 2)).flat
    show(next(axes), first.given, f"noisy, {noisy:.1f} dB")
    for item in denoised:
        panel = next(axes)
        show(panel, item.reconstruction, f"lmbda {item.lmbda:g}: {item.psnr:.1f} dB")
        if item is best:
            panel.title.set_fontweight("bold")
    curve = next(axes)
    lmbdas = [item.lmbda for item in denoised]
    curve.plot(lmbdas, [item.psnr for item in denoised], "o-")
    curve.axhline(noisy, color="grey", linestyle=":")
    curve.text(lmbdas[0], noisy, "noisy", color="grey", verticalalignment="bottom")
    curve.set(xscale="log", xlabel="lmbda", ylabel="PSNR (dB)")
    curve.set_xticks(lmbdas, [f"{lmbda:g}" for lmbda in lmbdas])
    curve.minorticks_off()


def show(axes: Axes, image: Tensor, title: str) -> None:
    axes.imshow(image[0].permute(1, 2, 0).clamp(0, 1).numpy())
    axes.set_title(title, fontsize=11)
    axes.axis("off")


def frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
