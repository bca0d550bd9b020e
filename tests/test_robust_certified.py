"""Out of distribution, and certified radii."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from attack_fixtures import automatic, digits, model, pair  # noqa: F401
from sdnet import corrupt
from sdnet.models import Classifier
from sdnet.robust import certified
from sdnet.robust.adaptive import AdaptiveClassifier
from sdnet.robust.certified import certified_radii, constant, lipschitz_bound, verdict
from sdnet.robust.detect import auroc, detect, scores
from sdnet.robust.pictures import Labelled
from sdnet.robust.sweep import grid
from torch import nn

from csc_kernels import CSCConv2d


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0])) == 0.75


def test_the_residual_tells_noise_from_digits(model: Classifier, digits: Labelled, tmp_path: Path) -> None:
    wanted = grid(["gaussian_noise"], [5], scan=False)
    (found,) = detect("m", model, digits, tmp_path / "d.csv", wanted)
    layer = model.network.layer0[0].dn
    noisy = corrupt(digits.pictures, "gaussian_noise", 5)

    def far(pictures: torch.Tensor) -> torch.Tensor:
        x = (pictures / 255 - model.mean) / model.std
        return (x - layer.reconstruct(layer(x))).square().mean((1, 2, 3))

    def doubtful(pictures: torch.Tensor) -> torch.Tensor:
        return 1 - model(pictures / 255).softmax(1).amax(1)

    for name, score in (("residual", far), ("confidence", doubtful)):
        assert float(found[name]) == pytest.approx(auroc(score(digits.pictures), score(noisy)))
    assert float(found["noise"]) > 0.9 and float(found["deviation"]) > 0.9
    assert list(detect("m", model, digits, tmp_path / "d.csv", wanted)) == [found]


@pytest.mark.parametrize("name", ["sdnet18", "sdnet18_all", "resnet18"])
def test_no_pair_of_pictures_breaks_the_lipschitz_bound(name: str) -> None:
    torch.manual_seed(0)
    made = Classifier(name, std=[0.3] * 3, options={"width": 2}).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.rand(4, 3, 16, 16)
    y = x + 0.01 * torch.randn_like(x)
    with torch.no_grad():
        ratio = (made(x) - made(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert ratio.max() <= lipschitz_bound(made, (16, 16))


def test_the_bound_is_attained_where_every_layer_is_a_multiple_of_the_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers that scale each pixel, and a picture on those alone that all strides keep."""
    # The certified bound is a few percent above the norm of such a layer, which is its one number per channel.
    monkeypatch.setattr(certified, "lipschitz", lambda weight, **options: weight.square().sum((1, 2, 3)).max())
    torch.manual_seed(0)
    made = Classifier("resnet18", std=[0.2, 0.5, 0.5], options={"width": 4}).eval()
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            module.weight.data *= torch.rand(()) + 0.5
        if isinstance(module, nn.BatchNorm2d):
            module.running_var[:] = torch.rand(()) + 0.5
            nn.init.constant_(module.weight, float(torch.rand(()) + 0.5))
    nn.init.zeros_(made.network.linear.weight)
    made.network.linear.weight.data[3, 0] = -1.7
    x, y = torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 16, 24)
    y[:, 0, ::8, ::8] = 0.6
    with torch.no_grad():
        attained = (made(x) - made(y)).norm() / (x - y).norm()
    assert lipschitz_bound(made, (16, 24)) == pytest.approx(attained.item(), rel=1e-5)


def test_a_codes_constant_is_attained_by_its_first_step() -> None:
    torch.manual_seed(0)
    layer = CSCConv2d(3, 4, 3, stride=3, lmbda=0.0, n_iter=1).eval()
    layer.weight.data.abs_()
    _, values, patches = torch.linalg.svd(layer.dictionary().detach().flatten(1))
    x = patches[0].abs().view(1, 3, 3, 3).repeat(1, 1, 2, 2)
    with torch.no_grad():
        attained = (layer(x).norm() / x.norm()).item()
    assert attained == pytest.approx(float(layer.step_size * values[0]))
    # The certified bound of ||A||^2 is a few percent above it.
    one = constant(layer)
    assert attained <= one < 1.06 * attained
    layer.n_iter = 2
    assert constant(layer) == pytest.approx(2 * one)


def test_a_codes_constant_holds_and_is_not_idle() -> None:
    torch.manual_seed(0)
    layer = Classifier("sdnet18", options={"width": 4}).eval().network.layer0[0].dn
    layer.lmbda = 0.0
    x = torch.randn(1, 3, 16, 16)
    seen = 0.0
    for _ in range(30):
        y = x + 1e-2 * torch.nn.functional.normalize(torch.randn_like(x).flatten(1)).view_as(x)
        with torch.no_grad():
            seen = max(seen, ((layer(x) - layer(y)).norm() / (x - y).norm()).item())
    assert 0.02 * constant(layer) < seen <= constant(layer)


def test_overlapping_windows_of_a_max_pool_count() -> None:
    pool, x, y = nn.MaxPool2d(3, 2, 1), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    y[0, 0, 3, 3] = 1.0
    assert float((pool(x) - pool(y)).norm()) == constant(pool) == 2.0 and constant(nn.MaxPool2d(2)) == 1.0


def test_a_code_with_momentum_has_no_constant() -> None:
    layer = Classifier("sdnet18", options={"width": 4}).eval().network.layer0[0].dn
    layer.n_iter = 3
    with pytest.raises(ValueError, match="n_iter"):
        constant(layer)


def test_radii_are_margins_over_the_bound(model: Classifier, digits: Labelled) -> None:
    x, y = pair(digits)
    y = y.clone()
    y[:6] = (y[:6] + 1) % 10
    radii, bound = certified_radii(model, x, y), lipschitz_bound(model, (16, 16))
    for logits, label, radius in zip(model(x), y.tolist(), radii):
        margin = logits[label] - max(logits[other] for other in range(10) if other != label)
        torch.testing.assert_close(radius, margin.clamp_min(0) / (2**0.5 * bound), atol=0, rtol=1e-5)
    assert (radii > 0).any() and (radii == 0).any()
    assert ": vacuous:" in verdict(radii, bound) and verdict(1e10 * radii, bound).endswith(": not vacuous")


def test_bounds_and_scores_leave_a_model_in_training_as_it_was(model: Classifier, digits: Labelled) -> None:
    trained = copy.deepcopy(model).train()
    x, y = pair(digits)
    radii, bound = certified_radii(trained, x, y), lipschitz_bound(trained, (16, 16))
    assert torch.equal(radii, certified_radii(model, x, y)) and bound == lipschitz_bound(model, (16, 16))
    found, expected = scores(trained, digits.pictures), scores(model, digits.pictures)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(module.training for module in trained.modules())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.state_dict().items())


def test_a_model_that_chooses_lmbda_has_no_bound(automatic: AdaptiveClassifier) -> None:
    with pytest.raises(ValueError, match="its choice moves too"):
        lipschitz_bound(automatic)


def test_a_network_without_a_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="got SCN"):
        lipschitz_bound(Classifier("scn", options={"width": 2}))
