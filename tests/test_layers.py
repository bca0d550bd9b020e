"""CSCConv2d: what it computes, what it keeps, and what it must survive."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dictionaries import ADVERSARIES, random_dictionary
from helpers import Problem, objective
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import csc_kernels as csc
from csc_kernels import CSCConv2d, layers

STEM, WIDE = (
    (3, 8, 3),
    (40, 6, 3),
)  # step="auto" takes the bound for the first, the power iteration for the other
both_sizes = pytest.mark.parametrize("sizes", (STEM, WIDE), ids=("stem", "wide"))
both_norms = pytest.mark.parametrize("normalize", ("sphere", "projection"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def refreshes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever a layer computes a step size."""
    calls: list[str] = []
    compute = layers.lipschitz

    def spy(*args: object, **kwargs: object) -> Tensor:
        calls.append("lipschitz")
        return compute(*args, **kwargs)

    monkeypatch.setattr(layers, "lipschitz", spy)
    return calls


def image(layer: CSCConv2d, *size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, layer.in_channels, *(size or (8, 9)))


def train_step(layer: nn.Module, x: Tensor, rate: float = 0.1) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    layer(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def atom_norms(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).norm(dim=1)


# What it computes.


@both_sizes
def test_is_a_solve_with_the_normalised_weight(backend: str, sizes: tuple[int, int, int]) -> None:
    layer = CSCConv2d(*sizes, stride=2, padding=1, lmbda=0.05, mu=0.1, n_iter=4, nonneg=False, momentum="sdnet")
    with torch.no_grad():
        layer.weight.mul_(3)
    x = image(layer)
    z = layer(x)
    atoms = layer.weight / atom_norms(layer.weight).view(-1, 1, 1, 1)
    expected = csc.fista(
        x, atoms, 0.05, layer.step_size, 4, stride=2, padding=1, mu=0.1, nonneg=False, momentum="sdnet"
    )
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)


def test_positional_arguments_are_those_of_conv2d() -> None:
    theirs = list(inspect.signature(nn.Conv2d.__init__).parameters.values())
    mine = list(inspect.signature(CSCConv2d.__init__).parameters.values())[: len(theirs)]
    assert [p.name for p in mine] == [p.name for p in theirs]
    assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in mine)


@pytest.mark.parametrize(
    "arguments",
    (
        (3, 5, 3),
        (3, 5, 3, 2),
        (3, 5, 3, 2, 1),
        (3, 5, (2, 4), (1, 3), (0, 2)),
        (3, 5, 3, 1, "same"),
        (3, 5, (4, 2), 1, "same", 1, 1, False, "zeros"),
        (3, 5, 3, 1, "valid", (1, 1)),
        (3, 5, 1, 1, 0, 1, 1, False, "zeros", "cpu", torch.float64),
    ),
)
def test_stands_where_conv2d_stood(arguments: tuple) -> None:
    conv, layer = nn.Conv2d(*arguments), CSCConv2d(*arguments)
    assert layer.weight.shape == conv.weight.shape and layer.weight.dtype == conv.weight.dtype
    for size in ((8, 9), (11, 7)):
        x = torch.randn(2, 3, *size, dtype=conv.weight.dtype)
        assert layer(x).shape == conv(x).shape
        assert layer(x[0]).shape == conv(x[0]).shape
        assert layer(x[:0]).shape == conv(x[:0]).shape


