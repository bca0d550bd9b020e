"""What a sweep's CSV file says: curves of accuracy over lmbda, and the table of what each choice of lmbda gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..files import written_aside
from .corruptions import SCAN
from .table import Row

matplotlib.use("Agg")
Level = tuple[str, str, str]
# How the rows of an automatic model are called, behind the name of the one it was made from.
AUTOMATIC = " (automatic)"
# Up to this a dip of a curve is taken for chance.
DIP = 0.01


@dataclass
class Curve:
    """The accuracies of one model at one level: by fixed lmbda, automatic ones, or alone."""

    model: str
    level: Level
    fixed: dict[float, float]
    automatic: float | None = None
    alone: float | None = None
    trained: float | None = None

    @property
    def training(self) -> float:
        """At the training lmbda; where that is not said, at the smallest of the grid."""
        return self.fixed[min(self.fixed) if self.trained is None else self.trained]

    @property
    def best(self) -> float:
        """The lmbda that an oracle would take, by the labels of these very pictures."""
        return max(self.fixed, key=lambda lmbda: (self.fixed[lmbda], -lmbda))

    @property
    def unimodal(self) -> bool:
        """Rises to one peak and falls, but for dips of a point, which may be chance."""
        values = [self.fixed[lmbda] for lmbda in sorted(self.fixed)]
        peak = values.index(max(values))
        rising = all(b >= a - DIP for a, b in zip(values[:peak], values[1 : peak + 1]))
        falling = all(b <= a + DIP for a, b in zip(values[peak:], values[peak + 1 :]))
        return rising and falling


def level_of(row: Row) -> Level:
    return row["corruption"], row["severity"], row["constant"]


def curves(rows: Sequence[Row], trained: float | None = None) -> list[Curve]:
    """Rows gathered by model and level, in their order, means over seeds of the noise.

    Automatic rows belong to the model that they were made from.
    """
    seen: dict[tuple[str, Level], dict[str, list[float]]] = {}
    for row in rows:
        key = row["model"].removesuffix(AUTOMATIC), level_of(row)
        kind = "automatic" if row["lmbda"].startswith("automatic") else row["lmbda"]
        seen.setdefault(key, {}).setdefault(kind, []).append(float(row["accuracy"]))
    if trained is not None:
        trained = float(f"{trained:g}")  # As rows say it.
    made = []
    for (name, level), accuracies in seen.items():
        means = {kind: sum(values) / len(values) for kind, values in accuracies.items()}
        automatic, alone = means.pop("automatic", None), means.pop("none", None)
        fixed = {float(lmbda): mean for lmbda, mean in means.items()}
        made.append(Curve(name, level, fixed, automatic, alone, trained))
    return made


def curve_figure(rows: Sequence[Row], model: str) -> Figure:
    """Accuracy over lmbda, one panel per corruption and a line per level; a ring marks each line's peak."""
    mine = [curve for curve in curves(rows) if curve.model == model and curve.fixed]
    names = list(dict.fromkeys(curve.level[0] for curve in mine if curve.level[0] != "clean"))
    clean = [curve for curve in mine if curve.level[0] == "clean"]
    figure = Figure(figsize=(4.2 * max(1, len(names)), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], names or ["clean"]):
        levels = sorted((curve for curve in mine if curve.level[0] == name), key=strength)
        for number, curve in enumerate([*clean, *levels] if names else clean):
            colour = (
                "black"
                if curve.level[0] == "clean"
                else matplotlib.colormaps["viridis"](number / (len(levels) + 1))
            )
            lmbdas = sorted(curve.fixed)
            axes.plot(
                lmbdas, [100 * curve.fixed[lmbda] for lmbda in lmbdas], color=colour, label=short(curve.level)
            )
            axes.plot(curve.best, 100 * curve.fixed[curve.best], "o", color=colour, fillstyle="none")
        axes.set(title=name, xlabel="lmbda of the stem", ylabel="accuracy in %")
        axes.legend(fontsize=6)
    return figure


def strength(curve: Curve) -> float:
    """Rises with the noise: shot noise has the smaller rate where there is more of it."""
    name, severity, constant = curve.level
    value = float(constant or severity or 0)
    return -value if name == "shot_noise" else value


def short(level: Level) -> str:
    name, severity, constant = level
    if name == "clean":
        return name
    return f"severity {severity}" if severity else f"{constant}"


