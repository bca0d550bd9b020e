"""CSCConv2d after any history: what it gives depends on its weight and its settings alone.

The layer keeps its normalised dictionary and its step size as long as the weight stays; here it is trained,
evaluated, edited, copied and loaded in random order, and compared with the definition after each.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conditions import DEVICE
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from layer_helpers import both_norms
from torch import Tensor, nn
from torch.func import functional_call, grad

import csc_kernels as csc
from csc_kernels import CSCConv2d

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="edits weights through numpy")

SIZES = st.sampled_from((2, 5, 8, 12))

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=3.0),
    "one by one": lambda weights: torch.optim.SGD(weights, lr=3.0, foreach=False),
    "fused": lambda weights: torch.optim.Adam(weights, lr=0.1, fused=True),
}


def edit_in_place(layer: CSCConv2d) -> None:
    with torch.no_grad():
        layer.weight.mul_(1.5).add_(0.1 * torch.randn_like(layer.weight))


def edit_data(layer: CSCConv2d) -> None:
    layer.weight.data += 0.1 * torch.randn_like(layer.weight)


def edit_through_numpy(layer: CSCConv2d) -> None:
    layer.weight.detach().numpy()[0] *= -1.3


def other_memory(layer: CSCConv2d) -> None:
    layer.weight.data = torch.randn_like(layer.weight)


def other_parameter(layer: CSCConv2d) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


EDITS = (edit_in_place, edit_data, edit_through_numpy, other_memory, other_parameter)


def saved_and_loaded(layer: CSCConv2d) -> CSCConv2d:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved_and_loaded)


def unit(weight: Tensor) -> Tensor:
    return weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class Histories(RuleBasedStateMachine):
    normalize: str
    step: str

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.layer = self.new()

    def new(self) -> CSCConv2d:
        return CSCConv2d(2, 5, 3, padding=1, normalize=self.normalize, step=self.step)

    def image(self, size: int) -> Tensor:
        return torch.randn(2, 2, size, size, dtype=self.layer.weight.dtype)

    def expected(self, x: Tensor, dictionary: Tensor, step: Tensor) -> Tensor:
        layer = self.layer
        return csc.fista(x, dictionary, layer.lmbda, step, layer.n_iter, stride=layer.stride, padding=1)

    def check_step(self, dictionary: Tensor, size: int) -> Tensor:
        """The step size of the layer's last forward, which is that of this dictionary."""
        step, dictionary = self.layer.step_size.detach().clone(), dictionary.detach()
        if self.step == "bound":
            limit = csc.lipschitz(dictionary, stride=self.layer.stride, method="bound")
            torch.testing.assert_close(step, 1 / limit, rtol=1e-4, atol=0)
        else:
            norm = csc.lipschitz(dictionary, stride=self.layer.stride, padding=1, input_size=(size, size), tol=1e-6)
            assert 0.2 < step * norm <= 1  # It is of the largest image so far.
        return step

    def check_output(self, size: int) -> None:
        x, dictionary = self.image(size), unit(self.layer.weight.detach().clone())
        found = self.layer(x)
        torch.testing.assert_close(found, self.expected(x, dictionary, self.check_step(dictionary, size)))

    # What is looked at.

    @rule(size=SIZES, inference=st.booleans())
    def infer(self, size: int, inference: bool) -> None:
        before = self.layer.weight.detach().clone()
        with torch.inference_mode() if inference else torch.no_grad():
            self.check_output(size)
        assert torch.equal(self.layer.weight, before)

    @rule(size=SIZES)
    def differentiate(self, size: int) -> None:
        layer, x = self.layer, self.image(size).requires_grad_()
        weight = layer.weight.detach().clone()
        frozen = not layer.weight.requires_grad
        found = layer(x)
        projected = self.normalize == "projection" and not frozen
        if projected:
            torch.testing.assert_close(layer.weight.detach(), unit(weight))
        else:
            assert torch.equal(layer.weight, weight)
        leaf = (unit(weight) if projected else weight).requires_grad_(not frozen)
        dictionary = leaf if projected else unit(leaf)
        expected = self.expected(x, dictionary, self.check_step(dictionary, size))
        torch.testing.assert_close(found, expected)
        cotangent = torch.randn_like(found)
        wanted = torch.autograd.grad(expected, (x,) if frozen else (x, leaf), cotangent)
        gradients = torch.autograd.grad(found, (x,) if frozen else (x, layer.weight), cotangent)
        torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-4)

    @rule(transform=st.booleans())
    def call_with_another_weight(self, transform: bool) -> None:
        layer, x, weight = self.layer, self.image(8), torch.randn_like(self.layer.weight)
        before = layer.weight.detach().clone()
        if transform:
            grad(lambda weight: functional_call(layer, {"weight": weight}, (x,)).sum())(weight)
        else:
            functional_call(layer, {"weight": weight}, (x,))
        assert torch.equal(layer.weight, before)

    # What happens in between.

    @rule(mode=st.booleans())
    def set_mode(self, mode: bool) -> None:
        self.layer.train(mode)

    @rule(kind=st.sampled_from(sorted(OPTIMIZERS)))
    def step_of_an_optimizer(self, kind: str) -> None:
        if not self.layer.weight.requires_grad:
            return
        optimizer = OPTIMIZERS[kind]([self.layer.weight])
        self.layer(self.image(8)).square().mean().backward()
        optimizer.step()
        self.layer.weight.grad = None

    @rule(edit=st.sampled_from(EDITS))
    def edit(self, edit) -> None:
        frozen = not self.layer.weight.requires_grad
        edit(self.layer)
        self.layer.weight.requires_grad_(not frozen)

    @rule(copied=st.sampled_from(COPIES))
    def copy(self, copied) -> None:
        self.layer = copied(self.layer)

    @rule(trained=st.booleans(), size=SIZES)
    def load(self, trained: bool, size: int) -> None:
        other = self.new().to(self.layer.weight.dtype)
        other.stride = self.layer.stride
        if trained:
            edit_in_place(other)
        other(self.image(size))
        self.layer.load_state_dict(other.state_dict())

    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.layer.weight.requires_grad_(not frozen)

    @rule(dtype=st.sampled_from((torch.float32, torch.float64)))
    def move(self, dtype: torch.dtype) -> None:
        self.layer.to(dtype)

    @rule(lmbda=st.sampled_from((0.0, 0.3)))
    def set_lmbda(self, lmbda: float) -> None:
        self.layer.lmbda = lmbda

    @rule(stride=st.sampled_from((1, 2)))
    def set_stride(self, stride: int) -> None:
        self.layer.stride = stride


@pytest.mark.parametrize("step", ["bound", "power"])
@both_norms
def test_a_layers_code_does_not_depend_on_its_history(normalize: str, step: str) -> None:
    machine = type("Machine", (Histories,), {"normalize": normalize, "step": step})
    options = settings(
        max_examples=40, stateful_step_count=25, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=options)
