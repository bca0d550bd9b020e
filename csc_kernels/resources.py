"""The table of what each GPU kernel takes: docs/resources.csv of a checkout."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs" / "resources.csv"


def lines(file: Path = FILE) -> Iterator[str]:
    """The table for people, its columns aligned.

    Raises:
        FileNotFoundError: the table is not there, as in an installed wheel.
    """
    if not file.exists():
        raise FileNotFoundError(f"no table at {file}: it is part of the source, not of an installed package")
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
