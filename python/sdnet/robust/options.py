"""sdnet robust, sdnet calibrate, sdnet attack and sdnet report on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .attacks import AUTO
from .corruptions import NOISES

ModelName = Annotated[list[str], typer.Option(help="A shipped model, the folder of a run, or of sdnet calibrate.")]
Against = Annotated[list[str] | None, typer.Option(help="Models to compare with, such as a ResNet.")]
Data = Annotated[str, typer.Option(help="cifar10, cifar100, fashion_mnist or digits.")]
Root = Annotated[Path | None, typer.Option(help="Folder or archive that holds the data.")]
Count = Annotated[int, typer.Option(help="Test pictures, at even distances.", min=1)]
Out = Annotated[Path, typer.Option(help="Folder; a run that was stopped goes on there.", file_okay=False)]
Seed = Annotated[int, typer.Option(help="Of the noise.", min=0)]
Lmbdas = Annotated[list[float] | None, typer.Option(help="Of the stem; 0.1, 0.2, ..., 1.4 without.")]


def register(app: typer.Typer, interruptible) -> None:
    """Add the commands to the program."""

    @app.command()
    def robust(
        model: ModelName,
        out: Out,
        corruption: Annotated[list[str] | None, typer.Option(help="The four noises of CIFAR-10-C without.")] = None,
        severity: Annotated[list[int] | None, typer.Option(help="1 to 5; all without.")] = None,
        scan: Annotated[
            bool, typer.Option("--scan", help="The stronger levels of the published scan too.")
        ] = False,
        lmbda: Lmbdas = None,
        against: Against = None,
        data: Data = "cifar10",
        root: Root = None,
        pictures: Count = 1000,
        seed: Seed = 0,
        cifar10c: Annotated[
            Path | None, typer.Option(help="Folder of CIFAR-10-C's .npy files, read for severities.")
        ] = None,
    ) -> None:
        """Accuracy over lmbda for noises of rising strength, and what automatic lmbda makes of it."""
        with user_errors(interruptible):
            from rich.console import Console

            from .commands import run_sweep
            from .sweep import LMBDAS

            run_sweep(
                model, against or [], data, root, pictures, out, corruption or NOISES, severity or range(1, 6),
                scan, lmbda or LMBDAS, seed, cifar10c, Console(),
            )  # fmt: skip

    @app.command()
    def calibrate(
        model: Annotated[str, typer.Argument(help="A shipped model, or the folder of a run.")],
        out: Annotated[Path, typer.Option(help="Folder of the calibrated model.", file_okay=False)],
        data: Data = "cifar10",
        root: Root = None,
        pictures: Annotated[int, typer.Option(help="Training pictures to calibrate on.", min=4)] = 600,
        seed: Seed = 0,
    ) -> None:
        """Find how lmbda follows from a picture's noise, on training pictures, and save it with the model."""
        with user_errors(interruptible):
            from rich.console import Console

            from .commands import run_calibration

            run_calibration(model, data, root, pictures, out, seed, Console())

    @app.command()
    def attack(
        model: ModelName,
        out: Out,
        lmbda: Annotated[list[float] | None, typer.Option(help="Raised lmbda of the stem to defend with.")] = None,
        threat: Annotated[
            list[str] | None, typer.Option(help="Such as Linf:2/255 or L2:0.5; the six of the table without.")
        ] = None,
        attacks: Annotated[str, typer.Option(help="Of AutoAttack, by commas; empty for PGD alone.")] = ",".join(
            AUTO
        ),
        restarts: Annotated[int, typer.Option(help="Of PGD.", min=1)] = 5,
        steps: Annotated[int, typer.Option(help="Of the longer PGD, APGD and FAB.", min=1)] = 100,
        queries: Annotated[int, typer.Option(help="Of Square.", min=1)] = 5000,
        against: Against = None,
        data: Data = "cifar10",
        root: Root = None,
        pictures: Count = 500,
        seed: Seed = 0,
    ) -> None:
        """Accuracy under white-box, transferred and black-box attacks, and whether the numbers can be trusted."""
        with user_errors(interruptible):
            from rich.console import Console

            from .attack_command import run_attack
            from .attacks import Effort
            from .evaluation import THREATS

            chosen = [name for name in attacks.split(",") if name]
            unknown = sorted(set(chosen) - set(AUTO))
            if unknown:
                raise ValueError(f"no attack {', '.join(unknown)}; there is {', '.join(AUTO)}")
            run_attack(
                model, against or [], lmbda or [0.5], data, root, pictures, out,
                [parsed(text) for text in threat or []] or THREATS, chosen, Effort(restarts, steps, queries), seed,
                Console(),
            )  # fmt: skip

    @app.command()
    def report(
        model: Annotated[str, typer.Argument(help="A shipped model, the folder of a run, or of sdnet calibrate.")],
        out: Annotated[Path, typer.Option(help="The page, an .html file.", dir_okay=False)],
        results: Annotated[
            Path | None, typer.Option(help="Folder of sdnet robust and sdnet attack, shown where it has them.")
        ] = None,
        data: Data = "cifar10",
        root: Root = None,
        pictures: Count = 1000,
    ) -> None:
        """One HTML page: accuracy, noise, attacks, certified radius, dictionary and what the codes describe."""
        with user_errors(interruptible):
            from ..files import check_page
            from .page import write_page

            check_page(out)
            if results is not None and not results.is_dir():
                raise ValueError(f"--results {results} is no folder")
            write_page(out, model, results, data, root, pictures)
            typer.echo(f"written: {out}")


def parsed(text: str):
    """A threat as the command line has it: norm:eps, eps a number or a fraction."""
    from fractions import Fraction

    from .attacks import Threat

    norm, _, eps = text.partition(":")
    try:
        value = float(Fraction(eps))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a threat is norm:eps, such as Linf:8/255 or L2:0.5; got {text!r}") from None
    return Threat(norm, value)


def user_errors(interruptible):
    """`interruptible`, which also shows the message alone where an argument has a wrong value."""
    from contextlib import contextmanager

    from ..errors import UserError

    @contextmanager
    def guarded():
        with interruptible():
            try:
                yield
            except ValueError as error:
                raise UserError(str(error)) from None

    return guarded()
