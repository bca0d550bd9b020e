"""Out of distribution, and certified radii."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attack_fixtures import digits, model, pair  # noqa: F401
from sdnet.models import Classifier
from sdnet.robust.certified import certified_radii, constant, lipschitz_bound, verdict
from sdnet.robust.detect import auroc, detect
from sdnet.robust.pictures import Labelled
from sdnet.robust.sweep import grid
from torch import nn


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0])) == 0.75


def test_the_residual_tells_noise_from_digits(model: Classifier, digits: Labelled, tmp_path: Path) -> None:
    wanted = grid(["gaussian_noise"], [5], scan=False)
    (found,) = detect("m", model, digits, tmp_path / "d.csv", wanted)
    assert float(found["noise"]) > 0.9 and 0 <= float(found["residual"]) <= 1
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
    radii = certified_radii(model, x, y)
    right = model(x).argmax(1) == y
    assert (radii[right] > 0).all() and (radii[~right] == 0).all()
    assert "vacuous" in verdict(radii, lipschitz_bound(model, (16, 16)))


def test_a_network_without_a_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="got SCN"):
        lipschitz_bound(Classifier("scn", options={"width": 2}))
