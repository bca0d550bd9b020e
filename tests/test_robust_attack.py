"""Attacks stay within their threat, and are stronger than noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attack_fixtures import LINF, QUICK, digits, model, pair  # noqa: F401
from sdnet.errors import UserError
from sdnet.models import Classifier
from sdnet.robust import attacks, evaluation
from sdnet.robust.attacks import Dense, Threat, auto, check_moved, pgd, random_noise
from sdnet.robust.evaluation import classified_right, defences, evaluate
from sdnet.robust.options import parsed
from sdnet.robust.pictures import Labelled
from torch import Tensor, nn


def test_a_threat_is_read_and_written() -> None:
    assert parsed("Linf:8/255") == Threat("Linf", 8 / 255) and parsed("L2:0.5") == Threat("L2", 0.5)
    assert str(Threat("Linf", 8 / 255)) == "Linf 8/255" and str(Threat("L2", 0.5)) == "L2 0.5"


@pytest.mark.parametrize(
    "text, message",
    [("L3:1", "norm must be one of"), ("L2:-1", "eps must be above 0"), ("L2", "norm:eps, such as")],
)
def test_a_wrong_threat_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


@pytest.mark.parametrize("threat", [LINF, Threat("L2", 0.5)], ids=str)
def test_random_noise_has_the_threats_length(threat: Threat) -> None:
    x = torch.full((4, 3, 16, 16), 0.5)
    moved = (random_noise(x, threat, 0) - x).flatten(1)
    length = moved.abs().amax(1) if threat.norm == "Linf" else moved.norm(dim=1)
    torch.testing.assert_close(length, torch.full((4,), threat.eps), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threat", [LINF, Threat("L2", 1.5)], ids=str)
def test_pgd_is_worse_than_noise_and_stays_within(model: Classifier, digits: Labelled, threat: Threat) -> None:
    x, y = pair(digits)
    adversarial = pgd(model, x, y, threat, steps=20)
    check_moved(x, adversarial, threat)
    noisy = classified_right(model, random_noise(x, threat, 0), y).sum()
    assert noisy > len(y) / 2 and classified_right(model, adversarial, y).sum() < noisy - 3


@pytest.mark.parametrize("attack", evaluation.AUTO)
def test_autoattacks_attacks_stay_within(model: Classifier, digits: Labelled, attack: str) -> None:
    x, y = digits.pictures[:6] / 255, digits.labels[:6]
    check_moved(x, auto(model, x, y, LINF, attack, QUICK), LINF)


def test_a_wrong_point_on_the_way_is_kept() -> None:
    class Wrong(nn.Module):
        """Wrong about the first picture in its second call alone."""

        calls = 0

        def forward(self, pictures: Tensor) -> Tensor:
            self.calls += 1
            return torch.eye(2)[torch.tensor([self.calls == 2, False]).long()]

    x = torch.rand(2, 3, 4, 4)
    watched = attacks._Watched(Wrong().eval(), x, torch.zeros(2, dtype=torch.long))
    for moved in (x, x + 1, x + 2):
        watched(moved)
    assert watched.lost.tolist() == [True, False]
    assert watched.seen[0].equal(x[0] + 1) and watched.seen[1].equal(x[1])


def test_attacks_depend_on_the_seed_and_leave_the_generator(model: Classifier, digits: Labelled) -> None:
    x, y = pair(digits)
    before = torch.random.get_rng_state()
    first, again, other = (pgd(model, x, y, LINF, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_attack_that_goes_too_far_is_caught(digits: Labelled) -> None:
    x, _ = pair(digits)
    with pytest.raises(RuntimeError, match="moved a picture by"):
        check_moved(x, (x + 17 / 255).clamp(0, 1), LINF)
    with pytest.raises(RuntimeError):
        check_moved(x, x - 0.01, LINF)


def test_a_model_in_training_mode_is_refused(model: Classifier, digits: Labelled, tmp_path: Path) -> None:
    x, y = pair(digits)
    model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            pgd(model, x, y, LINF, 1)
        with pytest.raises(ValueError, match="training mode"):
            list(evaluate(defences({"m": model}, {}, [], [0.1]), digits, [LINF], tmp_path / "a.csv", QUICK))
    finally:
        model.eval()


@pytest.mark.parametrize("package, run", [("foolbox", "pgd"), ("pyautoattack", "auto")])
def test_a_missing_library_is_named(
    model: Classifier, digits: Labelled, monkeypatch: pytest.MonkeyPatch, package: str, run: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    last = {"pgd": (1,), "auto": ("square", QUICK)}[run]
    with pytest.raises(UserError, match=f"attacks need the package {package}.*pip install"):
        getattr(attacks, run)(model, *pair(digits), LINF, *last)


def test_mdeqs_gradient_reaches_the_picture_under_attack_alone() -> None:
    torch.manual_seed(0)
    made = Classifier("mdeq_small", options={"width": 8}).eval().requires_grad_(False)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    (through,) = torch.autograd.grad(Dense(made)(x).square().sum(), x)
    assert through.abs().sum() > 0
    assert not made(x).requires_grad
