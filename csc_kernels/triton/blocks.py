"""Block sizes: a table by kernel, kind of shape, dtype and architecture, and what stands in where it has no row.

The table that ships is blocks.csv; `csc_kernels.tune` writes one of the same form to the user's cache directory,
whose rows come first.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

SHIPPED = Path(__file__).with_name("blocks.csv")
STEM_CHANNELS = 8  # Up to so many input channels a shape is a "stem", beyond it is "wide".


@dataclass(frozen=True)
class Blocks:
    """One row of the table. Sizes that a kernel does not have are 0."""

    kernel: str
    shape: str  # "stem" or "wide"; for a whole solve its number of steps
    dtype: str  # "float32" or "half", which stands for both 16-bit dtypes
    architecture: str  # "sm80", "gfx942", ..., or "any"
    pixels: int
    atoms: int
    channels: int
    taps: int
    warps: int
    stages: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.kernel, self.shape, self.dtype, self.architecture


def user_table() -> Path:
    """Where `tune` writes: $CSC_KERNELS_CACHE, else the user's cache directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("CSC_KERNELS_CACHE", cache / "csc_kernels")) / "blocks.csv"


def read(file: Path) -> list[Blocks]:
    """The rows of a table; none when there is no file.

    Raises:
        ValueError: the file is not such a table.
    """
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = [field.name for field in fields(Blocks)]
    try:
        values: list[list[Any]] = [[row[n] if i < 4 else int(row[n]) for i, n in enumerate(names)] for row in rows]
        return [Blocks(*value) for value in values]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no table of block sizes: {error!r}; delete it to use the one shipped"
        ) from None


def write(file: Path, rows: Iterable[Blocks]) -> None:
    """Replace a table at once: a reader sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    with aside.open("w", newline="") as lines:
        table = csv.DictWriter(lines, [field.name for field in fields(Blocks)])
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
    aside.replace(file)


@functools.cache
def table() -> dict[tuple[str, str, str, str], Blocks]:
    """The rows in use, the user's over those shipped."""
    return {row.key: row for file in (SHIPPED, user_table()) for row in read(file)}


def architecture(device: torch.device) -> str:
    """The architecture that rows are looked up for: "sm90", "gfx942", ...; "any" where there is no GPU."""
    return _pretended or _architecture(device)


@functools.cache
def _architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return "any"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


_pretended: str | None = None


@contextmanager
def pretending(name: str) -> Iterator[None]:
    """Look rows up for another architecture until the context ends: to compile for a GPU that is not there."""
    global _pretended
    before, _pretended = _pretended, name
    try:
        yield
    finally:
        _pretended = before


@contextmanager
def using(*rows: Blocks) -> Iterator[None]:
    """Put rows before all others until the context ends."""
    before = dict(table())
    table().update({row.key: row for row in rows})
    try:
        yield
    finally:
        table().clear()
        table().update(before)


def shape_class(channels: int) -> str:
    return "stem" if channels <= STEM_CHANNELS else "wide"


def find(kernel: str, shape: str, dtype: torch.dtype, device: torch.device) -> Blocks | None:
    """The row for a call: of its own architecture, else of "any"; None where neither is there."""
    size = "float32" if dtype is torch.float32 else "half"
    rows = (table().get((kernel, shape, size, name)) for name in (architecture(device), "any"))
    return next(filter(None, rows), None)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def tile(pixels: int, rows: int, columns: int) -> tuple[int, int, int]:
    """Samples, rows and columns of a tile of so many pixels, powers of two.

    Columns are up to 16: nearly square tiles have the smallest halo. Small codes share a tile among samples.
    """
    tile_columns = min(power_of_two(columns), 16, pixels)
    tile_rows = min(power_of_two(rows), pixels // tile_columns)
    return pixels // (tile_rows * tile_columns), tile_rows, tile_columns
