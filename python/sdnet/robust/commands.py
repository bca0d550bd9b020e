"""The commands sdnet robust and sdnet calibrate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..errors import UserError
from ..files import written_aside
from ..models import Classifier
from ..pretrained import load_model
from .adaptive import METHODS, AdaptiveClassifier, adapt
from .cost import VALUES as COST
from .cost import cost
from .curves import AUTOMATIC, claims, curve_figure, markdown, save, table_rows
from .detect import VALUES as SCORES
from .detect import detect
from .pictures import Labelled, arrays, check_classes, spread
from .stem import own_lmbda, stem_layers
from .sweep import grid, lmbdas_of, sweep
from .table import Row, read

STRENGTH = ("corruption", "severity", "constant")


def test_pictures(models: Sequence[Classifier], data: str, root: Path | None, count: int) -> Labelled:
    """Test pictures of a data set whose classes the models know."""
    found = arrays(data, root)
    for model in models:
        check_classes(model, found)
    return spread(found.test, count)


def sparse_model(name: str) -> Classifier:
    """A model by name or folder, which has a sparse coding layer."""
    model = load_model(name)
    try:
        stem_layers(model)
    except ValueError as error:
        raise UserError(f"{name}: {error}. Name it with --against") from None
    return model


def automatic(model: Classifier) -> AdaptiveClassifier | None:
    """The model with automatic lmbda, where it brings its calibration along."""
    if isinstance(model, AdaptiveClassifier):
        return model
    return adapt(model) if model.calibration is not None else None


def fixed(model: Classifier) -> Classifier:
    """The model with fixed lmbda that an automatic one was made from."""
    if not isinstance(model, AdaptiveClassifier):
        return model
    made = Classifier(**model.arguments)
    made.network = copy.deepcopy(model.network)  # With what was set in its layers.
    for name in ("mean", "std"):
        setattr(made, name, getattr(model, name).clone())
    made.calibration = model.lines
    return made.eval()


def check_titles(names: Sequence[str]) -> None:
    """Tables call a model by the last part of its path."""
    titles = [Path(name).name for name in names]
    doubles = sorted({title for title in titles if titles.count(title) > 1})
    if doubles:
        raise UserError(f"several models are called {doubles[0]!r}: name the folders above, or rename one")


def kind_of(row: Row) -> tuple[str, ...]:
    return row["model"], row["weights"], row["data"], row["source"].partition(",")[0]


def run_sweep(
    names: Sequence[str], against: Sequence[str], data: str, root: Path | None, count: int, out: Path,
    corruptions: Sequence[str], severities: Sequence[int], scan: bool, lmbdas: Sequence[float], seed: int,
    published: Path | None, console: Console,
) -> None:  # fmt: skip
    """Everything of `sdnet robust`: sweep.csv, a figure per model, and table.md in the folder `out`."""
    check_titles((*names, *against))
    models: dict[str, Classifier] = {}
    for name in names:
        given = sparse_model(name)
        models[Path(name).name] = fixed(given)
        own = automatic(given)
        if own is not None:
            models[Path(name).name + AUTOMATIC] = own
    for name in against:
        models[Path(name).name] = load_model(name)
    strengths = grid(corruptions, severities, scan)
    pictures = test_pictures(list(models.values()), data, root, count)
    total = len(strengths) * sum(len(lmbdas_of(model, lmbdas)) for model in models.values())
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        seen: list[Row] = []
        kept = 0
        for row, new in sweep(models, pictures, out / "sweep.csv", strengths, lmbdas, seed, published):
            seen.append(row)
            kept += not new
            rate = f", {float(row['images_per_second']):.0f} images/s" if new else ""
            progress.update(task, advance=1, description=f"{row['model']}, {row['corruption']}{rate}")
    console.print(f"{total} cells, {kept} of them from before; source: {row['source']}", highlight=False)
    # Other seeds of the same, and no rows of other weights, numbers of pictures or kinds of source.
    kinds = {kind_of(row) for row in seen}
    rows = [row for row in read(out / "sweep.csv") if kind_of(row) in kinds]
    parts = []
    for name in dict.fromkeys(Path(name).name for name in names):
        save(curve_figure(rows, name), out / f"{name}.png")
        trained = own_lmbda(models[name])
        said = "\n".join(f"- {sentence}" for sentence in claims(rows, name, trained))
        found = list(detect(name, models[name], pictures, out / "detect.csv", strengths, seed, published))
        shown = [{kind: row[kind] for kind in (*STRENGTH, *SCORES)} for row in found]
        parts.append(
            f"## {name}, {len(pictures)} pictures\n\n{markdown(table_rows(rows, name, trained))}\n\n{said}\n\n"
            f"Clean against noisy pictures, AUROC of four scores:\n\n{markdown(shown)}\n"
        )
        adapted = models.get(name + AUTOMATIC)
        if isinstance(adapted, AdaptiveClassifier):
            spent = cost(name, models[name], adapted, pictures, out / "cost.csv")
            share, without, using = (float(spent[kind]) for kind in COST)
            parts.append(
                f"Automatic lmbda ({adapted.method}) takes {share:.1%} of inference time: {without:.0f} images/s "
                f"without, {using:.0f} with.\n"
            )
    with written_aside(out / "table.md") as aside:
        aside.write_text("\n".join(parts))
    console.print("\n".join(parts), highlight=False, markup=False)
    console.print(f"written: {out / 'sweep.csv'}, {out / 'table.md'} and a figure per model", highlight=False)


def run_calibration(
    name: str, data: str, root: Path | None, count: int, out: Path, seed: int, console: Console
) -> None:
    """Everything of `sdnet calibrate`: the model with its lines in the folder `out`."""
    model = sparse_model(name)
    found = arrays(data, root)
    check_classes(model, found)
    held_out = spread(found.train, count)
    with console.status(f"calibrating on {len(held_out)} training pictures"):
        made = adapt(fixed(model), None, held_out.pictures, held_out.labels, seed=seed)
    made.calibration = made.lines
    made.save(out)
    for method in METHODS:
        slope, intercept = getattr(made, f"line_{method}").tolist()
        chosen = ", the best one" if method == made.method else ""
        console.print(f"{method}: lmbda = {slope:.4g} f + {intercept:.4g}{chosen}", highlight=False)
    console.print(f"written: {out}", highlight=False)
