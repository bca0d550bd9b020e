"""One HTML file that holds its pictures and opens without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..files import files_written_aside, written_aside
from ..models import ResNet
from ..models.modes import evaluating
from ..training.statistics import csc_layers
from .figures import dictionary_figure, inversion_figure, sparsity_figure, statistics_rows
from .inversion import invertible_layers

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;"
    "text-align:right}td:first-child,th:first-child{text-align:left}"
)


def write_report(path: Path, model: nn.Module, pictures: Tensor, title: str, figures: Path | None = None) -> None:
    """Dictionary, sparsity, numbers per layer and inversions of a model, on pictures (N, C, H, W) in [0, 1].

    Args:
        figures: a folder for the page's figures as PNG files too.

    Raises:
        ValueError: the model has no sparse coding layer.
        UserError: a file cannot be written.
    """
    if not csc_layers(model):
        raise ValueError(f"{title} has no sparse coding layer to show")
    with evaluating(model):
        drawn = layer_figures(model, pictures)
        sections = _sections(drawn, model, pictures)
    write_sections(path, title, sections)
    if figures is not None:
        with files_written_aside(figures) as aside:
            for heading, figure in drawn.items():
                figure.savefig(aside / f"{heading.lower().replace(' ', '_')}.png", dpi=110)


@torch.no_grad()
def layer_figures(model: nn.Module, pictures: Tensor) -> dict[str, Figure]:
    """Figures of the sparse coding layers by their heading."""
    figures = {
        "Dictionary and most active atoms": dictionary_figure(model, pictures),
        "Sparsity": sparsity_figure(model, pictures),
    }
    layers = invertible_layers(model) if isinstance(getattr(model, "network", model), ResNet) else []
    if layers:
        figures["What the codes describe"] = inversion_figure(model, pictures, layers)
    return figures


def layer_sections(model: nn.Module, pictures: Tensor) -> list[str]:
    """What `write_report` shows of the sparse coding layers."""
    with evaluating(model):
        return _sections(layer_figures(model, pictures), model, pictures)


def _sections(figures: Mapping[str, Figure], model: nn.Module, pictures: Tensor) -> list[str]:
    numbers = section("Layers", table(statistics_rows(model, pictures)))
    return [*(section(heading, picture(figure)) for heading, figure in figures.items()), numbers]


def write_sections(path: Path, title: str, parts: Sequence[str]) -> None:
    """A page of sections, whole or not at all."""
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>"
    )
    with written_aside(path) as aside:
        aside.write_text(page, encoding="utf-8")


def section(heading: str, content: str) -> str:
    return f"<h2>{html.escape(heading)}</h2>{content}"


def picture(figure: Figure) -> str:
    """A figure as an <img> that carries its PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    def cell(value: float | str) -> str:
        return f"<td>{html.escape(value) if isinstance(value, str) else f'{value:.4g}'}</td>"

    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(cell(value) for value in row.values())}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
