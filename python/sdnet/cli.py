"""The command sdnet: one subcommand per job."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

OPTIONAL = {
    "PIL", "huggingface_hub", "jsonargparse", "lightning", "matplotlib", "numpy", "rich", "safetensors", "skimage",
    "sklearn", "tensorboard", "timm", "torchdeq", "torchvision", "typer",
}  # fmt: skip


def missing(error: ModuleNotFoundError) -> SystemExit:
    """The end of a program that lacks one of the packages of the extra "sdnet"."""
    name = (error.name or "").split(".")[0]
    if name not in OPTIONAL:
        raise error
    return SystemExit(f'sdnet needs {name}: pip install "csc_kernels[sdnet]"')


try:
    import typer
except ModuleNotFoundError as error:
    raise missing(error) from None

from .robust.options import register  # noqa: E402

RECIPES = sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))

app = typer.Typer(help="SDNet: image classifiers with sparse coding layers.", no_args_is_help=True)


def finite(value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise typer.BadParameter(f"must be finite and greater than 0, got {value}")
    return value


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for sheet.png and results.csv.", file_okay=False)],
    lmbda: Annotated[float, typer.Option(help="Weight of the l1 norm.", callback=finite)] = 0.1,
    iterations: Annotated[int, typer.Option(help="FISTA iterations per picture.", min=1)] = 40,
    steps: Annotated[int, typer.Option(help="Steps of Adam for the dictionary.", min=0)] = 120,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch; its own choice without.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the dictionary and the noise.", min=0, max=2**63 - 2)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small pictures and few steps, for tests.")] = False,
) -> None:
    """Learn a dictionary from photographs, code them, take noise off one, and time the layer."""
    with interruptible():
        import torch
        from rich.console import Console

        from .demo import Settings, run

        if threads is not None:
            torch.set_num_threads(threads)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"cannot make {out}: {error.strerror}", param_hint="--out") from None
        run(out, Settings(lmbda, iterations, steps, seed, quick), Console())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help=f"A YAML file, or one of {', '.join(RECIPES)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that has a run goes on.", file_okay=False)],
    smoke: Annotated[bool, typer.Option("--smoke", help="A minute's trial: 2 epochs of random pictures.")] = False,
) -> None:
    """Train a model. Every field of the recipe is an option too, behind RECIPE: --epochs 3 --data.root DIR.

    The same command goes on with a run that was stopped, at its last checkpoint.
    """
    with interruptible():
        from rich.console import Console

        from .training import recipes
        from .training.loop import train as run

        wanted = recipes.read_recipe(recipe, context.args)
        run(recipes.smoke(wanted) if smoke else wanted, out, Console())


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A shipped model, the folder of a run, or of save_pretrained.")],
    out: Annotated[Path, typer.Option(help="The page, an .html file.", dir_okay=False)],
    pictures: Annotated[Path | None, typer.Option(help="Picture files in a folder; the digits without.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG.", file_okay=False)] = None,
) -> None:
    """One HTML page: dictionary, most active atoms, histograms, sparsity and what the codes describe."""
    with interruptible():
        from .errors import UserError
        from .files import check_page
        from .pretrained import load_model
        from .reading.pictures import few_pictures
        from .reading.report import write_report

        check_page(out)
        try:
            write_report(out, load_model(model), few_pictures(pictures), model, figures)
        except ValueError as error:
            raise UserError(str(error)) from None
        typer.echo(f"written: {out}")


@app.command()
def invert(
    model: Annotated[str, typer.Argument(help="A shipped model, the folder of a run, or of save_pretrained.")],
    out: Annotated[Path, typer.Option(help="The figure, a .png file.", dir_okay=False)],
    layer: Annotated[list[str] | None, typer.Option(help="Name of a layer; all that can be inverted.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Picture files in a folder; the digits without.")] = None,
) -> None:
    """The pictures that the codes of a network's layers describe."""
    with interruptible():
        from .errors import UserError
        from .files import written_aside
        from .pretrained import load_model
        from .reading.figures import inversion_figure
        from .reading.inversion import invertible_layers
        from .reading.pictures import few_pictures

        if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg"):
            raise UserError(f"--out is a figure and must end in .png, .jpg, .pdf or .svg, got {out}")
        network = load_model(model)
        try:
            layers = layer or invertible_layers(network)
            if not layers:
                raise UserError(f"{model} has no sparse coding layer to invert")
            figure = inversion_figure(network, few_pictures(pictures), layers)
        except ValueError as error:
            raise UserError(str(error)) from None
        with written_aside(out) as aside:
            figure.savefig(aside, dpi=120)
        typer.echo(f"written: {out}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the command with one line and exit code 130, a user's mistake with its message and 1."""
    from .errors import UserError

    try:
        yield
    except UserError as error:
        typer.echo(f"sdnet: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: no half-written file is left", err=True)
        raise typer.Exit(130) from None


register(app, interruptible)


def main() -> None:
    """Run the command; a package that is missing is named in one line."""
    try:
        app()
    except ModuleNotFoundError as error:
        raise missing(error) from None
