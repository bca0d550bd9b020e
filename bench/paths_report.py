"""The report's sections on the paths of wide layers, from wide.csv and phases.csv."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from runs import Run

TOLERATED = 1.03  # Times direct's time that a chosen path may take.


def paths_table(runs: Sequence[Run]) -> str:
    """How the chosen path compares with direct convolutions, and the shapes on which it was slower."""
    if not runs:
        return ""
    lines = ["\n## Paths of wide layers: time of the chosen path over direct convolutions'\n"]
    lines.append("| precision, mode | shapes | geometric mean | smallest | largest | slower than 1.03 |")
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    slower = []
    for precision in ("default", "high"):
        for dtype, mode in dict.fromkeys((run.dtype, run.mode) for run in runs):
            if (dtype, precision) == ("bfloat16", "high"):
                continue
            kind = f"{precision}, {mode}" if dtype == "float32" else f"{dtype}, {mode}"
            ratios = {run.case: _ratio(run, precision) for run in runs if (run.dtype, run.mode) == (dtype, mode)}
            slow = {case: value for case, value in ratios.items() if value > TOLERATED}
            slower += [f"{case}; {kind}: {value:.2f}" for case, value in slow.items()]
            mean = statistics.geometric_mean(ratios.values())
            cells = [len(ratios), f"{mean:.2f}", f"{min(ratios.values()):.2f}", f"{max(ratios.values()):.2f}"]
            lines.append(f"| {kind} | " + " | ".join(map(str, [*cells, len(slow)])) + " |")
    if slower:
        lines.append("\nSlower than direct by more than 3 %:\n")
        lines += [f"- {text}" for text in slower]
    return "\n".join(lines) + "\n"


def _ratio(run: Run, precision: str) -> float:
    """By the fastest fifth of the calls; exactly 1 where direct convolutions are what was chosen."""
    rows = {row["contender"]: row for row in run.rows}
    if set(rows[precision]["backend"].split()[-1].split("+")) == {"direct"}:
        return 1.0
    return float(rows[precision]["p20_ms"]) / float(rows["direct"]["p20_ms"])


def phases_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Milliseconds of each phase, and shares of the rate of a large direct convolution."""
    if not rows:
        return ""
    header = ["case", "ms", "transforms", "products", "epilogue", "products / peak", "as direct / peak"]
    lines = ["\n## Phases of wide layers' convolutions\n", "| " + " | ".join(header) + " |"]
    lines.append("| --- |" + " ---: |" * (len(header) - 1))
    for row in rows:
        name = f"{row['case']}; {row['operation']}; {row['path']}"
        parts = [row["ms"], row["transforms_ms"], row["products_ms"], row["epilogue_ms"]]
        shares = [row["products_of_roofline"], row["as_direct_of_roofline"]]
        lines.append("| " + " | ".join([name, *parts, *shares]) + " |")
    peaks = sorted({row["peak_gflops"] for row in rows}, key=float)
    lines.append(f"\nPeak: {peaks[0]} to {peaks[-1]} GFLOP/s, a large direct convolution in the same run.")
    return "\n".join(lines) + "\n"