@both_sizes
def test_one_layer_takes_any_size_at_every_call(backend: str, sizes: tuple[int, int, int]) -> None:
    layer = CSCConv2d(*sizes, stride=2, padding=1)
    for size in ((8, 8), (1, 1), (5, 13), (32, 3), (8, 8)):
        assert layer(image(layer, *size)).shape[2:] == tuple((s + 1) // 2 for s in size)


@pytest.mark.parametrize("momentum", ("fista", "none", "sdnet"))
def test_options_reach_the_solve(backend: str, momentum: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, n_iter=5, nonneg=False, momentum=momentum, square_noise=False)
    x = image(layer)
    expected = csc.fista(
        x, layer.dictionary(), 0.1, layer.step_size, 5, padding=1, nonneg=False, momentum=momentum,
        square_noise=False,
    )  # fmt: skip
    assert torch.equal(layer(x), expected)


def test_n_dict_repeats_the_channels(backend: str) -> None:
    layer = CSCConv2d(2, 8, 3, padding=1, n_dict=3)
    x = image(layer)
    assert layer.weight.shape == (8, 6, 3, 3)
    expected = csc.fista(x.repeat(1, 3, 1, 1), layer.dictionary(), 0.1, layer.step_size, padding=1)
    assert torch.equal(layer(x), expected)
    z = torch.randn_like(layer(x))
    parts = F.conv_transpose2d(z, layer.dictionary(), padding=1).view(2, 3, 2, 8, 9)
    torch.testing.assert_close(layer.reconstruct(z), parts.mean(1))


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
        train_step(layer, image(layer, 12, 13), rate=0.5)
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
            for layer.n_iter in (1, 2, 3, 5, 8, 16, 32, 64, 128, 200):
                values.append(objective(problem, layer(x)))
            if momentum == "none":
                assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(values)), values
            assert max(values) <= 1.5 * start and values[-1] < values[0], values


@pytest.mark.parametrize("kind", ("random", "constant", "one_frequency"))
@both_sizes
def test_never_diverges_on_a_larger_image_than_before(backend: str, sizes: tuple[int, int, int], kind: str) -> None:
    """||A||^2 grows with the image: a step size that was right for one pixel is not for many."""
    channels, atoms, kernel = sizes
    make = random_dictionary if kind == "random" else ADVERSARIES[kind]
    layer = CSCConv2d(*sizes, padding=1, lmbda=0.02, n_iter=100, momentum="none")
    with torch.no_grad():
        layer.weight.copy_(make(atoms, channels, kernel, kernel))
    layer(image(layer, 1, 1))
    layer.eval()
    x = torch.ones(1, channels, 24, 24)
    with torch.no_grad():
        problem = Problem(x, layer.dictionary(), 0.02, padding=1)
        z = layer(x)
    assert objective(problem, z) <= objective(problem, torch.zeros_like(z))


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
                fresh._step_of, fresh._step_size_of = None, layer._step_size_of
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


# lmbda and mu.


def test_lmbda_acts_at_once(backend: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=0.1).eval()
    x = image(layer)
    for lmbda in (0.3, 0, 1e3, torch.rand(8, 1, 1), torch.rand(2, 1, 1, 1), 0.1):
        layer.lmbda = lmbda
        assert torch.equal(layer(x), csc.fista(x, layer.dictionary(), lmbda, layer.step_size, padding=1))
    layer.mu = 0.5
    assert torch.equal(layer(x), csc.fista(x, layer.dictionary(), 0.1, layer.step_size, padding=1, mu=0.5))


def test_set_lmbda_reaches_every_layer() -> None:
    model = nn.Sequential(CSCConv2d(3, 8, 3), nn.Sequential(nn.ReLU(), CSCConv2d(8, 4, 3)))
    assert csc.set_lmbda(model, 0.3) == 2
    assert [m.lmbda for m in model.modules() if isinstance(m, CSCConv2d)] == [0.3, 0.3]
    with pytest.raises(ValueError, match="Linear"):
        csc.set_lmbda(nn.Linear(2, 2), 0.3)


def test_a_parameter_as_lmbda_is_learned() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=nn.Parameter(torch.full((8, 1, 1), 0.1)))
    before = layer.lmbda.detach().clone()
    train_step(layer, image(layer))
    assert len(list(layer.parameters())) == 2 and not torch.equal(layer.lmbda, before)
    layer.lmbda = 0.2
    assert len(list(layer.parameters())) == 1 and layer.lmbda == 0.2


