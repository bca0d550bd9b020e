"""Lmbda chosen for each picture by itself: what is read off a picture, the lines, and their calibration."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from robust_helpers import digits, tiny  # noqa: F401
from sdnet import adapt, corrupt
from sdnet.export import plain
from sdnet.models import Classifier
from sdnet.pretrained import load_model
from sdnet.robust import calibrate
from sdnet.robust.adaptive import METHODS, AdaptiveClassifier, mean_deviation, noise_deviation, residual
from sdnet.robust.pictures import Labelled

import csc_kernels as csc


@pytest.fixture(scope="module")
def adapted(digits: Labelled) -> AdaptiveClassifier:
    return adapt(tiny(), "noise", digits.pictures, digits.labels)


def test_the_noise_estimate_follows_the_noise_and_not_the_picture() -> None:
    picture = torch.linspace(0.2, 0.8, 32).expand(2, 3, 32, 32)
    noisy = picture + 0.05 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert noise_deviation(picture).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert noise_deviation(noisy).tolist() == pytest.approx([0.05] * 2, rel=0.1)
    assert noise_deviation(noisy[..., :31, :29]).tolist() == pytest.approx([0.05] * 2, rel=0.1)


def test_impulses_move_the_mean_and_not_the_median() -> None:
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    impulses = corrupt(grey, "impulse_noise", 3) / 255
    assert noise_deviation(impulses).item() == 0 and mean_deviation(impulses).item() > 0.02


def test_the_residual_is_that_of_the_probing_lmbda(digits: Labelled) -> None:
    layer, x = tiny().network.layer0[0].dn, digits.pictures / 255
    code = csc.fista(x, layer.dictionary(), 0.6, layer.step_size, layer.n_iter, padding=1)
    expected = (x - layer.reconstruct(code)).square().mean((1, 2, 3))
    torch.testing.assert_close(residual(layer, x, 0.6), expected)
    assert layer.lmbda == 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_pictures_logits_do_not_depend_on_the_others(
    adapted: AdaptiveClassifier, digits: Labelled, method: str
) -> None:
    model = adapt(adapted, method)
    x = corrupt(digits.pictures, "gaussian_noise", constant=0.1) / 255
    scale = model.feature(x).mean().item()
    setattr(model, f"line_{method}", torch.tensor([0.5 / scale, 0.1]))
    lmbda = model.lmbda_of(x)
    i = int((lmbda - lmbda.mean()).abs().argmax())
    alone = model(x[i : i + 1])
    torch.testing.assert_close(model(x)[i : i + 1], alone)
    assert (model.at(x, lmbda.mean().expand(len(x)))[i] - alone[0]).abs().max() > 1e-3


def test_the_line_is_held_between_the_training_lmbda_and_the_largest(digits: Labelled) -> None:
    model = AdaptiveClassifier(method="noise", **tiny().arguments)
    x = digits.pictures / 255
    for line, expected in (([1e9, 1e9], 1.4), ([-1e9, 0.0], 0.1)):
        model.line_noise = torch.tensor(line)
        torch.testing.assert_close(model.lmbda_of(x), torch.full((20,), expected))


def test_gradients_reach_the_picture_through_the_residuals_lmbda(digits: Labelled) -> None:
    model = AdaptiveClassifier(method="residual", **tiny().arguments).eval().double()
    model.line_residual = torch.tensor([0.1, 0.15], dtype=torch.float64)
    x = (0.2 + 0.6 * torch.rand(1, 3, 16, 16, dtype=torch.float64)).requires_grad_()
    assert 0.1 < model.lmbda_of(x).item() < 1.4
    (gradient,) = torch.autograd.grad(model.lmbda_of(x).sum(), x)
    direction = torch.randn_like(x)
    step = 1e-6 * direction
    difference = (model.lmbda_of(x + step) - model.lmbda_of(x - step)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference.sum(), rtol=1e-4, atol=1e-7)
    (whole,) = torch.autograd.grad(model(x).square().sum(), x)
    (cut,) = torch.autograd.grad(model.at(x, model.lmbda_of(x).detach()).square().sum(), x)
    assert not torch.allclose(whole, cut)


def test_a_model_saved_over_another_has_no_calibration_of_it(tmp_path: Path) -> None:
    model = tiny()
    for lines in ({"line_noise": torch.tensor([1.0, 0.1])}, None):
        model.calibration = lines
        model.save(tmp_path / "model")
        found = Classifier.from_pretrained(str(tmp_path / "model")).calibration
        assert (found is None) == (lines is None)


def test_the_calibration_is_saved_with_the_weights(
    adapted: AdaptiveClassifier, digits: Labelled, tmp_path: Path
) -> None:
    adapted.line_noise = torch.tensor([4.0, 0.2])
    adapted.save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path))
    assert isinstance(loaded, AdaptiveClassifier) and loaded.method == "noise"
    x = digits.pictures / 255
    assert torch.equal(loaded(x), adapted(x))
    other = AdaptiveClassifier(method="noise", **adapted.arguments).eval()
    other.load_state_dict(adapted.state_dict())
    assert torch.equal(other(x), adapted(x))


def test_without_a_method_the_best_one_is_taken(adapted: AdaptiveClassifier) -> None:
    for number, method in enumerate(METHODS):
        adapted.best.fill_(number)
        assert adapt(adapted).method == method


def observed(best: list[float]) -> calibrate.Observed:
    """Pictures whose feature is the level's number, right at one lmbda alone."""
    lmbdas = numpy.array([0.1, 0.5, 1.0])
    right = numpy.repeat((numpy.array(best)[:, None, None] == lmbdas), 4, axis=1)
    features = numpy.repeat(numpy.arange(len(best), dtype=float)[:, None], 4, axis=1)
    return calibrate.Observed(lmbdas, right, {"noise": features, "residual": features})


