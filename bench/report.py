"""Tables and plots from the benchmarks' CSV files alone: writes report.md and PNG files beside them."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Annotated

import typer
from cases import CASES, MEMORY, NAMES, PEAK, memory_rate, peak_rate
from harness import console, read_csv
from paths_report import paths_table, phases_table
from plots import plot_runs
from runs import PYTORCH, Run, measure, median, provenance_of, ratio, runs_of

TARGETS = Path(__file__).with_name("targets.csv")
COMPARISON = " comparison, "  # In the names of the cases that compare all networks.
FILES = ("fista", "ablation", "models", "startup")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; the first column is text, the others are numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def milliseconds(row: dict[str, str] | None) -> str:
    return "" if row is None else f"{median(row):.2f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def targets_table(runs: list[Run], setting: str) -> str:
    """Every target with what was measured in this setting."""
    found = {(run.case, run.mode): run for run in runs if run.setting == setting or run.mode == "startup"}
    lines = []
    with TARGETS.open(newline="") as file:
        for target in csv.DictReader(file):
            run = found.get((target["case"], target["mode"]))
            value = None if run is None else measure(target["metric"], run)
            goal = float(target["value"])
            verdict = "not measured"
            if value is not None:
                met = value >= goal if target["limit"] == "at least" else value <= goal
                verdict = "met" if met else "MISSED"
            shown = "" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
            name = f"{target['case']}; {target['mode']}; {target['metric']}"
            lines.append([name, f"{target['limit']} {goal:g}", shown, verdict])
    return table(["target", "goal", "measured", ""], lines)


def layers_table(runs: list[Run]) -> str:
    """Median milliseconds of every contender in its better layout, and the two ratios."""
    header = ["case", *NAMES, "best PyTorch / csc.fista", "as shipped / CSCConv2d"]
    lines = []
    for run in runs:
        medians = [milliseconds(run.fastest(name)) for name in NAMES]
        ratios = [times(measure(metric, run)) for metric in ("vs best PyTorch", "vs as shipped")]
        lines.append([f"{run.case}; {run.mode}", *medians, *ratios])
    return table(header, lines)


def roofline_table(runs: list[Run]) -> str:
    """Each layer against the rate of a large convolution of the same run, and what that rate would make possible.

    Winograd's products are fewer than those counted, which are a direct convolution's: shares can be above 100 %.
    """
    header = ["case", "GFLOP", "GFLOP/s", "a convolution's", "share", "ratio at its rate", "GB/s of a sum"]
    lines = []
    for run in runs:
        best, reference = run.fastest("csc.fista"), run.fastest(PEAK)
        if best is None or reference is None:
            continue
        operations = CASES[run.case].operations(run.mode)
        rate, peak = operations / (1e-3 * median(best)), peak_rate(median(reference))
        floor = 1e3 * operations / peak
        possible = median(run.fastest(*PYTORCH)) / floor
        cells = [operations, rate, peak]
        shown = [f"{1e-9 * value:.{digits}f}" for value, digits in zip(cells, (2, 0, 0))]
        sums = run.fastest(MEMORY)
        memory = "" if sums is None else f"{1e-9 * memory_rate(median(sums)):.0f}"
        lines.append([f"{run.case}; {run.mode}", *shown, f"{rate / peak:.0%}", times(possible), memory])
    return table(header, lines) if lines else ""


def memory_table(runs: list[Run]) -> str:
    """Peak MiB of a training step, in the layout that needs less."""
    measured = [run for run in runs if any(row["peak_bytes"] for row in run.rows)]
    names = [name for name in NAMES if name != "conv2d"]
    lines = []
    for run in measured:
        peaks = [run.peak_bytes(name) for name in names]
        lines.append([run.case, *(f"{peak / 2**20:.0f}" if peak else "" for peak in peaks)])
    return table(["training step, peak MiB", *names], lines) if lines else ""


def ablation_table(runs: list[Run]) -> str:
    """What dropping dead work gives, and what the kernels of each backend give on top of that."""
    backends = sorted({row["backend"] for run in runs for row in run.rows} - {"torch"})
    lines = []
    for run in runs:
        cleaned = run.fastest("cleaned")
        kernels = [ratio(cleaned, run.fastest("csc.fista", backend=name)) for name in backends]
        removed = ratio(run.fastest("published"), cleaned)
        lines.append([f"{run.case}; {run.mode}", times(removed), *map(times, kernels)])
    return table(["case", "dead work dropped", *(f"kernel: {name}" for name in backends)], lines)


def rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def comparison_table(runs: list[Run]) -> str:
    """Every network once: size, images per second as it is, compiled and in bfloat16, memory of a training step."""
    header = ["network", "parameters", "GFLOP"]
    header += [f"{mode}{way}" for mode in ("inference", "training") for way in ("", ", compiled", ", bfloat16")]
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        if COMPARISON in run.case:
            found.setdefault(run.case, {})[run.mode] = run
    parts = []
    for case, modes in found.items():
        batch, lines = int(case.split()[-1]), []
        names = dict.fromkeys(row["contender"] for run in modes.values() for row in run.rows)
        for name in names:
            if name.endswith((" compiled", " bfloat16")):
                continue
            cells, peak = [], None
            for mode in ("inference", "training"):
                for way in ("", " compiled", " bfloat16"):
                    row = modes[mode].fastest(name + way) if mode in modes else None
                    cells.append("" if row is None else rate(1e3 * batch / median(row)))
                peak = modes[mode].peak_bytes(name) if mode in modes else None
            row = next(row for run in modes.values() for row in run.rows if row["contender"] == name)
            size = [f"{int(row['parameters']):,}", f"{float(row['gflop']):.3g}"]
            lines.append([name, *size, *cells, f"{peak / 2**20:.0f}" if peak else ""])
        parts.append(f"{case}, images per second:\n\n{table([*header, 'training, peak MiB'], lines)}")
    return "\n\n".join(parts)


def models_table(runs: list[Run]) -> str:
    """Images per second of each network in its better layout."""
    lines = []
    for run in runs:
        if COMPARISON in run.case:
            continue
        batch = int(run.case.split()[-1])
        for name in dict.fromkeys(row["contender"] for row in run.rows):
            row = run.fastest(name)
            rate = f"{1e3 * batch / median(row):.0f}"
            lines.append([f"{name}; {run.mode}", rate, row["layout"], times(ratio(run.fastest("ResNet-18"), row))])
    return table(["network", "images / s", "layout", "of ResNet-18"], lines) if lines else ""


def report(runs: dict[str, list[Run]]) -> str:
    """The whole report as markdown."""
    everything = [run for name in FILES for run in runs[name]]
    parts = ["# Benchmarks", *(f"- {line}" for line in provenance_of(everything))]
    parts.append(
        "\nMedians of interleaved calls. Best PyTorch is the fastest of "
        f"{', '.join(PYTORCH)}, in either layout, in the same run."
    )
    for setting in dict.fromkeys(run.setting for run in everything if run.mode != "startup"):
        chosen = {name: [run for run in runs[name] if run.setting == setting] for name in FILES}
        sections = {
            "layers, milliseconds": chosen["fista"] and layers_table(chosen["fista"]),
            "arithmetic": roofline_table(chosen["fista"]),
            "memory": memory_table(chosen["fista"]),
            "ablation": chosen["ablation"] and ablation_table(chosen["ablation"]),
            "networks": models_table(chosen["models"]),
            "comparison of networks": comparison_table(chosen["models"]),
        }
        if setting.startswith("float32"):
            # The ablation runs the same cases with fewer contenders: its ratios are not the targets'.
            measured = [run for name in FILES if name != "ablation" for run in runs[name]]
            sections = {"targets": targets_table(measured, setting), **sections}
        for title, text in sections.items():
            if text:
                parts.append(f"\n## {setting}: {title}\n\n{text}")
    return "\n".join(parts) + "\n"


def main(folder: Annotated[Path, typer.Argument(help="Where the CSV files are.")]) -> None:
    """Write report.md and the plots."""
    runs = {name: runs_of(folder / f"{name}.csv") for name in FILES}
    if not any(runs.values()):
        raise typer.BadParameter(f"no {', '.join(FILES)} CSV in {folder}")
    text = report(runs) + paths_table(runs_of(folder / "wide.csv")) + phases_table(read_csv(folder / "phases.csv"))
    aside = folder / f".report.{os.getpid()}"
    aside.write_text(text)
    os.replace(aside, folder / "report.md")
    for name in ("fista", "models"):
        plot_runs(runs[name], folder, name)
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