def test_a_tensor_as_lmbda_moves_with_the_layer_and_is_not_state() -> None:
    layer = CSCConv2d(3, 8, 3, lmbda=torch.rand(8, 1, 1))
    assert list(layer.state_dict()) == ["weight", "step_size"]
    assert layer.double().lmbda.dtype == torch.float64
    assert torch.equal(copy.deepcopy(layer).lmbda, layer.lmbda)


# Reconstruction and text.


@pytest.mark.parametrize("padding", (0, 1, "valid"))
@pytest.mark.parametrize("stride", (1, 2, 3, (1, 3)))
def test_reconstruct_is_the_adjoint_for_every_stride(stride: int | tuple[int, int], padding: int | str) -> None:
    layer = CSCConv2d(3, 8, 3, stride=stride, padding=padding).double()
    for size in itertools.product(range(8, 12), range(9, 11)):
        x = image(layer, *size).double()
        forward = F.conv2d(x, layer.dictionary(), stride=stride, padding=padding)
        z = torch.randn_like(forward)
        assert layer.reconstruct(z, size).shape == x.shape
        torch.testing.assert_close((layer.reconstruct(z, size) * x).sum(), (z * forward).sum())
        assert torch.equal(layer.reconstruct(z[0], size), layer.reconstruct(z, size)[0])


def test_reconstruct_leaves_little_when_lmbda_is_small(backend: str) -> None:
    layer = CSCConv2d(1, 16, 3, padding=1, lmbda=1e-4, n_iter=200, nonneg=False)
    x = image(layer, 12, 12)
    assert (layer.reconstruct(layer(x)) - x).norm() < 0.05 * x.norm()


def test_extra_repr_tells_the_options() -> None:
    layer = CSCConv2d(3, 8, (3, 5), stride=2, padding=1, lmbda=0.25, n_iter=7, n_dict=2, momentum="none")
    text = repr(layer)
    for part in ("3, 8", "kernel_size=(3, 5)", "stride=(2, 2)", "padding=1", "lmbda=0.25", "mu=0.0",
                 "n_iter=7", "nonneg=True", "momentum=none", "n_dict=2"):  # fmt: skip
        assert part in text, part
    layer.lmbda = torch.rand(8, 1, 1)
    assert "lmbda=tensor(8, 1, 1)" in repr(layer)


# Copies and states.


def clones(layer: CSCConv2d, folder: Path) -> Iterator[tuple[str, CSCConv2d]]:
    yield "deepcopy", copy.deepcopy(layer)
    yield "pickle", pickle.loads(pickle.dumps(layer))
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    yield "save", torch.load(stream, weights_only=False)
    torch.save(layer.state_dict(), folder / "state.pt")
    for assign in (False, True):
        other = CSCConv2d(*layer.weight.shape[1::-1], 3, padding=1, lmbda=layer.lmbda)
        other.load_state_dict(torch.load(folder / "state.pt"), assign=assign)
        yield f"state assign={assign}", other
    with torch.device("meta"):
        other = CSCConv2d(*layer.weight.shape[1::-1], 3, padding=1, lmbda=layer.lmbda)
    other.to_empty(device="cpu").load_state_dict(layer.state_dict())
    yield "meta", other


@both_sizes
@both_norms
def test_copies_give_the_same_codes_and_keep_the_step_size(
    refreshes: list[str], tmp_path: Path, sizes: tuple[int, int, int], normalize: str
) -> None:
    layer = CSCConv2d(*sizes, padding=1, lmbda=0.2, normalize=normalize)
    x = image(layer)
    train_step(layer, x)
    layer.eval()
    with torch.no_grad():
        layer.step_size.mul_(0.5)  # Not what a refresh would give.
        expected = layer(x)
        for name, other in clones(layer, tmp_path):
            refreshes.clear()
            other.eval()
            assert torch.equal(other.step_size, layer.step_size), name
            torch.testing.assert_close(other(x), expected, rtol=1e-6, atol=1e-6, msg=name)
            assert refreshes == [], name