def test_the_published_line_goes_through_the_levels_best() -> None:
    slope, intercept = calibrate.line_by_levels(observed([0.1, 0.5, 1.0]), "residual")
    assert (slope, intercept) == pytest.approx(numpy.polyfit([0, 1, 2], [0.1, 0.5, 1.0], 1))


def test_the_noises_line_keeps_clean_pictures_right() -> None:
    seen = observed([0.1, 1.0, 1.0])
    assert seen.judge("noise", *calibrate.line_by_accuracy(seen, "noise")) == (1, 0)
    # All levels look alike: what would help the noisy ones costs the clean one, so nothing is done.
    seen.features["noise"][:] = 1
    line = calibrate.line_by_accuracy(seen, "noise")
    assert seen.judge("noise", *line) == (pytest.approx(1 / 3), 0)
    # Nor where clean pictures that become right are as many as those that become wrong.
    seen.right[0] = [[True, False, False], [False, False, True]] * 2
    assert seen.judge("noise", *calibrate.line_by_accuracy(seen, "noise")) == (pytest.approx(1 / 6), 0)


def test_calibration_does_not_see_what_it_is_judged_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second picture wants the lmbda of another level; of these alone the noise says nothing."""
    seen, other = observed([0.1, 0.5, 1.0]), observed([1.0, 0.5, 0.1])
    seen.right[:, 1::2] = other.right[:, 1::2]
    seen.features["deviation"] = seen.features["noise"].copy()
    seen.features["deviation"][:, 1::2] = 2 - seen.features["noise"][:, 1::2]
    monkeypatch.setattr(calibrate, "observe", lambda *given: seen)
    model = AdaptiveClassifier(method="noise", **tiny().arguments)
    calibrate.calibrate(model, torch.zeros(4, 3, 16, 16), torch.zeros(4))
    for method, line in (("residual", calibrate.line_by_levels), ("noise", calibrate.line_by_accuracy)):
        first, second = (line(seen.half(half), method) for half in (True, False))
        assert getattr(model, f"line_{method}").tolist() == pytest.approx(first) and first != pytest.approx(second)
    assert METHODS[int(model.best)] == "deviation"


def test_automatic_lmbda_has_no_onnx_form(adapted: AdaptiveClassifier, digits: Labelled) -> None:
    with pytest.raises(ValueError, match="automatic lmbda has no ONNX form"):
        plain(adapted, digits.pictures / 255)


def test_adapting_leaves_the_model_as_it_was(digits: Labelled) -> None:
    model, x = tiny(), digits.pictures / 255
    before = model(x)
    adapt(model, "residual", digits.pictures, digits.labels)
    assert torch.equal(model(x), before) and model.calibration is None


def test_adapting_takes_the_network_as_it_is(digits: Labelled) -> None:
    model, x = tiny("sdnet18_all").double(), digits.pictures.double() / 255
    csc.set_lmbda(model, 1 / 3)
    for layer in model.modules():
        if isinstance(layer, csc.CSCConv2d):
            layer.n_iter, layer.mu = 4, 0.1
    adapted = adapt(model, "noise", digits.pictures, digits.labels)
    assert adapted.probe == 1 / 3 and torch.equal(adapted.logits(x), model(x))
    adapted.line_noise[:] = torch.tensor([0.0, 0.0])
    assert torch.equal(adapted(x), model(x))
    again = adapt(adapted, "residual")
    assert again.method == "residual" and torch.equal(again.logits(x), model(x))
    assert torch.equal(again.line_noise, adapted.line_noise)


@pytest.mark.parametrize("lmbda", [1 / 3, 1.41421349])
def test_calibration_begins_at_the_training_lmbda(lmbda: float, digits: Labelled) -> None:
    model = AdaptiveClassifier(method="noise", **tiny(lmbda=lmbda).arguments).eval()
    lmbdas = calibrate.observe(model, digits.pictures[:4], digits.labels[:4], 0).lmbdas
    assert lmbdas[0] == lmbda and (numpy.diff(lmbdas) > 0).all() and len(lmbdas) == (12 if lmbda < 1 else 1)


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda m, x: adapt(m), ValueError, "no calibration"),
        (lambda m, x: adapt(m, "noise", 255 * x, torch.zeros(20)), ValueError, r"in \[0, 1\]"),
        (lambda m, x: adapt(m, "noise", (255 * x).long(), torch.zeros(20)), TypeError, "int64"),
        (lambda m, x: adapt(m, "best"), ValueError, "method must be one of"),
        (lambda m, x: adapt(m.network), TypeError, "Classifier, got ResNet"),
        (lambda m, x: adapt(m, "noise", x), ValueError, "labels must be given"),
        (lambda m, x: adapt(m, "noise", x[:2], torch.zeros(2)), ValueError, "at least 4"),
        (lambda m, x: AdaptiveClassifier(method="noise", **m.arguments)(x + 1), ValueError, r"in \[0, 1\]"),
    ],
)
def test_bad_input_to_adapt_is_refused(call, kind, message: str, digits: Labelled) -> None:
    with pytest.raises(kind, match=message):
        call(tiny(), digits.pictures / 255)
