"""sdnet report: one self-contained HTML page about a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..pretrained import load_model
from ..reading.report import layer_sections, picture, section, table, write_sections
from ..training.statistics import csc_layers
from .certified import certified_radii, lipschitz_bound, verdict
from .commands import fixed, test_pictures
from .curves import claims, curve_figure
from .curves import table_rows as noise_rows
from .evaluation import interval
from .evaluation import table_rows as attack_rows
from .sweep import correct
from .table import Row, fingerprint, latest, read

SHOWN = 8


def write_page(out: Path, name: str, results: Path | None, data: str, root: Path | None, count: int) -> None:
    """Clean accuracy, certified radius, the noise grid and attacks of a folder of results, atoms and inversion.

    Raises:
        UserError: there is no such model or data, or the file cannot be written.
    """
    model = load_model(name)
    labelled = test_pictures([model], data, root, count)
    title = Path(name).name
    parts = [section("Clean accuracy", _clean(model, labelled))]
    if results is not None:
        weights = fingerprint(fixed(model))
        parts += _noise(results, title, weights) + _attacks(results, title, weights)
    parts.append(section("Certified radius", f"<p>{_certified(model, labelled)}</p>"))
    if csc_layers(model):
        parts += layer_sections(fixed(model), labelled.pictures[:SHOWN] / 255)
    write_sections(out, title, parts)


def _clean(model, labelled) -> str:
    share = correct(model, labelled).float().mean().item()
    low, high = interval(share, len(labelled))
    return (
        f"<p>{share:.1%} of {len(labelled)} test pictures are classified right "
        f"(95 % interval {low:.1%} to {high:.1%}).</p>"
    )


def _certified(model, labelled) -> str:
    plain = fixed(model)
    try:
        bound = lipschitz_bound(plain, tuple(labelled.pictures.shape[-2:]))
    except ValueError as error:
        return str(error)
    few = labelled.pictures[:200] / 255, labelled.labels[:200]
    with torch.no_grad():
        return verdict(certified_radii(plain, *few), bound)


def _own(rows: Sequence[Row], title: str, weights: str) -> list[Row]:
    """A model's rows, where those of the network as it is have these weights; raised lmbda have others."""
    mine = [row for row in rows if row["model"] == title]
    plain = [row for row in mine if row["defence"] in ("training lmbda", "none")]
    return mine if any(row["weights"] == weights for row in plain) else []


def _noise(results: Path, title: str, weights: str) -> list[str]:
    rows = latest(read(results / "sweep.csv"))
    if not any(row["model"] == title and row["weights"] == weights for row in rows):
        return []
    said = "".join(f"<li>{sentence}</li>" for sentence in claims(rows, title))
    shown = picture(curve_figure(rows, title)) + table(noise_rows(rows, title)) + f"<ul>{said}</ul>"
    return [section("Noise", shown)]


def _attacks(results: Path, title: str, weights: str) -> list[str]:
    rows, checks = (_own(latest(read(results / file)), title, weights) for file in ("attack.csv", "checks.csv"))
    checks = [row for row in checks if row["seen"]]
    parts = []
    if rows:
        parts.append(section("Attacks: accuracy in %", table(attack_rows(rows))))
    if checks:
        shown = [{name: row[name] for name in ("defence", "check", "seen", "passed")} for row in checks]
        parts.append(section("Checks of the attacks", table(shown)))
    return parts
