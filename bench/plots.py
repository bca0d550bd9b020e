"""Horizontal bars of medians with their p20 to p80, one picture for each mode and setting."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from cases import MEMORY, PEAK
from matplotlib import pyplot
from runs import Run, median

OURS, PLAIN, OTHERS = "#1b7837", "#999999", "#5b7fb5"
_OUR_NAMES = ("csc.fista", "CSCConv2d", "SDNet-18", "SDNet-18-all")
_PLAIN_NAMES = ("conv2d", "ResNet-18")


def plot_runs(runs: list[Run], folder: Path, name: str) -> None:
    """Write <name>-<mode>-<setting>.png: a panel for each case, the fastest layout of each contender."""
    pictures: dict[str, list[Run]] = {}
    for run in runs:
        key = re.sub(r"[^a-z0-9]+", "-", f"{name} {run.mode} {run.setting}".lower())
        pictures.setdefault(key, []).append(run)
    for key, shown in pictures.items():
        columns = min(2, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure, axes = pyplot.subplots(rows, columns, figsize=(6 * columns, 2.4 * rows), squeeze=False)
        for axis in axes.flat[len(shown) :]:
            axis.remove()
        for axis, run in zip(axes.flat, shown):
            _panel(axis, run)
        figure.suptitle(f"{shown[0].mode}: milliseconds, bars p50, lines p20 to p80 ({shown[0].setting})")
        figure.tight_layout()
        aside = folder / f".{key}.{os.getpid()}"
        figure.savefig(aside, dpi=120, format="png")
        pyplot.close(figure)
        os.replace(aside, folder / f"{key}.png")


def _panel(axis: pyplot.Axes, run: Run) -> None:
    names = dict.fromkeys(row["contender"] for row in run.rows if row["contender"] not in (PEAK, MEMORY))
    rows = sorted((run.fastest(name) for name in names), key=median, reverse=True)
    medians = [median(row) for row in rows]
    spread = [
        [median(row) - float(row["p20_ms"]) for row in rows],
        [float(row["p80_ms"]) - median(row) for row in rows],
    ]
    colours = [
        OURS if row["contender"] in _OUR_NAMES else PLAIN if row["contender"] in _PLAIN_NAMES else OTHERS
        for row in rows
    ]
    axis.barh([row["contender"] for row in rows], medians, xerr=spread, color=colours, capsize=2)
    axis.set_title(run.case, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
