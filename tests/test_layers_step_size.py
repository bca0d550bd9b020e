"""CSCConv2d: its atoms of unit norm, and the step size that follows them."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from dictionaries import ADVERSARIES, random_dictionary
from layer_helpers import STEM, WIDE, atom_norms, both_norms, both_sizes, image, train_step
from problems import Problem, objective
from torch import Tensor, nn

import csc_kernels as csc
from csc_kernels import CSCConv2d, changes

pytestmark = pytest.mark.usefixtures("seeded")


# Atoms of unit norm.


@both_norms
@both_sizes
def test_atoms_have_unit_norm_after_training(sizes: tuple[int, int, int], normalize: str) -> None:
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize)
    torch.testing.assert_close(atom_norms(layer.weight), torch.ones(sizes[1]))
    x, before = image(layer), layer.weight.detach().clone()
    for _ in range(5):
        train_step(layer, x)
        torch.testing.assert_close(atom_norms(layer.dictionary()), torch.ones(sizes[1]))
    assert not torch.allclose(layer.dictionary(), before)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(atom_norms(layer.dictionary()), torch.ones(sizes[1]))
        assert torch.equal(layer(x), layer(x))


def test_the_sphere_has_its_gradient_and_the_projection_has_not() -> None:
    x = torch.randn(2, 3, 8, 9)
    for normalize in ("sphere", "projection"):
        layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
        layer(x).square().sum().backward()
        radial = (layer.weight.grad * layer.weight).flatten(1).sum(1).abs()
        assert bool((radial < 1e-3 * layer.weight.grad.flatten(1).norm(dim=1)).all()) == (normalize == "sphere")


@both_norms
def test_modes_agree_in_the_forward(backend: str, normalize: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(8, 1, 1, 1) + 0.5)
    x = image(layer)
    evaluated = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), evaluated, rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_write_the_weight() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize="projection")
    with torch.no_grad():
        layer.weight.mul_(2)
    layer.eval()
    before, version = layer.weight.detach().clone(), layer.weight._version
    with torch.no_grad():
        layer(image(layer))
    assert torch.equal(layer.weight, before) and layer.weight._version == version


def test_an_atom_of_zeros_stays_finite(backend: str) -> None:
    for normalize in ("sphere", "projection"):
        layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
        with torch.no_grad():
            layer.weight[0] = 0
        z = layer(image(layer))
        assert torch.isfinite(z).all() and not z[:, 0].any()
        z.sum().backward()
        assert torch.isfinite(layer.weight.grad).all()


# The step size.


@both_norms
@both_sizes
def test_step_size_is_refreshed_exactly_when_the_weight_changed(
    refreshes: list[str], sizes: tuple[int, int, int], normalize: str
) -> None:
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize)
    x = image(layer)
    layer(x)
    refreshes.clear()
    layer(x)
    layer(image(layer))
    layer(x).sum().backward()
    layer.lmbda = 0.3
    layer(x)
    assert refreshes == []
    for count in (1, 2, 3):
        train_step(layer, x)
        layer(x)
        layer(x)
        assert len(refreshes) == count
    layer.eval()
    layer(x)
    layer.train()
    layer(x)
    assert len(refreshes) == 3


@pytest.mark.parametrize("step", ("bound", "power"))
def test_the_step_size_follows_the_setting(refreshes: list[str], step: str) -> None:
    layer = CSCConv2d(*STEM, padding=1, step="power" if step == "bound" else "bound").eval()
    x = image(layer, 12, 13)
    layer(x)
    layer.step = step
    fresh = CSCConv2d(*STEM, padding=1, step=step)
    fresh.load_state_dict({"weight": layer.weight.detach()}, strict=False)
    assert torch.equal(layer(x), fresh(x)) and torch.equal(layer.step_size, fresh.step_size)
    layer.step = "auto"
    assert layer.step == "bound"


@both_sizes
def test_evaluation_is_free(
    refreshes: list[str], monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int]
) -> None:
    layer = CSCConv2d(*sizes, padding=1)
    train_step(layer, image(layer))
    layer.eval()
    normalised: list[int] = []
    compute = layer._normalized
    monkeypatch.setattr(layer, "_normalized", lambda: normalised.append(1) or compute())
    with torch.no_grad():
        layer(image(layer))
        normalised.clear()
        refreshes.clear()
        for _ in range(3):
            layer(image(layer))
    assert refreshes == [] and normalised == []


@pytest.mark.parametrize(
    "change",
    (
        lambda layer: layer.weight.copy_(torch.randn_like(layer.weight)),
        lambda layer: layer.weight[0].neg_(),
        lambda layer: nn.init.orthogonal_(layer.weight),
        lambda layer: layer.load_state_dict({"weight": torch.randn_like(layer.weight)}, strict=False),
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn_like(layer.weight))),
        lambda layer: layer.reset_parameters(),
        lambda layer: setattr(layer.weight, "data", torch.randn_like(layer.weight)),
    ),
    ids=("copy", "one_atom", "init", "load", "assign", "reset", "data"),
)
@both_sizes
def test_a_changed_weight_is_seen_in_evaluation(sizes: tuple[int, int, int], change: object) -> None:
    layer = CSCConv2d(*sizes, padding=1).eval()
    x = image(layer)
    with torch.no_grad():
        layer(x)
        change(layer)
        fresh = CSCConv2d(*sizes, padding=1).eval()
        fresh.weight.copy_(layer.weight)
        torch.testing.assert_close(layer(x), fresh(x))
        torch.testing.assert_close(layer.step_size, fresh.step_size)


@both_sizes
def test_optimizers_of_every_make_are_noticed(refreshes: list[str], sizes: tuple[int, int, int]) -> None:
    makes = (
        {"foreach": False},
        {"foreach": True},
        {"fused": True},
    )
    for options in makes:
        layer = CSCConv2d(*sizes, padding=1)
        x = image(layer)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, **options)
        layer(x).sum().backward()
        refreshes.clear()
        optimizer.step()
        layer(x)
        assert len(refreshes) == 1, options


@both_sizes
def test_step_size_is_a_bound_of_the_dictionary(sizes: tuple[int, int, int]) -> None:
    layer = CSCConv2d(*sizes, stride=2, padding=1)
    with torch.no_grad():
        layer.weight.mul_(5)
    layer(image(layer, 16, 16))
    exact = csc.lipschitz(layer.dictionary(), stride=2, padding=1, input_size=16)
    assert 0.8 <= float(layer.step_size * exact) <= 1.0


@both_norms
def test_the_power_iteration_of_a_training_stays_right(normalize: str) -> None:
    layer = CSCConv2d(*WIDE, padding=1, normalize=normalize)
    for _ in range(20):
        x = image(layer, 14, 15)
        train_step(layer, x, rate=0.5)
        layer(x)
        exact = csc.lipschitz(layer.dictionary().detach(), padding=1, input_size=(14, 15))
        assert 0.85 <= float(layer.step_size * exact) < 1.0


def test_in_evaluation_the_weight_alone_determines_the_step_size() -> None:
    layer = CSCConv2d(*WIDE, padding=1)
    for _ in range(3):
        train_step(layer, image(layer, 24, 26), rate=0.5)
    fresh = CSCConv2d(*WIDE, padding=1)
    fresh.load_state_dict({"weight": layer.weight.detach().clone()}, strict=False)
    layer.eval(), fresh.eval()
    assert torch.equal(layer.step_size, fresh.step_size)


def test_a_layer_in_training_may_run_in_inference_mode_first() -> None:
    layer, x = CSCConv2d(*WIDE, padding=1), torch.randn(2, WIDE[0], 8, 9)
    with torch.inference_mode():
        layer(x)
    train_step(layer, x)
    train_step(layer, x)
    assert torch.isfinite(layer.weight).all()


@pytest.mark.parametrize("kind", ("random", *ADVERSARIES))
@pytest.mark.parametrize("stride", (1, 2))
@both_sizes
def test_never_diverges(backend: str, sizes: tuple[int, int, int], stride: int, kind: str) -> None:
    """ISTA lowers the objective at every step; FISTA keeps it below what Beck & Teboulle's bound allows."""
    channels, atoms, kernel = sizes
    make = random_dictionary if kind == "random" else ADVERSARIES[kind]
    layer = CSCConv2d(*sizes, stride=stride, padding=1, lmbda=0.02, nonneg=False).eval()
    with torch.no_grad():
        layer.weight.copy_(make(atoms, channels, kernel, kernel))
        x = image(layer, 12, 13)
        problem = Problem(x, layer.dictionary(), 0.02, stride=stride, padding=1, nonneg=False)
        start = objective(problem, torch.zeros(problem.code_shape))
        for momentum in ("none", "fista"):
            layer.momentum, values = momentum, [start]
            for layer.n_iter in (1, 2, 3, 5, 8, 16, 32, 200):
                values.append(objective(problem, layer(x)))
            if momentum == "none":
                assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(values)), values
            assert max(values) <= 1.5 * start and values[-1] < values[0], values