def table_rows(rows: Sequence[Row], model: str, trained: float | None = None) -> list[dict[str, str]]:
    """A row per level: training lmbda, automatic, the oracle's (chosen by these labels), and other models."""
    found = curves(rows, trained)
    others = {(curve.model, curve.level): curve.alone for curve in found if curve.alone is not None}
    names = list(dict.fromkeys(name for name, _ in others))
    made = []
    for curve in found:
        if curve.model != model or not curve.fixed:
            continue
        gain = curve.fixed[curve.best] - curve.training
        share = "" if curve.automatic is None or gain < DIP else f"{(curve.automatic - curve.training) / gain:.0%}"
        row = {
            "noise": curve.level[0], "level": short(curve.level) if curve.level[0] != "clean" else "",
            "training lmbda": percent(curve.training), "automatic": percent(curve.automatic),
            "oracle": percent(curve.fixed[curve.best]), "oracle's lmbda": f"{curve.best:g}",
            "share of the oracle's gain": share, "unimodal": "yes" if curve.unimodal else "no",
        }  # fmt: skip
        made.append({**row, **{name: percent(others.get((name, curve.level))) for name in names}})
    return made


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def claims(rows: Sequence[Row], model: str, trained: float | None = None) -> list[str]:
    """What the sweep says about robust inference, one sentence each, whichever way it came out."""
    mine = [curve for curve in curves(rows, trained) if curve.model == model and curve.fixed]
    noisy = [curve for curve in mine if curve.level[0] in SCAN]
    if not noisy:
        return []
    said = [f"Accuracy over lmbda is unimodal (dips below 1 point aside) at {sum(c.unimodal for c in mine)} of "
            f"{len(mine)} levels."]  # fmt: skip
    for name in dict.fromkeys(curve.level[0] for curve in noisy):
        order = sorted((curve for curve in noisy if curve.level[0] == name), key=strength)
        best = [curve.best for curve in order]
        verb = "never falls" if best == sorted(best) else "does not always grow"
        said.append(f"{name}: the best lmbda {verb} with the noise: {', '.join(f'{b:g}' for b in best)}.")
    worse = [curve for curve in noisy if curve.fixed[curve.best] <= curve.training]
    named = ", ".join(f"{c.level[0]} {short(c.level)}" for c in worse) or "none"
    said.append(f"Levels where no lmbda beats the training lmbda: {len(worse)} of {len(noisy)} ({named}).")
    automatic = [curve for curve in noisy if curve.automatic is not None]
    if automatic:
        mean = sum(curve.automatic or 0 for curve in automatic) / len(automatic)
        fixed = sum(curve.training for curve in automatic) / len(automatic)
        oracle = sum(curve.fixed[curve.best] for curve in automatic) / len(automatic)
        share = f", {(mean - fixed) / (oracle - fixed):.0%} of the oracle's gain" if oracle > fixed else ""
        said.append(
            f"Mean over {len(automatic)} noisy levels: {percent(mean)} % automatic, {percent(fixed)} % at the "
            f"training lmbda, {percent(oracle)} % oracle{share}."
        )
        for name, alone in _others(rows, [curve.level for curve in automatic]).items():
            said.append(
                f"{name}: {percent(alone)} % there; automatic lmbda gains {100 * (mean - alone):+.1f} points."
            )
        clean = [c for c in mine if c.level[0] == "clean" and c.automatic is not None]
        for curve in clean:
            change = 100 * ((curve.automatic or 0) - curve.training)
            said.append(f"On clean pictures automatic lmbda changes accuracy by {change:+.2f} points.")
    return said


def _others(rows: Sequence[Row], levels: Sequence[Level]) -> dict[str, float]:
    alone: dict[str, list[float]] = {}
    for curve in curves(rows):
        if curve.alone is not None and curve.level in levels:
            alone.setdefault(curve.model, []).append(curve.alone)
    return {name: sum(values) / len(values) for name, values in alone.items()}


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table, as a text editor and a renderer show it."""
    if not rows:
        return ""
    lines = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
    return "\n".join(
        f"| {' | '.join(line)} |" + (f"\n|{'---|' * len(line)}" if number == 0 else "")
        for number, line in enumerate(lines)
    )


def save(figure: Figure, path: Path) -> None:
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=120)