def test_a_loaded_step_size_stays_until_the_weight_changes(refreshes: list[str]) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1)
    layer.load_state_dict({"weight": layer.weight.detach().clone(), "step_size": torch.tensor(0.0123)})
    x = image(layer)
    refreshes.clear()
    layer(x)
    layer.eval()(x)
    layer.train()(x)
    assert float(layer.step_size) == pytest.approx(0.0123) and refreshes == []
    train_step(layer, x)
    layer(x)
    assert float(layer.step_size) != pytest.approx(0.0123) and len(refreshes) == 1


def test_a_shallow_copy_has_its_own_lmbda() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=0.1).eval()
    x = image(layer)
    expected = layer(x)
    other = copy.copy(layer)
    other.lmbda = 0.5
    assert torch.equal(layer(x), expected) and not torch.equal(other(x), expected)
    layer.lmbda = 0.3
    assert layer.lmbda == 0.3 and other.lmbda == 0.5


def test_a_number_as_lmbda_is_no_state_and_keeps_its_precision() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=0.1).bfloat16().double()
    assert layer.lmbda == 0.1 and isinstance(layer.lmbda, float)
    assert list(layer.state_dict()) == ["weight", "step_size"]
    assert [name for name, _ in layer.named_buffers()] == ["step_size"]
    x = image(layer).double()
    assert torch.equal(layer(x), csc.fista(x, layer.dictionary(), 0.1, layer.step_size, padding=1))


def test_copies_do_not_share_state() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1)
    x = image(layer)
    expected = layer(x).detach()
    other = copy.deepcopy(layer)
    train_step(other, x, rate=10.0)
    other(x)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
def test_moves_to_another_dtype(dtype: torch.dtype) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, lmbda=torch.full((8, 1, 1), 0.1))
    x = image(layer)
    expected = layer(x)
    z = layer.to(dtype)(x.to(dtype))
    assert z.dtype == layer.step_size.dtype == dtype
    torch.testing.assert_close(z.float(), expected, rtol=0.05, atol=0.05)


def test_a_layer_begins_on_meta_without_work() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, device="meta")
    assert layer(torch.empty(2, 3, 8, 9, device="meta")).shape == (2, 8, 8, 9)


# Training in unusual orders.


@both_norms
@both_sizes
def test_two_forwards_before_one_backward(sizes: tuple[int, int, int], normalize: str) -> None:
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize)
    with torch.no_grad():
        layer.weight.mul_(2)
    a, b = image(layer), image(layer)
    separate = copy.deepcopy(layer)
    (layer(a).square().sum() + layer(b).square().sum()).backward()
    separate(a).square().sum().backward()
    separate(b).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, separate.weight.grad)


@both_norms
def test_gradients_accumulate(normalize: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
    x = torch.randn(4, 3, 8, 9)
    layer(x).square().sum().backward()
    whole = layer.weight.grad.clone()
    layer.weight.grad = None
    for part in x.split(1):
        layer(part).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, whole, rtol=1e-4, atol=1e-4)


@both_norms
def test_one_layer_twice_in_one_network(normalize: str) -> None:
    layer = CSCConv2d(4, 4, 3, padding=1, normalize=normalize)
    x = torch.randn(2, 4, 6, 6)
    layer(layer(x)).sum().backward()
    assert torch.isfinite(layer.weight.grad).all() and layer.weight.grad.any()


@both_norms
@pytest.mark.parametrize("training", (True, False))
def test_a_frozen_weight_still_passes_gradients_to_x(backend: str, normalize: str, training: bool) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize).train(training)
    x = image(layer).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    layer.weight.requires_grad_(False)
    with torch.inference_mode():
        layer(x)
    before = layer.weight.clone()
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(layer.weight, before) and layer.weight.grad is None


@both_norms
def test_evaluation_has_gradients_for_x_and_weight(backend: str, normalize: str) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize)
    x = image(layer).requires_grad_()
    layer(x).square().sum().backward()
    expected = x.grad.clone(), layer.weight.grad.clone()
    x.grad = layer.weight.grad = None
    layer.eval()(x).square().sum().backward()
    torch.testing.assert_close((x.grad, layer.weight.grad), expected)


