"""A CSV file of finished cells: a run that was stopped goes on with what is missing."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from csc_kernels import CSCConv2d

from ..errors import UserError
from ..files import written_aside
from ..training.statistics import csc_layers

Row = dict[str, str]


class Table:
    """Rows of one experiment, each known by its key columns.

    After every added row the whole file is written aside and renamed: it holds finished rows alone, always.

    Args:
        path: the file; its rows are kept.
        keys: columns that say which cell a row is of.
        values: the other columns.

    Raises:
        UserError: the file has other columns, as one of another command would.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], values: tuple[str, ...]) -> None:
        self.path, self.keys, self.columns = path, keys, (*keys, *values)
        self.rows = read(path)
        if self.rows and tuple(self.rows[0]) != self.columns:
            raise UserError(f"{path} has the columns {', '.join(self.rows[0])}, not {', '.join(self.columns)}")
        self._done = {self._key(row): row for row in self.rows}

    def _key(self, row: Mapping[str, object]) -> tuple[str, ...]:
        return tuple(text(row[name]) for name in self.keys)

    def find(self, cell: Mapping[str, object]) -> Row | None:
        """The row of a cell, if it was finished before."""
        return self._done.get(self._key(cell))

    def add(self, row: Mapping[str, object]) -> Row:
        """Append the row of a finished cell."""
        kept = {name: text(row[name]) for name in self.columns}
        self.rows.append(kept)
        self._done[self._key(kept)] = kept
        with written_aside(self.path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        return kept


def read(path: Path) -> list[Row]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def latest(rows: Sequence[Row]) -> list[Row]:
    """The rows of each model and defence that have the weights, pictures and source of noise of its last."""

    def kind(row: Row) -> tuple[str, str]:
        return row["model"], row.get("defence", "")

    def seen(row: Row) -> tuple[str | None, ...]:
        return row["weights"], row.get("pictures"), row.get("data")

    def source(row: Row) -> str:
        return row.get("source", "clean").partition(",")[0]

    last = {kind(row): seen(row) for row in rows}
    noise = {kind(row): source(row) for row in rows if source(row) != "clean"}
    return [row for row in rows if seen(row) == last[kind(row)] and source(row) in ("clean", noise.get(kind(row)))]


def text(value: object) -> str:
    """Numbers in the shortest form that says them; None is empty."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _settings(layer: CSCConv2d) -> list[object]:
    numbers = [torch.as_tensor(value, dtype=torch.float64).tolist() for value in (layer.lmbda, layer.mu)]
    return [*numbers, layer.n_iter, layer.nonneg, layer.momentum, layer.square_noise, layer.huber]


DEFAULTS = _settings(CSCConv2d(1, 1, 1, device="meta"))


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits of the weights: rows of other weights are not this model's.

    And of what sparse coding layers were told to do, where that is not what they do by default.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for name, layer in csc_layers(model).items():
        said = _settings(layer)
        if said != DEFAULTS:
            digest.update(f"{name}{said}".encode())
    return digest.hexdigest()[:12]
