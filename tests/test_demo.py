"""python -m sdnet demo: what it writes, what it says, and how it ends."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import csc_kernels as csc

for package in ("matplotlib", "rich", "skimage", "sklearn", "typer"):
    pytest.importorskip(package)

from matplotlib.image import imread  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from sdnet import cli, demo, pictures, race, sheet  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

QUICK = ["--quick", "--steps", "4", "--iterations", "30"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one quick run."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(out), *QUICK])
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture(scope="module")
def rows(finished: tuple[Path, str]) -> list[dict[str, str]]:
    with (finished[0] / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of_table(rows: list[dict[str, str]], table: str) -> list[dict[str, str]]:
    return [row for row in rows if row["table"] == table]


def test_a_run_writes_the_sheet_and_the_results_and_nothing_else(finished: tuple[Path, str]) -> None:
    assert sorted(os.listdir(finished[0])) == ["results.csv", "sheet.png"]


def test_the_sheet_is_a_picture_with_content(finished: tuple[Path, str]) -> None:
    image = imread(finished[0] / "sheet.png")
    assert image.shape[0] > 1000 and image.shape[1] > 1000
    assert 0.1 < image[..., :3].std() < 0.5


def test_every_photograph_is_sparse_and_comes_back(rows: list[dict[str, str]]) -> None:
    coded = of_table(rows, "code")
    assert {row["case"] for row in coded} == set(pictures.photographs((8, 8)))
    for row in coded:
        assert 25 < float(row["psnr_db"]) < 60
        assert 0 < float(row["nonzero"]) < 0.25
        assert float(row["ms"]) > 0


def test_a_moderate_lmbda_takes_most_noise_off(rows: list[dict[str, str]]) -> None:
    denoised = of_table(rows, "denoise")
    lmbdas, nonzeros, psnrs = ([float(row[name]) for row in denoised] for name in ("lmbda", "nonzero", "psnr_db"))
    assert lmbdas == sorted(lmbdas)
    assert nonzeros == sorted(nonzeros, reverse=True)
    assert max(psnrs) > -20 * math.log10(demo.NOISE) + 4
    assert max(psnrs) > max(psnrs[0], psnrs[-1]) + 0.3


def test_every_contender_is_timed_on_both_shapes(rows: list[dict[str, str]]) -> None:
    speed = of_table(rows, "speed")
    cases = {row["case"] for row in speed}
    contenders = ["as shipped", "cleaned eager", "csc_kernels", "plain conv2d"]
    assert len(cases) == 2
    for case in cases:
        assert sorted(row["contender"] for row in speed if row["case"] == case) == contenders
    assert all(float(row["ms"]) > 0 for row in speed)
    assert all(row["backend"] == csc.available_backends()[0] for row in rows)


def test_the_printed_numbers_are_those_of_the_results(
    finished: tuple[Path, str], rows: list[dict[str, str]]
) -> None:
    """Both are rounded from one number: half of the results' last digit is left open."""
    for row in of_table(rows, "code") + of_table(rows, "denoise"):
        decibels, nonzero = float(row["psnr_db"]), float(row["nonzero"])
        assert any(f"{decibels + half:.1f} dB" in finished[1] for half in (-5e-4, 5e-4))
        assert any(f"{nonzero + half:.2%}" in finished[1] for half in (-5e-7, 5e-7))


def test_the_contenders_compute_the_same_code() -> None:
    layer = csc.CSCConv2d(3, 8, 3, padding=1).eval()
    x = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        calls = race.contenders(layer, x)
        torch.testing.assert_close(calls[race.OWN](), calls["cleaned eager"](), rtol=1e-4, atol=1e-6)


def test_learning_makes_codes_cheaper_and_repeats() -> None:
    seen = torch.cat([x - pictures.low_pass(x) for x in pictures.photographs((48, 64)).values()])

    def learned(steps: int) -> csc.CSCConv2d:
        with Progress(disable=True) as progress:
            return demo.learn(seen, demo.Settings(steps=steps), progress)

    @torch.no_grad()
    def cost(layer: csc.CSCConv2d) -> float:
        z = layer(seen)
        r = csc.residual(seen, z, layer.dictionary(), padding=layer.padding)
        return (0.5 * r.square().sum() + layer.lmbda * z.abs().sum()).item()

    first, again, start = learned(12), learned(12), learned(0)
    assert torch.equal(first.weight, again.weight)
    assert cost(first) < 0.9 * cost(start)
    norms = first.dictionary().detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