def test_training_goes_on_after_inference_mode() -> None:
    layer = CSCConv2d(3, 8, 3, padding=1)
    x = image(layer)
    with torch.inference_mode():
        inside = layer(x)
    torch.testing.assert_close(layer(x), inside.clone())
    train_step(layer, x)
    with torch.inference_mode():
        layer.eval()(x)
    layer.train()
    train_step(layer, x)


def test_a_layer_made_in_inference_mode_serves() -> None:
    with torch.inference_mode():
        layer = CSCConv2d(3, 8, 3, padding=1)
        assert torch.isfinite(layer(image(layer))).all()


@both_norms
@both_sizes
def test_functional_call_uses_the_weight_it_is_given(sizes: tuple[int, int, int], normalize: str) -> None:
    """Also when one temporary weight lies in memory where the last one lay."""
    layer = CSCConv2d(*sizes, padding=1, normalize=normalize).eval()
    x, own = image(layer), layer.weight.detach().clone()
    with torch.no_grad():
        expected = layer(x)
        for _ in range(5):
            weight = torch.randn_like(own)
            found = torch.func.functional_call(layer, {"weight": weight}, (x,))
            fresh = CSCConv2d(*sizes, padding=1).eval()
            fresh.weight.copy_(weight)
            torch.testing.assert_close(found, fresh(x))
            del weight, fresh
        torch.testing.assert_close(layer(x), expected)
        assert torch.equal(layer.weight, own)


def test_parametrized_weights_are_followed() -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + weight.roll(1, 0)

    layer = CSCConv2d(3, 8, 3, padding=1)
    parametrize.register_parametrization(layer, "weight", Twice())
    layer.eval()
    x = image(layer)
    with torch.no_grad():
        for _ in range(4):
            layer.parametrizations.weight.original.copy_(torch.randn(8, 3, 3, 3))
            fresh = CSCConv2d(3, 8, 3, padding=1).eval()
            fresh.weight.copy_(layer.weight)
            torch.testing.assert_close(layer(x), fresh(x))


def test_a_network_learns_to_reconstruct() -> None:
    layer = CSCConv2d(1, 12, 3, padding=1, lmbda=0.05, n_iter=5)
    row = torch.arange(12.0)
    x = torch.stack([torch.sin(row * f).outer(torch.cos(row * g)) for f, g in ((0.5, 1), (2, 0.3), (1, 1))])
    x = x.unsqueeze(1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (layer.reconstruct(layer(x)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


# Distributed data parallel: two processes on halves give what one gives on all.


def _train_distributed(rank: int, folder: str, normalize: str) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model, x = _model_and_batch(normalize)
        model = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for part in x:
            optimizer.zero_grad()
            model(part[2 * rank : 2 * rank + 2]).square().mean().backward()
            optimizer.step()
        grads = [p.grad for p in model.parameters()]
        torch.save((grads, model.module.state_dict()), f"{folder}/{rank}.pt")
        distributed.barrier()  # Neither closes its connections while the other still uses them.
    finally:
        distributed.destroy_process_group()


def _model_and_batch(normalize: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(
        CSCConv2d(3, 8, 3, padding=1, normalize=normalize),
        CSCConv2d(8, 6, 3, stride=2, padding=1, normalize=normalize, step="power"),
    )
    return model, torch.randn(3, 4, 3, 8, 8)


@both_norms
def test_two_processes_train_as_one(tmp_path: Path, normalize: str) -> None:
    torch.multiprocessing.spawn(_train_distributed, (str(tmp_path), normalize), nprocs=2)
    model, x = _model_and_batch(normalize)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for part in x:
        optimizer.zero_grad()
        model(part).square().mean().backward()
        optimizer.step()
    (grads, state), (other_grads, other_state) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for found, other, parameter in zip(grads, other_grads, model.parameters()):
        assert torch.equal(found, other)
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], other_state[name]), name
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)
