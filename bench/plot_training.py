"""Draws test accuracy and loss of the networks in docs/results.md, epoch by epoch, from their logs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import typer
from harness import read_csv
from matplotlib.figure import Figure
from sdnet.files import written_aside

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, LOGS = ROOT / "python/sdnet/pretrained_models", ROOT / "docs/results"
# Each network's seeds have one colour.
NETWORKS = {
    "ResNet-18": ("cifar10_resnet18_w16", "#999999"),
    "SDNet-18": ("cifar10_sdnet18_w16", "#1b7837"),
    "SDNet-18-all": ("cifar10_sdnet18_all_w16", "#7fbf7b"),
    "SCN": ("cifar10_scn_w16", "#5b7fb5"),
    "MDEQ": ("cifar10_mdeq_small_w8", "#b2622d"),
}


def logs(name: str) -> list[Path]:
    """The logs of all seeds: the first one's beside its weights, where those ship."""
    shipped = WEIGHTS / name / "log.csv"
    return [*([shipped] if shipped.exists() else []), *sorted(LOGS.glob(f"{name}*.csv"))]


def curve(log: Path, column: str) -> tuple[list[int], list[float]]:
    rows = read_csv(log)
    return [int(row["epoch"]) for row in rows], [float(row[column]) for row in rows]


def main(out: Annotated[Path, typer.Option(help="Where the picture goes.")] = LOGS / "curves.png") -> None:
    """Write the picture."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, column in zip(panels, ("accuracy", "test_loss"), strict=True):
        for label, (name, colour) in NETWORKS.items():
            for number, log in enumerate(logs(name)):
                panel.plot(*curve(log, column), color=colour, label=label if number == 0 else None, marker=".")
        panel.set(xlabel="epoch", title=column.replace("_", " "))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8)
    with written_aside(out) as aside:
        figure.savefig(aside, dpi=120, format="png")
    typer.echo(out)


if __name__ == "__main__":
    typer.run(main)
