"""Inference at other lmbda: the stem, sweeps that go on, what they say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from robust_helpers import digits, tiny  # noqa: F401
from sdnet import adapt, cli, corrupt
from sdnet.errors import UserError
from sdnet.robust import curves, sweep
from sdnet.robust.corruptions import SCAN
from sdnet.robust.document import document
from sdnet.robust.pictures import Labelled, spread_numbers
from sdnet.robust.stem import AtLmbda, AverageOver, stem_layers, stem_lmbda
from sdnet.robust.table import Table, latest, read
from typer.testing import CliRunner

import csc_kernels as csc

# The stem.


def test_a_stems_lmbda_changes_its_code_and_comes_back(digits: Labelled) -> None:
    model, x = tiny(), digits.pictures / 255
    layer = model.network.layer0[0].dn
    plain = model(x)
    with stem_lmbda(model, 2.0):
        raised = model(x)
        layer_code = layer(x)
    expected = csc.fista(x, layer.dictionary(), 2.0, layer.step_size, layer.n_iter, padding=1)
    torch.testing.assert_close(layer_code, expected)
    assert not torch.allclose(plain, raised) and torch.equal(model(x), plain)


def test_a_stems_lmbda_comes_back_after_an_error() -> None:
    model = tiny()
    with pytest.raises(RuntimeError), stem_lmbda(model, 1.0):
        raise RuntimeError
    assert model.network.layer0[0].dn.lmbda == 0.1


def test_only_the_stem_changes_in_a_network_of_codes() -> None:
    model = tiny("sdnet18_all")
    with stem_lmbda(model, 0.7):
        lmbdas = [layer.lmbda for layer in model.modules() if isinstance(layer, csc.CSCConv2d)]
    assert lmbdas == [0.7] + [0.1] * 16


def test_each_picture_can_have_its_lmbda(digits: Labelled) -> None:
    model, x = tiny(), digits.pictures[:2] / 255
    with stem_lmbda(model, torch.tensor([0.2, 0.9]).view(2, 1, 1, 1)):
        both = model(x)
    for i, lmbda in enumerate((0.2, 0.9)):
        torch.testing.assert_close(both[i : i + 1], AtLmbda(model, lmbda)(x[i : i + 1]))


def test_the_average_over_lmbda_is_of_log_probabilities(digits: Labelled) -> None:
    model, x = tiny(), digits.pictures[:3] / 255
    parts = [AtLmbda(model, lmbda)(x).log_softmax(-1) for lmbda in (0.1, 0.5)]
    found = AverageOver(model, (0.1, 0.5))(x)
    torch.testing.assert_close(found, sum(parts) / 2)
    assert (found - (sum(part.exp() for part in parts) / 2).log()).abs().max() > 1e-3


def test_a_resnet_has_no_lmbda() -> None:
    for call in (stem_layers, adapt, lambda model: AtLmbda(model, 0.1)):
        with pytest.raises(ValueError, match="lmbda has no meaning in this model: ResNet"):
            call(tiny("resnet18"))


@pytest.mark.parametrize("lmbda", [-0.1, float("nan"), float("inf")])
def test_a_negative_lmbda_is_refused(lmbda: float) -> None:
    with pytest.raises(ValueError, match="lmbda must be at least 0"), stem_lmbda(tiny(), lmbda):
        pass


# Tables and sweeps.


def test_a_table_goes_on_and_holds_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "a" / "t.csv"
    table = Table(path, ("name", "lmbda"), ("value",))
    table.add({"name": "a", "lmbda": None, "value": 0.5})
    again = Table(path, ("name", "lmbda"), ("value",))
    assert (
        again.find({"name": "a", "lmbda": None})["value"] == "0.5" and again.find({"name": "b", "lmbda": 1}) is None
    )
    assert path.read_text().splitlines() == ["name,lmbda,value", "a,,0.5"]
    assert [file.name for file in path.parent.iterdir()] == ["t.csv"]


def test_a_file_of_another_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has the columns a, b, not x, y"):
        Table(tmp_path / "t.csv", ("x",), ("y",))


def run(models: dict, digits: Labelled, out: Path, **options) -> list[tuple[dict, bool]]:
    strengths = sweep.grid(["shot_noise"], [5], scan=False)
    return list(sweep.sweep(models, digits, out, strengths, (0.1, 1.0), **options))


def test_a_sweep_counts_right_answers(digits: Labelled, tmp_path: Path) -> None:
    """Right is what the model says of the noisy pictures at the second lmbda."""
    model = tiny()
    noisy = corrupt(digits.pictures, "shot_noise", 5) / 255
    with torch.no_grad():
        first, second = (AtLmbda(model, lmbda)(noisy).argmax(1) for lmbda in (0.1, 1.0))
    answered = Labelled(digits.pictures, second)
    rows = [row for row, _ in run({"m": model, "r": tiny("resnet18")}, answered, tmp_path / "s.csv")]
    assert [(row["corruption"], row["lmbda"]) for row in rows] == [
        (noise, lmbda) for noise in ("clean", "shot_noise") for lmbda in ("0.1", "1", "none")
    ]
    agreed = int((first == second).sum())
    assert [int(row["correct"]) for row in rows[3:5]] == [agreed, 20] and agreed < 20
    assert float(rows[3]["accuracy"]) == agreed / 20 and rows[4]["constant"] == "50"


def test_a_stopped_sweep_goes_on_without_computing_again(
    digits: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "s.csv", {"m": tiny()}
    stopped = sweep.sweep(model, digits, out, sweep.grid(["shot_noise"], [5], False), (0.1, 1.0))
    done = [next(stopped)[0] for _ in range(3)]
    stopped.close()
    assert read(out) == done
    calls = []
    monkeypatch.setattr(sweep, "correct", lambda *given: calls.append(given) or torch.ones(20, dtype=torch.bool))
    assert [new for _, new in run(model, digits, out)] == [False, False, False, True] and len(calls) == 1
    assert read(out)[:3] == done


def test_other_weights_are_computed_anew(digits: Labelled, tmp_path: Path) -> None:
    model = tiny()
    run({"m": model}, digits, tmp_path / "s.csv")
    model.network.linear.bias.data += 1
    assert all(new for _, new in run({"m": model}, digits, tmp_path / "s.csv"))


@pytest.mark.parametrize(
    "change",
    [
        lambda model, given: (model, Labelled(given.pictures, given.labels.flip(0))),
        lambda model, given: (model, Labelled(given.pictures.flip(0), given.labels)),
        lambda model, given: (csc.set_lmbda(model, 0.3), given),
        lambda model, given: (csc.set_lmbda(model, torch.full((2, 1, 1), 0.3)), given),
        lambda model, given: (setattr(model.network.layer0[0].dn, "n_iter", 4), given),
        lambda model, given: (setattr(model.network.layer0[0].dn, "mu", 0.5), given),
    ],
    ids=["labels", "pictures", "lmbda", "lmbda of atoms", "steps", "mu"],
)
def test_what_else_changes_is_computed_anew(change, digits: Labelled, tmp_path: Path) -> None:
    model = tiny()
    list(sweep.sweep({"m": model}, digits, tmp_path / "s.csv", [sweep.CLEAN], (0.1,)))
    _, given = change(model, digits)
    made = sweep.sweep({"m": model}, given, tmp_path / "s.csv", [sweep.CLEAN], (0.1,))
    assert all(new for _, new in made)


def test_the_grid_has_the_scans_levels_that_are_no_severities() -> None:
    wanted = sweep.grid(["gaussian_noise"], [1, 2, 3, 4, 5], scan=True)
    assert len(wanted) == 1 + 5 + 10 - 4 and len(set(wanted)) == len(wanted)
    assert wanted[0] == sweep.CLEAN and wanted[-1].constant == 0.2
    # A level that is a severity which nobody asked for stays in the scan.
    few = sweep.grid(["gaussian_noise"], [1], scan=True)
    assert set(SCAN["gaussian_noise"]) <= {strength.constant for strength in few}


def test_a_models_own_lmbda_is_always_swept() -> None:
    model = tiny(lmbda=0.25)
    assert sweep.lmbdas_of(model, (0.1, 0.5)) == [("0.25", 0.25), ("0.1", 0.1), ("0.5", 0.5)]
    assert sweep.lmbdas_of(model, (0.1, 0.25)) == [("0.1", 0.1), ("0.25", 0.25)]
    csc.set_lmbda(model, torch.full((2, 1, 1), 0.3))
    assert sweep.lmbdas_of(model, (0.1, 0.5)) == [("0.1", 0.1), ("0.5", 0.5)]
    (row,) = curves.table_rows(rows_of({0.1: 0.4, 0.25: 0.5}, 0.5, 0.3), "m", trained=0.25)
    assert row["training lmbda"] == "50.0"


def test_published_files_bring_their_labels_and_say_so(digits: Labelled, tmp_path: Path) -> None:
    numpy.save(tmp_path / "shot_noise.npy", numpy.zeros((100, 16, 16, 3), dtype=numpy.uint8))
    numpy.save(tmp_path / "labels.npy", numpy.arange(100) % 10)
    rows = run({"m": tiny()}, digits, tmp_path / "s.csv", published=tmp_path)
    assert [row["source"] for row, _ in rows] == ["clean"] * 2 + ["CIFAR-10-C files"] * 2
    found = sweep.corrupted(digits, sweep.Strength("shot_noise", 1, 500), 0, tmp_path)
    assert len(found) == 20 and found.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2


def test_pictures_are_spread_over_a_sorted_split() -> None:
    assert spread_numbers(10, 4).tolist() == [0, 2, 5, 7] and len(spread_numbers(3, 100)) == 3


# What a sweep says.


def rows_of(values: dict[float, float], automatic: float, alone: float, name: str = "shot_noise") -> list[dict]:
    level = {"weights": "", "corruption": name, "severity": "5", "constant": "50"}
    rows = [{**level, "model": "m", "lmbda": f"{lmbda:g}", "accuracy": str(a)} for lmbda, a in values.items()]
    rows.append({**level, "model": "m" + curves.AUTOMATIC, "lmbda": "automatic, noise", "accuracy": str(automatic)})
    return [*rows, {**level, "model": "r", "lmbda": "none", "accuracy": str(alone)}]


def test_the_table_shows_the_oracles_gain_and_our_share() -> None:
    (row,) = curves.table_rows(rows_of({0.1: 0.4, 0.2: 0.6, 0.3: 0.5}, 0.55, 0.3), "m")
    assert row["oracle's lmbda"] == "0.2" and row["share of the oracle's gain"] == "75%" and row["r"] == "30.0"


@pytest.mark.parametrize("values, one_peak", [((0.4, 0.6, 0.5), True), ((0.6, 0.4, 0.5), False)])
def test_a_second_rise_is_no_single_peak(values: tuple[float, ...], one_peak: bool) -> None:
    assert curves.curves(rows_of(dict(zip((0.1, 0.2, 0.3), values)), 0.5, 0.3))[0].unimodal == one_peak


def test_claims_are_said_whichever_way_they_come_out() -> None:
    said = "\n".join(curves.claims(rows_of({0.1: 0.6, 0.2: 0.4, 0.3: 0.5}, 0.5, 0.7), "m"))
    assert "unimodal (dips below 1 point aside) at 0 of 1" in said and "-20.0 points" in said
    assert "no lmbda beats the training lmbda: 1 of 1" in said


# The commands.


def command(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_calibrate_and_robust_write_their_files(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "plain")
    tiny("resnet18").save_pretrained(tmp_path / "resnet")
    result = command(
        "calibrate", tmp_path / "plain", "--out", tmp_path / "own", "--data", "digits", "--pictures", 8
    )
    assert result.exit_code == 0 and "the best one" in result.output, result.output
    arguments = (
        "robust", "--model", tmp_path / "own", "--against", tmp_path / "resnet", "--out", tmp_path / "out",
        "--data", "digits", "--pictures", 10, "--corruption", "impulse_noise", "--severity", 5,
        "--lmbda", 0.1, "--lmbda", 0.4,
    )  # fmt: skip
    for kept in (0, 8):
        result = command(*arguments)
        assert result.exit_code == 0 and f"8 cells, {kept} of them" in result.output, result.output
    assert (tmp_path / "out" / "own.png").stat().st_size > 10_000
    assert "oracle's lmbda" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "RESNET"], "lmbda has no meaning in this model: ResNet"),
        (["--model", "nowhere"], "no model 'nowhere'"),
        (["--model", "SDNET", "--lmbda", "-1"], "lmbda must be at least 0"),
        (["--model", "SDNET", "--corruption", "rain"], "no corruption 'rain'"),
        (["--model", "SDNET", "--severity", "6"], "severity must be 1, 2, 3, 4 or 5, got 6"),
        (["--model", "SDNET", "--data", "mnist"], "no data set 'mnist'"),
        (["--model", "SDNET", "--cifar10c", "nowhere"], "no nowhere/gaussian_noise.npy"),
    ],
)
def test_bad_input_to_robust_ends_with_a_message(options: list[str], message: str, tmp_path: Path) -> None:
    places = {"SDNET": tmp_path / "sdnet", "RESNET": tmp_path / "resnet"}
    tiny().save_pretrained(places["SDNET"])
    tiny("resnet18").save_pretrained(places["RESNET"])
    given = [places.get(option, option) for option in options]
    result = command("robust", "--out", tmp_path / "out", "--data", "digits", "--pictures", 4, *given)
    assert result.exit_code == 1 and message in result.output.replace("\n", "") and "Traceback" not in result.output


def test_a_sweep_called_again_shows_its_own_rows(tmp_path: Path) -> None:
    """And not those of other weights or numbers of pictures that the file got meanwhile."""
    model = tiny()
    shown = []
    for count, bias in ((20, 0.0), (10, 0.0), (20, 100.0), (20, 0.0)):
        model.network.linear.bias.data[3] = bias
        model.save(tmp_path / "m")
        result = command(
            "robust", "--model", tmp_path / "m", "--out", tmp_path / "out", "--data", "digits", "--pictures", count,
            "--corruption", "shot_noise", "--severity", 5, "--lmbda", 0.1,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        shown.append((tmp_path / "out" / "table.md").read_text())
    assert shown[0] == shown[3] and len(set(shown)) == 3


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        tiny().save(tmp_path / folder / "model")
    result = command(
        "robust", "--model", tmp_path / "a" / "model", "--model", tmp_path / "b" / "model", "--out", tmp_path / "o"
    )
    assert result.exit_code == 1 and "several models are called 'model'" in result.output


# The page of results.


def test_a_pages_places_are_filled_from_the_files_alone(tmp_path: Path) -> None:
    rows = rows_of({0.1: 0.4, 0.2: 0.6}, 0.55, 0.3)
    columns = (*sweep.KEYS, *sweep.VALUES)
    table = Table(tmp_path / "sweep.csv", sweep.KEYS, sweep.VALUES)
    for row in rows:
        table.add({name: row.get(name, "") for name in columns})
    page = tmp_path / "page.md"
    places = "".join(f"<!-- {part} m -->\nold\n<!-- end -->\nb\n" for part in ("claims", "noise", "cost"))
    page.write_text(f"a\n{places}")
    document([tmp_path], page)
    first = page.read_text()
    assert "old" not in first and "75% of the oracle's gain" in first and "Nothing yet" in first
    assert first.startswith("a\n") and "\nb\n" in first and (tmp_path / "page" / "m.png").exists()
    document([tmp_path], page)
    assert page.read_text() == first


def test_a_page_that_asks_for_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- speed m -->\n<!-- end -->\n")
    with pytest.raises(UserError, match="asks for 'speed'; there is noise"):
        document([tmp_path], tmp_path / "page.md")
    with pytest.raises(UserError, match="cannot read"):
        document([tmp_path], tmp_path / "none.md")


def test_only_the_last_weights_rows_are_shown() -> None:
    rows = [{"model": name, "weights": w, "pictures": "5"} for name, w in (("a", "1"), ("b", "1"), ("a", "2"))]
    assert latest(rows) == rows[1:]


def test_rows_of_other_pictures_and_of_another_source_are_not_shown() -> None:
    common = {"model": "a", "weights": "1", "pictures": "5"}
    rows = [
        common | {"data": data, "source": source}
        for data, source in (
            ("x", "clean"), ("y", "clean"), ("y", "CIFAR-10-C files"), ("y", "regenerated, seed 0"),
            ("y", "regenerated, seed 1"),
        )
    ]  # fmt: skip
    assert latest(rows) == [rows[1], *rows[3:]]
    attacks = [common | {"defence": "d", "data": data} for data in "xyxy"]
    assert latest(attacks) == attacks[1::2]


def test_seeds_of_the_noise_are_averaged() -> None:
    rows = rows_of({0.1: 0.4, 0.2: 0.6}, 0.5, 0.3) + rows_of({0.1: 0.2, 0.2: 0.8}, 0.7, 0.1)
    (curve, other) = curves.curves(rows)
    assert (curve.fixed[0.1], curve.fixed[0.2], curve.automatic, other.alone) == pytest.approx((0.3, 0.7, 0.6, 0.2))
