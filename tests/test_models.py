"""sdnet.models against the published implementation, and as models that train, copy and compile."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sdnet import models
from torch import Tensor, nn
from torch.nn import functional as F

import csc_kernels as csc

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sdnet_models.json").read_text())
STEMS = {"cifar10": ("cifar", 10, 32), "imagenet": ("imagenet", 1000, 64)}
CONSTRUCTORS = [
    models.resnet18,
    models.resnet34,
    models.sdnet18,
    models.sdnet34,
    models.sdnet18_all,
    models.sdnet34_all,
]
SDNETS = CONSTRUCTORS[2:]


def build(case: str) -> nn.Module:
    name, data = case.split("/")
    stem, classes, _ = STEMS[data]
    return getattr(models, name)(num_classes=classes, stem=stem)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", GOLDEN)
def test_state_dict_and_parameter_count_are_the_published_ones(case: str) -> None:
    with torch.device("meta"):
        model = build(case)
    shapes = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    assert shapes == list(GOLDEN[case]["state_dict"].items())
    assert parameters(model) == GOLDEN[case]["params"]


# Counted from the definition: convolutions and linear layers from their shapes, two numbers per channel of
# a batch norm.
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet18", {"num_classes": 100}, 11_220_132),
        ("resnet18", {"num_classes": 1000, "stem": "imagenet"}, 11_689_512),
        ("resnet34", {}, 21_282_122),
        ("resnet34", {"num_classes": 1000, "stem": "imagenet"}, 21_797_672),
        ("sdnet18_all", {"shortcut": False}, 11_000_138),
        ("sdnet18_all", {"shortcut": False, "num_classes": 100}, 11_046_308),
        ("sdnet34_all", {"shortcut": False}, 21_108_298),
        ("sdnet34_all", {"shortcut": False, "num_classes": 100}, 21_154_468),
    ],
)
def test_parameter_count(name: str, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert parameters(getattr(models, name)(**options)) == count


def fill(name: str, value: Tensor, index: int) -> Tensor:
    """The values under which the golden logits hold; `index` counts all entries of the state_dict."""
    if name.endswith("step_size"):
        return torch.full_like(value, 0.2)
    if not value.is_floating_point():
        return value
    i = torch.arange(value.numel(), dtype=torch.float64)
    base = torch.sin(0.7 * i + 1.3 * index) + 0.5 * torch.cos(2.1 * 0.37 * i + index)
    base = base.reshape(value.shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * base.abs()
    if name.endswith("running_mean") or name.endswith("bias"):
        return 0.02 * base
    if value.dim() == 1:
        return 1 + 0.1 * base
    return base / math.sqrt(value.numel() / value.shape[0])


def filled(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: fill(name, value, index) for index, (name, value) in enumerate(state.items())}


@pytest.mark.parametrize("case", GOLDEN)
def test_logits_are_the_published_ones(case: str) -> None:
    model = build(case).double()
    # Loaded before eval(), which would otherwise compute the step sizes of random atoms.
    models.load_published(model, filled(model))
    model.eval()
    size = STEMS[case.split("/")[1]][2]
    i = torch.arange(2 * 3 * size * size, dtype=torch.float64)
    x = (torch.sin(0.013 * i) + torch.cos(0.37 * i)).reshape(2, 3, size, size)
    with torch.no_grad():
        logits = model(x)[:, :10]
    expected = torch.tensor(GOLDEN[case]["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=0)


# The checkpoint.


@pytest.fixture
def model() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield models.sdnet18()


@pytest.fixture
def checkpoint(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.float() for name, value in filled(model).items()}


def assert_holds(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name].to(value.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_loads(
    model: nn.Module, checkpoint: dict[str, Tensor], wrapped: bool, prefix: str
) -> None:
    given: dict[str, Any] = {prefix + name: value for name, value in checkpoint.items()}
    if wrapped:
        given = {"epoch": 219, "state_dict": given, "optimizer": {}}
    models.load_published(model, given)
    assert_holds(model, checkpoint)


def test_the_step_size_of_a_checkpoint_is_kept_until_the_dictionary_changes(
    model: nn.Module, checkpoint: dict[str, Tensor]
) -> None:
    models.load_published(model, checkpoint)
    layer = model.layer0[0].dn
    given = checkpoint["layer0.0.dn.step_size"]
    x = torch.randn(2, 3, 8, 8)
    model(x)
    model.eval()
    model(x)
    assert layer.step_size == given
    model.train()
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    model(x)
    assert layer.step_size != given


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("linear.bias"), r"missing: linear\.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda state: state.update({"linear.weight": torch.zeros(100, 512)}),
            r"linear\.weight: the model has \(10, 512\), the checkpoint \(100, 512\)",
        ),
        (lambda state: state.update({"linear.bias": [0.0] * 10}), r"not a tensor: linear\.bias is list"),
        (
            lambda state: state.update({"module.linear.bias": state.pop("linear.bias")}),
            r"(?s)missing: linear\.bias.*unexpected: module\.linear\.bias",
        ),
        (lambda state: state.clear(), r"missing: layer0\.0\.dn\.weight"),
    ],
    ids=["missing", "unexpected", "shape", "not a tensor", "half prefixed", "empty"],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(
    model: nn.Module, checkpoint: dict[str, Tensor], spoil: Any, message: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    spoil(checkpoint)
    with pytest.raises(ValueError, match=message):
        models.load_published(model, checkpoint)
    assert_holds(model, before)


def test_a_checkpoint_of_another_model_is_refused(checkpoint: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"(?s)missing: layer0\.0\.weight.*unexpected: layer0\.0\.dn\.weight"):
        models.load_published(models.resnet18(), checkpoint)


@pytest.mark.parametrize("given", [None, [torch.zeros(1)], {"state_dict": torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(model: nn.Module, given: Any) -> None:
    with pytest.raises(TypeError, match="mapping"):
        models.load_published(model, given)


# The arguments.


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"stem": "mnist"}, ValueError),
        ({"num_classes": 0}, ValueError),
        ({"num_classes": 2.5}, TypeError),
    ],
)
def test_bad_arguments_are_refused(constructor: Any, options: dict[str, Any], error: type[Exception]) -> None:
    name, value = next(iter(options.items()))
    with torch.device("meta"), pytest.raises(error, match=rf"{name} must be .*{value}"):
        constructor(**options)


@pytest.mark.parametrize("constructor", SDNETS)
@pytest.mark.parametrize("options", [{"lmbda": -0.1}, {"lmbda": math.nan}, {"mu": -1.0}, {"n_iter": 0}])
def test_bad_options_of_the_codes_are_refused(constructor: Any, options: dict[str, Any]) -> None:
    (name,) = options
    with torch.device("meta"), pytest.raises(ValueError, match=name):
        constructor(**options)


@pytest.mark.parametrize("constructor", SDNETS)
def test_every_layer_takes_the_options(constructor: Any) -> None:
    with torch.device("meta"):
        model = constructor(lmbda=0.3, mu=0.2, n_iter=3)
    layers = [module for module in model.modules() if isinstance(module, csc.CSCConv2d)]
    assert {(layer.lmbda, layer.mu, layer.n_iter) for layer in layers} == {(0.3, 0.2, 3)}


# The models at work.


def test_no_relu_follows_the_code_in_a_block_without_shortcut() -> None:
    torch.manual_seed(0)
    model = models.sdnet18_all(shortcut=False)
    assert model.layer1.layers[0](model.layer0(torch.randn(2, 3, 8, 8))).min() < 0


def test_set_lmbda_changes_the_logits_at_once(model: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    model.eval()
    before = model(x)
    assert csc.set_lmbda(model, 0.5) == 1
    changed = model(x)
    assert not torch.allclose(changed, before)
    fresh = models.sdnet18(lmbda=0.5)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(x), changed)
    csc.set_lmbda(model, 0.1)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("size", [(32, 32), (17, 23)])
@pytest.mark.parametrize("name", ["resnet18", "sdnet18", "sdnet18_all"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_any_image_size_gives_finite_logits(name: str, stem: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = getattr(models, name)(7, stem)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_a_copy_gives_the_same_logits_and_shares_nothing(model: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    model.eval()
    expected = model(x)
    twin = copy.deepcopy(model)
    csc.set_lmbda(model, 0.9)
    with torch.no_grad():
        model.linear.weight.zero_()
    assert twin(x).equal(expected)


@pytest.mark.parametrize("name", ["resnet18", "sdnet18", "sdnet18_all"])
def test_training_fits_a_tiny_batch(name: str) -> None:
    torch.manual_seed(0)
    model = getattr(models, name)()
    x, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_compiled_the_front_of_a_model_gives_the_maps_of_eager(model: nn.Module) -> None:
    """Compiling the three stages behind takes half a minute; tests/test_model_family.py traces all of them."""
    x, front = torch.randn(2, 3, 16, 16), nn.Sequential(model.layer0, model.layer1).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(front, fullgraph=True)(x), front(x))