def refill(weight: Tensor, how: str, value: Tensor) -> None:
    """Edits that autograd does not count."""
    if how == "data":
        weight.data.copy_(value)
    elif how == "set data":
        weight.data = value.clone()
    else:
        weight.detach().numpy()[...] = value.numpy()


@pytest.mark.parametrize("how", ("data", "set data", "numpy"))
@pytest.mark.parametrize("sizes", (STEM, WIDE, (40, 64, 3)), ids=("stem", "wide", "sampled"))
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last))
def test_edits_without_a_trace_are_followed(
    sizes: tuple[int, int, int], how: str, memory_format: torch.memory_format
) -> None:
    layer = CSCConv2d(*sizes, padding=1).to(memory_format=memory_format)
    x = image(layer)
    for training in (True, False):
        layer.train(training)
        for _ in range(2):
            with torch.set_grad_enabled(training):
                layer(x)
                weight = torch.randn(layer.weight.shape) + 1
                refill(layer.weight, how, weight)
                fresh = CSCConv2d(*sizes, padding=1).train(training)
                fresh.weight.data.copy_(weight)
                fresh._step_of, fresh.step_size_of = None, layer.step_size_of
                # A power iteration stops at a tolerance; the step of the weight before is several times larger.
                torch.testing.assert_close(layer(x), fresh(x), rtol=0.02, atol=0.005)
                torch.testing.assert_close(layer.step_size, fresh.step_size, rtol=0.02, atol=0)


