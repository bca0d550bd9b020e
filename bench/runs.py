"""Reads the benchmarks' CSV files: runs, their fastest contenders, and the ratios that are reported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import GROUP, read_csv

PYTORCH = ("published", "cleaned", "compiled")
Row = dict[str, str]


@dataclass(frozen=True)
class Run:
    """All rows of one interleaved run."""

    case: str
    mode: str
    dtype: str
    threads: str
    allocator: str
    rows: tuple[Row, ...]

    @property
    def setting(self) -> str:
        return f"{self.dtype}, {self.threads} threads, allocator {self.allocator}"

    def fastest(self, *names: str, backend: str | None = None) -> Row | None:
        """The row with the smallest median among these contenders, in any layout."""
        rows = [row for row in self.rows if row["contender"] in names]
        rows = [row for row in rows if backend is None or row["backend"] == backend]
        return min(rows, key=median, default=None)

    def peak_bytes(self, name: str) -> int | None:
        """The smallest peak memory of a contender, in any layout; None where it was not measured."""
        peaks = [int(row["peak_bytes"]) for row in self.rows if row["contender"] == name and row["peak_bytes"]]
        return min(peaks, default=None)


def median(row: Row) -> float:
    return float(row["p50_ms"])


def runs_of(path: Path) -> list[Run]:
    """The runs of one CSV file, in the order of their first rows; none when there is no file."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in read_csv(path):
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return [Run(*key, tuple(rows)) for key, rows in groups.items()]


def ratio(slow: Row | None, fast: Row | None) -> float | None:
    """How many times the second is faster than the first."""
    return None if slow is None or fast is None else median(slow) / median(fast)


def measure(metric: str, run: Run) -> float | None:
    """The value of one of the targets' metrics; None when the run does not have what it needs.

    A function is compared with functions, and the layer with the published layer, which like it normalises
    its atoms and finds its step size. Each takes part in the layout that suits it best.
    """
    if metric == "vs best PyTorch":
        return ratio(run.fastest(*PYTORCH), run.fastest("csc.fista"))
    if metric == "vs as shipped":
        return ratio(run.fastest("published"), run.fastest("CSCConv2d"))
    if metric == "high vs best PyTorch":
        return ratio(run.fastest(*PYTORCH), run.fastest("csc.fista high"))
    if metric == "SDNet-18-all vs best PyTorch":
        plain = [f"SDNet-18-all, {way}" for way in ("cleaned eager", "cleaned compiled", "as shipped")]
        return ratio(run.fastest(*plain), run.fastest("SDNet-18-all"))
    if metric.startswith("memory of "):
        names = metric.removeprefix("memory of ").split(" vs ")
        ours, theirs = map(run.peak_bytes, names)
        return ours / theirs if ours and theirs else None
    if " vs " in metric:
        ours, theirs = metric.split(" vs ")
        return ratio(run.fastest(theirs), run.fastest(ours))
    if metric == "milliseconds":
        return median(run.rows[0])
    raise ValueError(f"unknown metric {metric!r}")


def provenance_of(runs: Iterable[Run]) -> list[str]:
    """One line for every machine, set of versions and date in the rows."""
    names = ("cpu", "torch", "csc_kernels", "date")
    lines = {
        "{}; torch {}; csc_kernels {}; {}".format(*(row[name] for name in names))
        for run in runs
        for row in run.rows
    }
    return sorted(lines)
