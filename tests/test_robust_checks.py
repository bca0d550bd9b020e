"""What makes attacks trustworthy: each check is seen to fail where it should."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from attack_fixtures import LINF, Cut, digits, model, pair  # noqa: F401
from sdnet.models import Classifier
from sdnet.robust import checks, planted
from sdnet.robust.attacks import Dense, check_moved
from sdnet.robust.pictures import Labelled
from sdnet.robust.stem import AtLmbda
from torch import Tensor, nn


@pytest.fixture(scope="module")
def kept(model: Classifier, digits: Labelled) -> dict[str, checks.Check]:
    few = Labelled(digits.pictures[:6], digits.labels[:6])
    return {check.name: check for check in checks.checks(model, few, LINF)}


def test_an_honest_model_passes_its_checks(kept: dict[str, checks.Check]) -> None:
    assert len(kept) == 8 and [check for check in kept.values() if not check.passed] == []


class Always(nn.Module):
    """A model that says one class of everything, noise too."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 10)
        logits[:, self.label] = 1
        return logits + 0 * x.flatten(1)[:, :10]


def test_a_model_without_gradient_fails_them(model: Classifier, digits: Labelled) -> None:
    x, y = digits.pictures[:6] / 255, digits.labels[:6]
    assert not checks.gradients_are_not_masked(Dense(Cut(model)), x, y).passed
    assert not checks.gradient_is_the_difference_quotient(Dense(Cut(model)), x[:2], y[:2], 0).passed
    assert not checks.unbounded_eps_leaves_nothing(Always(3).eval(), x, torch.full_like(y, 3), 0).passed
    found = planted.planted_is_found(Cut(model), x[:3], LINF)
    assert not found.passed and found.seen.startswith("0 of 3")


@pytest.mark.parametrize("rise, passed", [(0, True), (4, True), (5, False)])
@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize(
    "check, points", [(partial(checks.more_steps_never_help, longest=100), 4), (checks.larger_eps_never_helps, 6)]
)
def test_a_curve_that_rises_is_seen(
    check: Callable, points: int, place: int, rise: int, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture in fifty may come back from one point of the curve to the next, and no more."""
    curve, asked = [100] * place + [100 + rise] * (points - place), []
    monkeypatch.setattr(checks, "_left", lambda *given: asked.append(given[3:5]) or curve[len(asked) - 1])
    x, y = torch.zeros(200, 3, 2, 2), torch.zeros(200, dtype=torch.int64)
    found = check(Cut(nn.Identity()), x, y, LINF, 0)
    assert found.passed == passed and len(set(asked)) == points
    assert [int(left) for left in re.findall(r": (\d+)", found.seen)] == curve


def test_an_empty_code_is_seen(model: Classifier, digits: Labelled) -> None:
    x, _ = pair(digits)
    assert checks.codes_are_not_empty(model, x).passed
    assert checks.codes_are_not_empty(AtLmbda(model, 1e6), x).seen == "100.0%"


def test_a_choice_by_batch_is_seen(model: Classifier, digits: Labelled) -> None:
    class OfTheBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x) + x.mean()

    x, _ = pair(digits)
    assert checks.inference_is_deterministic_and_per_picture(model, x).passed
    assert not checks.inference_is_deterministic_and_per_picture(OfTheBatch(), x).passed


def test_the_planted_point_is_adversarial_and_its_picture_is_not(model: Classifier, digits: Labelled) -> None:
    x = digits.pictures[:6] / 255
    victim, points = planted.plant(model, x, LINF)
    check_moved(x, points, LINF)
    assert victim(points).argmax(1).tolist() == [1] * 6 and victim(x).argmax(1).tolist() == [0] * 6
