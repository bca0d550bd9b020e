"""python -m sdnet.robust.document RESULTS... PAGE: the tables and figures of a page, made from CSV files alone.

RESULTS are folders of `sdnet robust` and `sdnet attack`, of which each place takes the first that has something of
its model. PAGE is a Markdown file with places of the form

    <!-- noise MODEL --> ... <!-- end -->

for noise, claims, cost, detection, attacks and checks of a model; what stands in a place is written anew. Figures
go to a folder beside the page, of the page's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..files import written_aside
from .attack_command import LAST
from .curves import claims, curve_figure, markdown, save, table_rows
from .detect import VALUES as SCORES
from .evaluation import strength_checks
from .evaluation import table_rows as attack_rows
from .table import Row, latest, read

PLACE = re.compile(r"(<!-- (\w+) ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Nothing yet: no run has been recorded."


def rows_of(results: Path, file: str, model: str) -> list[Row]:
    """A model's rows of a file, of its last weights."""
    return [row for row in latest(read(results / file)) if row["model"] == model]


def noise(results: Path, model: str, page: Path) -> str:
    rows = latest(read(results / "sweep.csv"))
    figure = page.with_suffix("") / f"{model}.png"
    shown = table_rows(rows, model)
    if not shown:
        return NOTHING
    save(curve_figure(rows, model), figure)
    return f"![Accuracy over lmbda]({figure.relative_to(page.parent)})\n\n{markdown(shown)}"


def said(results: Path, model: str, page: Path) -> str:
    return "\n".join(f"- {sentence}" for sentence in claims(latest(read(results / "sweep.csv")), model)) or NOTHING


def plain(file: str, columns: tuple[str, ...]) -> Callable[[Path, str, Path], str]:
    """Some columns of a file as they are."""

    def made(results: Path, model: str, page: Path) -> str:
        rows = [row for row in rows_of(results, file, model) if row.get("check") != LAST]
        return markdown([{name: row[name] for name in columns} for row in rows]) or NOTHING

    return made


def attacks(results: Path, model: str, page: Path) -> str:
    rows = rows_of(results, "attack.csv", model)
    return f"{markdown(attack_rows(rows))}\n\n{markdown(strength_checks(rows))}" if rows else NOTHING


PARTS: dict[str, Callable[[Path, str, Path], str]] = {
    "noise": noise,
    "claims": said,
    "cost": plain(
        "cost.csv", ("method", "images_per_second", "automatic_images_per_second", "share_of_inference_time")
    ),
    "detection": plain("detect.csv", ("corruption", "severity", "constant", *SCORES)),
    "attacks": attacks,
    "checks": plain("checks.csv", ("defence", "threat", "check", "seen", "passed")),
}


def document(results: Sequence[Path], page: Path) -> None:
    """Write every place of a page anew, each from the first of the folders that has something for it.

    Raises:
        UserError: the page is missing, or asks for a part that there is not.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {page}: {error.strerror}") from None

    def filled(place: re.Match[str]) -> str:
        if place[2] not in PARTS:
            raise UserError(f"{page} asks for {place[2]!r}; there is {', '.join(PARTS)}")
        texts = (PARTS[place[2]](folder, place[3], page) for folder in results)
        return f"{place[1]}\n{next((text for text in texts if text != NOTHING), NOTHING)}\n\n{place[4]}"

    made = PLACE.sub(filled, text)
    with written_aside(page) as aside:
        aside.write_text(made, encoding="utf-8")


def main(
    results: Annotated[list[Path], typer.Argument(help="Folders of sdnet robust and sdnet attack.")],
    page: Annotated[Path, typer.Argument(help="A Markdown file with places to fill.")],
) -> None:
    """Fill the tables and figures of a page from CSV files."""
    try:
        document(results, page)
    except UserError as error:
        typer.echo(f"sdnet: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
