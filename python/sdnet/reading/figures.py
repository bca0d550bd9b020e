"""Figures of a network: what its layers' codes describe, its dictionary, and how sparse its codes are."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..sheet import mosaic
from ..training.statistics import code_statistics, csc_layers, recorded_codes
from .inversion import invert

matplotlib.use("Agg")
MOST_ACTIVE = 8


def inversion_figure(model: nn.Module, pictures: Tensor, layers: list[str]) -> Figure:
    """A row of the given pictures, and one for each layer of what its codes describe.

    Every picture's histogram is equalised, channel by channel, as deep layers keep shapes and lose contrast.
    """
    rows = {"given": pictures, **{name: equalised(invert(model, pictures, name)) for name in layers}}
    figure = Figure(figsize=(1.1 * len(pictures) + 2.2, 1.1 * len(rows)), layout="constrained")
    for row, (name, shown) in zip(figure.subplots(len(rows), len(pictures), squeeze=False), rows.items()):
        for axes, picture in zip(row, shown):
            show(axes, picture)
        row[0].set_ylabel(name.replace(".dn", "").replace(".layers", ""), rotation=0, ha="right", va="center")
    return figure


def equalised(pictures: Tensor) -> Tensor:
    """Each pixel's rank among those of its channel and picture, over [0, 1]."""
    flat = pictures.flatten(2)
    ranks = flat.argsort(-1).argsort(-1)
    return (ranks / max(1, flat.shape[-1] - 1)).view_as(pictures)


def show(axes, picture: Tensor) -> None:
    axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def dictionary_figure(model: nn.Module, pictures: Tensor) -> Figure:
    """The atoms of the first layer, and the maps of those that are most active on the first pictures."""
    name, layer = next(iter(csc_layers(model).items()))
    codes = _codes(model, pictures)[name]
    atoms = layer.dictionary().detach().cpu()
    energy = codes.square().sum((0, 2, 3))
    order = energy.argsort(descending=True)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.6))
    axes = left.subplots()
    show(axes, mosaic(atoms[order.cpu()], columns=max(4, round(len(atoms) ** 0.5))))
    axes.set_title(f"{len(atoms)} atoms of {name}, most active first", fontsize=10)
    rows = min(3, len(pictures))
    for i, row in enumerate(right.subplots(rows, MOST_ACTIVE // 2 + 1, squeeze=False)):
        show(row[0], pictures[i])
        for axes, atom in zip(row[1:], order):
            axes.imshow(codes[i, atom].cpu().numpy(), cmap="magma")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"atom {int(atom)}", fontsize=8)
    return figure


def sparsity_figure(model: nn.Module, pictures: Tensor) -> Figure:
    """Histograms of the nonzero coefficients, and the share of zeros, per layer."""
    codes = _codes(model, pictures)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, code in codes.items():
        values = code[code != 0].float().cpu().numpy()
        left.hist(values, bins=60, histtype="step", density=True, label=_short(name))
    left.set(yscale="log", xlabel="coefficient, where not zero", ylabel="density")
    if len(codes) <= 8:
        left.legend(fontsize=7)
    shares = [(code == 0).float().mean().item() for code in codes.values()]
    right.bar(range(len(shares)), shares)
    right.set_xticks(range(len(shares)), [_short(name) for name in codes], rotation=90, fontsize=7)
    right.set(ylabel="share of zeros", ylim=(0, 1))
    return figure


def statistics_rows(model: nn.Module, pictures: Tensor) -> list[Mapping[str, float | str]]:
    """One row of numbers per layer that has a part in the forward."""
    rows: dict[str, dict[str, float | str]] = {}
    for title, number in code_statistics(model, pictures).items():
        kind, _, name = title.partition("/")
        rows.setdefault(name, {"layer": name})[kind] = number
    return list(rows.values())


@torch.no_grad()
def _codes(model: nn.Module, pictures: Tensor) -> dict[str, Tensor]:
    with recorded_codes(model) as found:
        model(pictures)
    return {name: code for name, (_, code) in found.items()}


def _short(name: str) -> str:
    return name.replace("network.", "").replace(".layers", "").replace(".dn", "")