def test_one_number_of_a_stem_changed_through_numpy_is_noticed() -> None:
    layer = CSCConv2d(3, 64, 7, stride=2, padding=3).eval()
    x = image(layer)
    with torch.no_grad():
        before = layer(x)
        for index in ((0, 0, 0, 0), (63, 2, 6, 6), (31, 1, 3, 2)):
            layer.weight.detach().numpy()[index] += 1
            after = layer(x)
            assert not torch.equal(after, before), index
            before = after


@both_norms
@both_sizes
def test_nan_in_the_weight_reaches_the_code(backend: str, sizes: tuple[int, int, int], normalize: str) -> None:
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize)
    with torch.no_grad():
        layer.weight[1] = torch.nan
        assert layer.eval()(image(layer))[:, 1].isnan().all()
    assert layer.train()(image(layer))[:, 1].isnan().all()


@both_norms
@both_sizes
def test_a_weight_of_zeros_gives_a_code_of_zeros(backend: str, sizes: tuple[int, int, int], normalize: str) -> None:
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize)
    with torch.no_grad():
        layer.weight.zero_()
    z = layer(image(layer))
    z.sum().backward()
    assert not z.any() and torch.isfinite(layer.weight.grad).all()
    with torch.no_grad():
        assert not layer.eval()(image(layer)).any()


def _hard_dictionaries() -> dict[str, torch.Tensor]:
    """Whose largest eigenvalue has few vectors, or vectors that small images hold badly."""
    flat = torch.zeros(132, 40, 7, 7)
    flat[:128, 0, 3, 3], flat[128:, 1] = 1, 1 / 7
    mean = torch.zeros(40, 40, 3, 3)
    mean[range(40), range(40), 1, 1] = 1
    mean[0], mean[0, 0] = 0, 1 / 3
    dictionaries = {"equal atoms beside flat ones": flat, "one flat atom": mean}
    for size in (3, 5):
        corners = torch.zeros(1, 40, size, size)
        corners[0, :, :: size - 1, :: size - 1] = 1
        dictionaries[f"corners of {size}x{size}"] = corners
    return dictionaries


@pytest.mark.parametrize("name", _hard_dictionaries())
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("pixels, padded", [(80, False), (28, True)])
def test_the_default_step_of_wide_layers_is_below_its_limit(
    name: str, compiled: bool, pixels: int, padded: bool
) -> None:
    weight = _hard_dictionaries()[name]
    atoms, channels, size, _ = weight.shape
    padding = size // 2 if padded else 0
    layer = csc.CSCConv2d(channels, atoms, size, padding=padding)
    with torch.no_grad():
        layer.weight.copy_(weight)
    (torch.compile(layer, backend="eager") if compiled else layer)(torch.randn(1, channels, pixels, pixels))
    limit = csc.lipschitz(layer.dictionary().detach(), input_size=pixels, padding=padding, tol=1e-7, max_iter=500)
    assert layer.step == "power" and 0.85 < float(layer.step_size * limit) < 1


def test_a_step_of_an_optimizer_of_shares_ends_every_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 fills the weights that a forward sees anew after each, and leaves no trace in them."""
    weight, share = torch.randn(4, 3, 3, 3), nn.Parameter(torch.randn(2))
    made = changes.mark(weight)
    share.grad = torch.zeros(2)
    torch.optim.SGD([share], 0.1).step()
    assert made.holds(weight)
    monkeypatch.setattr(changes, "is_share", lambda tensor: tensor is share)
    torch.optim.SGD([share], 0.1).step()
    assert not made.holds(weight) and changes.mark(share) is None
