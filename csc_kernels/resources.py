"""The tables of what each GPU kernel takes: docs/resources*.csv of a checkout."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs" / "resources.csv"


def lines(folder: Path = FILE.parent) -> Iterator[str]:
    """The tables of a folder for people, their columns aligned.

    Raises:
        FileNotFoundError: there is none, as in an installed wheel.
    """
    files = sorted(folder.glob("resources*.csv"))
    if not files:
        raise FileNotFoundError(f"no table in {folder}: it is part of the source, not of an installed package")
    for file in files:
        with file.open(newline="") as table:
            rows = list(csv.reader(table))
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            yield "  ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip()


def regenerate(file: Path = FILE) -> list[str]:
    """Compile every Triton kernel for every architecture, which takes minutes, and replace its rows.

    Returns:
        What is wrong with them, one line each.
    """
    from .triton import resources

    rows = list(resources.table())
    resources.write(file, rows)
    return [
        f"{row.kernel} {row.dtype} {row.entry} {row.target}: {problem}"
        for row in rows
        for problem in resources.problems(row)
    ]
