"""Everything of the command sdnet attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..files import written_aside
from ..models import Classifier
from ..pretrained import load_model
from .adaptive import AdaptiveClassifier
from .attacks import Effort, Threat
from .checks import checks
from .commands import automatic, check_titles, fixed, sparse_model, test_pictures
from .curves import markdown
from .evaluation import Defence, defences, evaluate, strength_checks, table_rows
from .pictures import Labelled
from .sweep import LMBDAS
from .table import Row, Table, fingerprint

CHECK_KEYS = ("model", "weights", "defence", "threat", "check", "pictures", "data", "effort", "seed")
# The checks go up to ten times the attack's steps; so many pictures are enough for them.
CHECKED = 50
# A row that says that all checks before it were made.
LAST = "all made"


def run_attack(
    names: Sequence[str], against: Sequence[str], raised: Sequence[float], data: str, root: Path | None, count: int,
    out: Path, threats: Sequence[Threat], attacks: Sequence[str], effort: Effort, seed: int, console: Console,
) -> None:  # fmt: skip
    """attack.csv and checks.csv, which go on where they were stopped, and attack.md in the folder `out`."""
    check_titles((*names, *against))
    models: dict[str, Classifier] = {}
    own: dict[str, AdaptiveClassifier] = {}
    for name in names:
        given = sparse_model(name)
        models[Path(name).name] = fixed(given)
        adapted = automatic(given)
        if adapted is not None:
            own[Path(name).name] = adapted
    for name in against:
        models[Path(name).name] = load_model(name)
    for model in (*models.values(), *own.values()):
        model.requires_grad_(False)
    pictures = test_pictures(list(models.values()), data, root, count)
    defended = defences(models, own, raised, LMBDAS[::5])
    rows: list[Row] = []
    kept = 0
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(threats) * sum(4 + len(attacks) + len(d.sources) for d in defended))
        for row, new in evaluate(defended, pictures, threats, out / "attack.csv", effort, seed, attacks):
            rows.append(row)
            kept += not new
            title = (
                f"{row['model']}, {row['defence']}, {row['norm']} {row['eps']}: {row['attack']} {row['through']}"
            )
            progress.update(task, advance=1, description=title)
        seen = run_checks(defended, pictures, threats[0], out / "checks.csv", seed, effort, progress)
    text = "\n\n".join((markdown(table_rows(rows)), markdown(strength_checks(rows)), markdown(seen)))
    with written_aside(out / "attack.md") as aside:
        aside.write_text(text + "\n")
    console.print(text, highlight=False, markup=False)
    console.print(f"{len(rows)} cells, {kept} of them from before; written: {out / 'attack.csv'}", highlight=False)


def run_checks(
    defended: Sequence[Defence],
    pictures: Labelled,
    threat: Threat,
    out: Path,
    seed: int,
    effort: Effort,
    progress: Progress,
) -> list[dict[str, str]]:
    """The sanity checks of every defence, by rows; those of the file are not run again."""
    table = Table(out, CHECK_KEYS, ("seen", "passed"))
    few = Labelled(pictures.pictures[:CHECKED], pictures.labels[:CHECKED])
    found = []
    for defence in defended:
        cell = {
            "model": defence.model, "weights": fingerprint(defence.deployed), "defence": defence.name,
            "threat": str(threat), "pictures": len(few), "data": few.digest, "effort": str(effort), "seed": seed,
        }  # fmt: skip
        if table.find({**cell, "check": LAST}) is None:
            task = progress.add_task(f"checks of {defence.model}, {defence.name}", total=None)
            for check in checks(defence.deployed, few, threat, seed, 10 * effort.steps):
                table.add({**cell, "check": check.name, "seen": check.seen, "passed": check.passed})
            table.add({**cell, "check": LAST, "seen": "", "passed": True})
            progress.remove_task(task)
        found += [
            {name: row[name] for name in ("model", "defence", "threat", "check", "seen", "passed")}
            for row in table.rows
            if row["check"] != LAST and all(row[name] == str(value) for name, value in cell.items())
        ]
    return list({(row["model"], row["defence"], row["check"]): row for row in found}.values())