class TestPictures:
    def test_photographs_have_the_size_and_range_that_was_asked_for(self) -> None:
        found = pictures.photographs((40, 56))
        assert demo.HELD_OUT in found and len(found) == 6
        for x in found.values():
            assert x.shape == (1, 3, 40, 56) and x.is_contiguous()
            assert 0 <= x.min() < 0.3 and 0.6 < x.max() <= 1

    def test_low_pass_keeps_what_is_constant_and_removes_what_alternates(self) -> None:
        constant = torch.full((1, 3, 30, 31), 0.7)
        torch.testing.assert_close(pictures.low_pass(constant), constant)
        alternating = torch.ones(1, 1, 30, 30)
        alternating[..., ::2] = -1
        # What is left is the tail of the Gaussian, cut at three deviations.
        assert pictures.low_pass(alternating).abs().max() < 1e-3

    def test_psnr_is_that_of_the_mean_squared_error(self) -> None:
        truth = torch.rand(3, 8, 8)
        assert pictures.psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)

    def test_random_crops_are_parts_of_the_images(self) -> None:
        images = torch.arange(2.0 * 3 * 9 * 8).view(2, 3, 9, 8)
        for crop in pictures.random_crops(images, 20, 4, torch.Generator().manual_seed(0)):
            index, rest = divmod(int(crop[0, 0, 0]), 3 * 9 * 8)
            top, left = divmod(rest, 8)
            assert torch.equal(crop, images[index, :, top : top + 4, left : left + 4])

    def test_a_mosaic_shows_each_atom_in_its_place(self) -> None:
        atoms = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
        tiles = sheet.mosaic(atoms, columns=3)
        assert tiles.shape == (3, 2 * 5 + 1, 3 * 7 + 1)
        torch.testing.assert_close(tiles[:, 6:10, 8:14], 0.5 + 0.5 * atoms[4] / atoms[4].abs().max())
        assert (tiles[:, 6:10, 15:] == 1).all()

    def test_files_written_aside_appear_together_or_not_at_all(self, tmp_path: Path) -> None:
        first, second = tmp_path / "a.txt", tmp_path / "b.txt"
        first.write_text("before")
        with pytest.raises(KeyboardInterrupt), pictures.written_aside(first, second) as asides:
            asides[0].write_text("half")
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == ["a.txt"] and first.read_text() == "before"
        with pictures.written_aside(first, second) as asides:
            for aside in asides:
                aside.write_text("after")
            assert first.read_text() == "before" and not second.exists()
        assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"] and first.read_text() == "after"


# How it ends.


def test_interrupted_while_drawing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_drawn(path: Path, *found: object) -> None:
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "draw_sheet", half_drawn)
    monkeypatch.setattr(demo, "run_races", lambda *arguments, **options: [])
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path), *QUICK])
    assert result.exit_code == 130
    assert "interrupted" in result.output and "Traceback" not in result.output
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_while_learning_ends_with_130_and_no_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdnet", "demo", "--out", str(tmp_path), "--quick", "--steps", "100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def hear() -> None:
        """What a script starts in its background is born deaf to SIGINT."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, **pipes, preexec_fn=hear) as process:
        assert "csc_kernels" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("package", ["skimage", "sklearn", "matplotlib", "rich"])
def test_a_missing_package_is_named_in_one_line(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith((f"{package}.", "sdnet."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", ["sdnet", "demo", "--out", str(tmp_path / "out"), *QUICK])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == f'sdnet needs {package}: pip install "csc_kernels[sdnet]"'


@pytest.mark.parametrize(
    "option, value",
    [
        ("--lmbda", "-0.1"), ("--lmbda", "nan"), ("--lmbda", "inf"), ("--lmbda", "much"),
        ("--iterations", "0"), ("--steps", "-1"), ("--threads", "0"), ("--seed", "x"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_before_any_work(option: str, value: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "out"), option, value])
    assert result.exit_code == 2
    assert option in result.output
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        result = CliRunner().invoke(cli.app, ["demo", "--out", str(out), *QUICK])
        assert result.exit_code == 2 and "--out" in result.output
    assert (tmp_path / "file").read_text() == "kept"


def test_threads_are_set_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(demo, "run", lambda out, settings, console: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        assert CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path), "--threads", "1"]).exit_code == 0
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_the_table_of_denoising_marks_the_best() -> None:
    truth, code = torch.rand(1, 3, 16, 16), torch.zeros(1, 4, 16, 16)
    items = [
        demo.Coded("x", lmbda, truth, truth + 0.1, code, truth + error, 1.0)
        for lmbda, error in ((0.1, 0.05), (0.2, 0.01), (0.3, 0.07))
    ]
    table = demo.denoising_table(items)
    assert [row.style for row in table.rows] == [None, "bold", None]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    assert "40.0 dB" in captured.get()
