"""The commands sdnet attack and sdnet report."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from attack_fixtures import automatic, digits, model  # noqa: F401
from sdnet import cli
from sdnet.robust.adaptive import AdaptiveClassifier
from typer.testing import CliRunner


def command(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def results(automatic: AdaptiveClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack")
    automatic.save_pretrained(folder / "own")
    arguments = (
        "attack", "--model", folder / "own", "--out", folder / "out", "--data", "digits", "--pictures", 6,
        "--threat", "Linf:16/255", "--attacks", "square", "--steps", 3, "--restarts", 1, "--queries", 3,
    )  # fmt: skip
    for kept in (0, 18):
        result = command(*arguments)
        assert result.exit_code == 0 and f"18 cells, {kept} of them" in result.output, result.output
    result = command(
        "robust", "--model", folder / "own", "--out", folder / "out", "--data", "digits", "--pictures", 6,
        "--corruption", "shot_noise", "--severity", 5, "--lmbda", 0.1, "--lmbda", 0.5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    arguments = ("--results", folder / "out", "--data", "digits", "--pictures", 12)
    result = command("report", folder / "own", "--out", folder / "page.html", *arguments)
    assert result.exit_code == 0, result.output
    return folder


def test_attack_writes_tables_and_checks(results: Path) -> None:
    text = (results / "out" / "attack.md").read_text()
    assert "published setting, overstates" in text and "planted adversarial examples found" in text


def test_the_page_holds_all_results(results: Path) -> None:
    text = (results / "page.html").read_text()
    shown = re.sub(r"base64,[^\"]*", "", text)
    for heading in ("Clean accuracy", "Noise", "Attacks", "Checks", "Certified radius", "Dictionary", "describe"):
        assert re.search(f"<h2>[^<]*{heading}", shown), heading
    assert not re.search(r"(https?:)?//[a-z]", shown) and ": vacuous:" in shown


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_opens_in_a_browser(results: Path, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    script = "<script>for(const i of document.images)document.title+=' '+(i.complete?i.naturalWidth:0)</script>"
    seen = tmp_path / "seen.html"
    seen.write_text((results / "page.html").read_text().replace("</body>", f"{script}</body>"))
    done = subprocess.run(["chromium", *options, seen.as_uri()], capture_output=True, text=True, timeout=120)
    widths = re.search(r"<title>own((?: \d+)+)</title>", done.stdout)
    assert widths and len(widths[1].split()) == 4 and all(int(width) > 300 for width in widths[1].split())


@pytest.mark.parametrize(
    "options, message",
    [
        (["--threat", "L3:1"], "norm must be one of"),
        (["--threat", "L2:none"], "such as Linf:8/255"),
        (["--attacks", "hope"], "no attack hope; there is apgd-ce"),
        (["--lmbda", "-1"], "lmbda must be at least 0"),
        (["--model", "nowhere"], "no model 'nowhere'"),
    ],
)
def test_bad_input_to_attack_ends_with_a_message(
    options: list[str], message: str, results: Path, tmp_path: Path
) -> None:
    result = command(
        "attack", "--model", results / "own", "--out", tmp_path, "--data", "digits", "--pictures", 2, *options
    )
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
