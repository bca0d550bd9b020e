"""The table of attacks: defences side by side, resumed, and the worst case by picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attack_fixtures import LINF, QUICK, automatic, digits, model, pair  # noqa: F401
from rich.progress import Progress
from sdnet.models import Classifier
from sdnet.robust import attack_command, evaluation
from sdnet.robust.adaptive import AdaptiveClassifier
from sdnet.robust.attacks import Effort
from sdnet.robust.check import Check
from sdnet.robust.evaluation import Automatic, classified_right, defences, evaluate
from sdnet.robust.pictures import Labelled
from sdnet.robust.stem import AtLmbda


def test_defences_stand_beside_each_other(model: Classifier, automatic: AdaptiveClassifier) -> None:
    resnet = Classifier("resnet18", options={"width": 2}).eval()
    made = defences({"m": model, "r": resnet}, {"m": automatic}, [0.5], [0.1, 0.5])
    assert [(d.model, d.name) for d in made] == [
        ("m", "training lmbda"), ("m", "lmbda 0.5"), ("m", "automatic, residual"), ("r", "none"),
    ]  # fmt: skip
    static = "transfer from the training lmbda (published setting, overstates)"
    assert static in made[1].sources and made[1].sources[static] is model
    assert "transfer from r" in made[0].sources and "lmbda held constant (BPDA)" in made[2].sources


def test_what_is_attacked_is_what_is_evaluated(
    model: Classifier, automatic: AdaptiveClassifier, digits: Labelled
) -> None:
    x, _ = pair(digits)
    raised, own = defences({"m": model}, {"m": automatic}, [0.9], [0.1])[1:]
    torch.testing.assert_close(raised.deployed(x), AtLmbda(model, 0.9)(x))
    torch.testing.assert_close(own.deployed(x), automatic(x))
    assert not torch.allclose(raised.deployed(x), model(x))


def test_a_constant_lmbda_changes_the_gradient_and_not_the_logits(
    automatic: AdaptiveClassifier, digits: Labelled
) -> None:
    points = (0.2 + 0.6 * digits.pictures[:4] / 255).requires_grad_()
    whole, held = Automatic(automatic), Automatic(automatic, constant=True)
    torch.testing.assert_close(whole(points), held(points))
    first, second = (torch.autograd.grad(m(points).square().sum(), points)[0] for m in (whole, held))
    assert not torch.allclose(first, second)


def test_a_table_of_attacks_goes_on_and_is_resumed(
    model: Classifier, automatic: AdaptiveClassifier, digits: Labelled, tmp_path: Path
) -> None:
    few = Labelled(digits.pictures[:8], digits.labels[:8])
    made = defences({"m": model}, {"m": automatic}, [0.5], [0.1, 0.5])
    stopped = evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=["square"])
    first = [next(stopped)[0] for _ in range(4)]
    stopped.close()
    rows = list(evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=["square"]))
    assert [row for row, new in rows if not new] == first and len(rows) == 5 + 6 + 7
    clean = next(row for row, _ in rows if row["attack"] == "clean")
    assert clean["survived"].count("1") == classified_right(model, few.pictures / 255, few.labels).sum()
    shown = evaluation.table_rows([row for row, _ in rows])
    assert [row["defence"] for row in shown] == ["training lmbda", "lmbda 0.5", "automatic, residual"]
    for row in shown:
        values = [float(row[name]) for name in evaluation.COLUMNS if row[name]]
        assert float(row["worst case"]) <= min(values) and row["threat"] == "Linf 16/255"
    assert shown[2]["PGD, BPDA"] and not shown[0]["PGD, BPDA"]


def test_the_interval_is_that_of_the_worst_case() -> None:
    """Random noise is no attack."""
    fates = {"clean": "1" * 10, "random noise": "1" * 5 + "0" * 5, "pgd-20": "0" * 5 + "1" * 5}
    whole = {"model": "m", "defence": "d", "norm": "L2", "eps": "0.5"}
    rows = [
        {**whole, "attack": attack, "through": "itself" if attack == "pgd-20" else "", "survived": survived}
        for attack, survived in fates.items()
    ]
    (shown,) = evaluation.table_rows(rows)
    low, high = evaluation.interval(0.5, 10)
    assert shown["worst case"] == "50.0" and shown["95 %"] == f"{100 * low:.1f} to {100 * high:.1f}"


def test_checks_of_another_seed_or_effort_are_made_anew(
    model: Classifier, digits: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def double(deployed, few, threat, seed, longest):
        asked.append((seed, longest))
        return [Check("a check", f"{seed}, {longest}", True)]

    monkeypatch.setattr(attack_command, "checks", double)
    made = defences({"m": model}, {}, [], [0.1])
    for seed, steps in ((0, 1), (1, 1), (0, 5), (0, 1)):
        rows = attack_command.run_checks(
            made, digits, LINF, tmp_path / "c.csv", seed, Effort(1, steps, 5), Progress(disable=True)
        )
        assert [row["seen"] for row in rows] == [f"{seed}, {10 * steps}"]
    assert asked == [(0, 10), (1, 10), (0, 50)]


def test_of_autoattack_each_takes_the_pictures_that_those_before_left(
    model: Classifier, digits: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Labelled(digits.pictures[:8], digits.labels[:8])
    seen: list[tuple[str, int]] = []

    def double(model, pictures, labels, threat, attack, effort, seed):
        seen.append((attack, len(pictures)))
        return pictures

    right = torch.ones(8, dtype=torch.bool)

    def judged(model, adversarial, labels):
        fates = right.clone()
        if seen:
            fates[: 2 * len(seen)] = False
        return fates

    monkeypatch.setattr(evaluation, "auto", double)
    monkeypatch.setattr(evaluation, "classified_right", judged)
    made = defences({"m": model}, {}, [], [0.1])
    attacks = ["apgd-ce", "apgd-t", "square"]
    rows = [row for row, _ in evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=attacks)]
    assert seen == [("apgd-ce", 8), ("apgd-t", 6), ("square", 8)]
    fates = {row["attack"]: row["survived"] for row in rows if row["attack"] in attacks}
    assert fates["apgd-ce"] == "00111111" and fates["apgd-t"] == "00001111"
    # What one attack left depends on those before it.
    list(evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=["apgd-t"]))
    assert seen.pop() == ("apgd-t", 8)
    # What is left is known from the file, too.
    lines = (tmp_path / "a.csv").read_text().splitlines(keepends=True)
    (tmp_path / "a.csv").write_text("".join(line for line in lines if ",apgd-t," not in line))
    seen.clear()
    list(evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=attacks))
    assert seen == [("apgd-t", 6)]


def row(attack: str, survived: str, through: str = "itself") -> dict[str, str]:
    return {"model": "m", "defence": "d", "norm": "L2", "eps": "0.5", "attack": attack, "through": through,
            "survived": survived}  # fmt: skip


def test_the_worst_case_is_per_picture() -> None:
    assert evaluation.worst([row("a", "1101"), row("b", "1011")]) == 0.5


def test_a_transfer_that_beats_the_white_box_is_told() -> None:
    weak = [row("pgd-100", "1110"), row("pgd-100", "0000", "transfer from r"), row("random noise", "1111", "")]
    (found,) = evaluation.strength_checks(weak)
    assert found["white box is the strongest"].startswith("no: transfer from ResNet 0.0")
    (found,) = evaluation.strength_checks([row("pgd-100", "0000"), row("square", "1000")])
    assert found["white box is the strongest"] == "yes"


def test_the_interval_is_wilsons() -> None:
    assert evaluation.interval(0.5, 1000) == pytest.approx((0.469, 0.531), abs=1e-3)
    assert evaluation.interval(0.0, 500)[0] == 0 and 0 < evaluation.interval(0.0, 500)[1] < 0.01
