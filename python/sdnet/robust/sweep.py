"""Accuracy over lmbda, noise and its strength.

A cell is one model at one lmbda on the pictures with one noise of one strength. Noisy pictures are made once for
all lmbda of all models. Nothing else could be shared: lmbda acts in the first layer, before all the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.modes import evaluating
from .corruptions import SCAN, cifar10c, corrupt, noise_constant
from .pictures import Labelled, batches, spread_numbers
from .stem import check_lmbda, own_lmbda, stem_lmbda
from .table import Row, Table, fingerprint

LMBDAS = tuple(round(0.1 * i, 1) for i in range(1, 15))
KEYS = ("model", "weights", "corruption", "severity", "constant", "lmbda", "pictures", "data", "source")
VALUES = ("correct", "accuracy", "images_per_second")


@dataclass(frozen=True)
class Strength:
    """A corruption at a severity of 1 to 5, or a noise with a constant of its own; "clean" has neither."""

    corruption: str
    severity: int | None = None
    constant: float | None = None

    def __str__(self) -> str:
        return f"{self.corruption} {self.severity or self.constant or ''}".strip()


CLEAN = Strength("clean")


def grid(corruptions: Sequence[str], severities: Sequence[int], scan: bool) -> list[Strength]:
    """Clean pictures, each corruption at each severity, and the stronger levels of the published scan."""
    wanted = [CLEAN]
    for corruption in corruptions:
        for severity in severities:
            constant = noise_constant(corruption, severity) if corruption in SCAN else None
            wanted.append(Strength(corruption, severity, constant))
        if scan:
            known = {strength.constant for strength in wanted if strength.corruption == corruption}
            wanted += [Strength(corruption, None, c) for c in SCAN.get(corruption, ()) if c not in known]
    return wanted


def source_of(strength: Strength, seed: int, published: Path | None) -> str:
    """Where the pictures of a strength are from."""
    if strength == CLEAN:
        return "clean"
    return "CIFAR-10-C files" if published and strength.severity else f"regenerated, seed {seed}"


def corrupted(clean: Labelled, strength: Strength, seed: int, published: Path | None = None) -> Labelled:
    """The pictures of a strength: made here, or read from CIFAR-10-C's files where they have it.

    The files are in CIFAR-10's own order of test pictures, which data from a folder need not have: their pictures
    come with their own labels, as many at even distances as there are clean ones.
    """
    if strength == CLEAN:
        return clean
    if published is not None and strength.severity is not None:
        pictures, labels = cifar10c(published, strength.corruption, strength.severity)
        chosen = torch.from_numpy(spread_numbers(len(labels), len(clean)))
        return Labelled(pictures[chosen], labels[chosen])
    severity = strength.severity if strength.constant is None else None
    made = corrupt(clean.pictures, strength.corruption, severity, constant=strength.constant, seed=seed)
    return Labelled(made, clean.labels)


def lmbdas_of(model: nn.Module, lmbdas: Sequence[float]) -> list[tuple[str, float | None]]:
    """How the cells of a model are called, and their lmbda; its own is among them, where that is a number.

    An automatic model and a ResNet have one cell.
    """
    if hasattr(model, "method"):
        return [(f"automatic, {model.method}", None)]
    try:
        own = own_lmbda(model)
    except ValueError:
        return [("none", None)]
    for lmbda in lmbdas:
        check_lmbda(lmbda)
    titles = {f"{lmbda:g}": float(lmbda) for lmbda in lmbdas}
    if own is not None and f"{own:g}" not in titles:
        titles = {f"{own:g}": own, **titles}
    return list(titles.items())


def sweep(
    models: Mapping[str, nn.Module],
    clean: Labelled,
    out: Path,
    strengths: Sequence[Strength],
    lmbdas: Sequence[float] = LMBDAS,
    seed: int = 0,
    published: Path | None = None,
) -> Iterator[tuple[Row, bool]]:
    """Evaluate what is not yet in the file `out`; yields every cell's row, and whether it is new.

    Raises:
        ValueError: an lmbda is negative, or there is no such corruption.
        UserError: the file cannot be written; finished cells stay.
    """
    table = Table(out, KEYS, VALUES)
    weights = {name: fingerprint(model) for name, model in models.items()}
    cells = {name: lmbdas_of(model, lmbdas) for name, model in models.items()}
    data = clean.digest
    for strength in strengths:
        pictures: Labelled | None = None
        for name, model in models.items():
            for title, lmbda in cells[name]:
                cell = {
                    "model": name, "weights": weights[name], "corruption": strength.corruption,
                    "severity": strength.severity, "constant": strength.constant, "lmbda": title,
                    "pictures": len(clean), "data": data, "source": source_of(strength, seed, published),
                }  # fmt: skip
                row = table.find(cell)
                if row is not None:
                    yield row, False
                    continue
                if pictures is None:
                    pictures = corrupted(clean, strength, seed, published)
                begin = time.perf_counter()
                right = int(correct(model, pictures, lmbda).sum())
                seconds = time.perf_counter() - begin
                numbers = {
                    "correct": right,
                    "accuracy": right / len(pictures),
                    "images_per_second": len(pictures) / seconds,
                }
                yield table.add({**cell, **numbers}), True


@torch.no_grad()
def correct(model: nn.Module, labelled: Labelled, lmbda: float | None = None) -> Tensor:
    """Which pictures a model classifies right at an lmbda of its stem, (N,), bool; in evaluation mode."""
    with evaluating(model), stem_lmbda(model, lmbda):
        found = torch.cat([model(part).argmax(1) for part in batches(labelled.pictures)])
    return found == labelled.labels
