"""CSCConv2d: the step size of small images, and larger ones that come later, in whatever form the layer is then."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dictionaries import ADVERSARIES, random_dictionary
from layer_helpers import both_sizes, compiled, image, train_step
from problems import Problem, objective
from torch import nn

from csc_kernels import CSCConv2d, dictionary
from csc_kernels.dictionary import LearnedDictionary

pytestmark = pytest.mark.usefixtures("seeded")


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


def narrow_layer() -> CSCConv2d:
    """Atoms nearly alike, which have far less of ||A||^2 on an image of 2x2 than on a large one."""
    layer = CSCConv2d(64, 16, 3, padding=1, n_iter=30, lmbda=0.01, nonneg=False)
    with torch.no_grad():
        torch.manual_seed(0)
        layer.weight.copy_(torch.randn(1, 64, 1, 1) + 0.05 * torch.randn_like(layer.weight))
    return layer


def saved_and_loaded(layer: CSCConv2d) -> nn.Module:
    stream, other = io.BytesIO(), narrow_layer()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream))
    return other.eval()


def exported(layer: CSCConv2d, strict: bool, dynamic: bool) -> nn.Module:
    shapes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    x = torch.randn(2, 64, 2, 2) if dynamic else torch.randn(2, 64, 32, 32)
    return torch.export.export(layer, (x,), strict=strict, dynamic_shapes=(shapes if dynamic else None,)).module()


LATER_FORMS = {
    "loaded": saved_and_loaded,
    "compiled": compiled,
    "exported": lambda layer: exported(layer, strict=False, dynamic=False),
    "exported strictly": lambda layer: exported(layer, strict=True, dynamic=False),
    "exported for any size": lambda layer: exported(layer, strict=False, dynamic=True),
}


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("form", LATER_FORMS)
def test_never_diverges_on_a_larger_image_after(form: str, training: bool) -> None:
    layer, x = narrow_layer().train(training), torch.randn(2, 64, 32, 32)
    layer(torch.randn(2, 64, 2, 2))
    small = float(layer.step_size)
    layer.eval()
    with torch.no_grad():
        found = LATER_FORMS[form](layer)(x)
        expected = narrow_layer().eval()(x)
    assert not training or small > 4 * float(narrow_layer().eval().step_size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_state_has_the_size_of_its_step_size_in_its_metadata(refreshes: list[str]) -> None:
    layer = narrow_layer()
    layer(torch.randn(1, 64, 2, 2))
    other = saved_and_loaded(layer)
    refreshes.clear()
    other(torch.randn(1, 64, 2, 2))
    assert refreshes == [] and torch.equal(other.step_size, layer.step_size)
    other(torch.randn(1, 64, 2, 3))
    assert len(refreshes) == 1 and other.step_size < layer.step_size


@pytest.mark.parametrize("loaded", (False, True))
def test_a_compiled_training_forward_leaves_the_step_size_of_larger_images(loaded: bool) -> None:
    layer, x = narrow_layer(), torch.randn(2, 64, 32, 32)
    if loaded:
        layer.load_state_dict(dict(narrow_layer().eval().state_dict()))
    expected = layer(x).detach()
    compiled(layer)(torch.randn(2, 64, 2, 2))
    layer.eval()
    torch.testing.assert_close(layer(x), expected)


@both_sizes
def test_a_state_right_after_a_step_of_the_optimizer_has_the_step_size_of_its_weight(
    refreshes: list[str], sizes: tuple[int, int, int]
) -> None:
    layer = CSCConv2d(*sizes, padding=1)
    x = image(layer)
    train_step(layer, x, rate=3.0)
    refreshes.clear()
    saved = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(x)
    assert len(refreshes) == 1  # What the next forward would have computed.
    assert torch.equal(saved["step_size"], layer.step_size)
    fresh = CSCConv2d(*sizes, padding=1)
    fresh.load_state_dict({"weight": saved["weight"]}, strict=False)
    fresh(x)
    torch.testing.assert_close(saved["step_size"], fresh.step_size, rtol=1e-6, atol=0)


def test_a_state_dict_before_the_backward_of_a_compiled_layer_does_not_disturb_it() -> None:
    layer = narrow_layer().eval()
    run, x = compiled(layer), torch.randn(2, 64, 12, 12)
    for _ in range(2):
        loss = run(x).square().mean()
        layer.state_dict()
        loss.backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize("strict", (True, False))
def test_exports_for_any_size_where_smaller_images_are_known(strict: bool) -> None:
    layer, x = narrow_layer(), torch.randn(2, 64, 32, 32)
    layer(torch.randn(2, 64, 12, 12))
    layer.eval()
    sizes = {2: torch.export.Dim("rows", min=4, max=64), 3: torch.export.Dim("columns", min=4, max=64)}
    program = torch.export.export(layer, (torch.randn(2, 64, 8, 8),), strict=strict, dynamic_shapes=(sizes,))
    torch.testing.assert_close(program.module()(x), narrow_layer().eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("misfit", ("absent", "of another shape"))
def test_a_step_size_without_its_weight_is_found_again(misfit: str) -> None:
    layer, other = narrow_layer().eval(), CSCConv2d(64, 4, 3, padding=1).eval()
    state = {"step_size": other.step_size * 10}
    if misfit == "absent":
        layer.load_state_dict(state, strict=False)
    else:
        with pytest.raises(RuntimeError, match="size mismatch"):
            layer.load_state_dict({**state, "weight": other.weight.detach()})
    x = torch.randn(2, 64, 32, 32)
    torch.testing.assert_close(layer(x), narrow_layer().eval()(x))


def test_a_state_that_has_nothing_of_the_layer_leaves_it_as_it_is(refreshes: list[str]) -> None:
    layer = nn.Sequential(narrow_layer(), nn.BatchNorm2d(16)).eval()
    layer[0](x := torch.randn(2, 64, 4, 4))
    refreshes.clear()
    layer.load_state_dict({"1.bias": torch.ones(16)}, strict=False)
    layer(x)
    assert refreshes == []


def test_threads_with_images_of_two_sizes_leave_the_step_size_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the large image is held in the middle of writing, until the other is done or waits for it."""
    layer, other = narrow_layer().eval(), narrow_layer().eval()
    small, large = torch.randn(1, 64, 2, 2), torch.randn(1, 64, 32, 32)
    layer(small), other(large)
    both, held = threading.Barrier(2), threading.Event()
    new_step, mark = LearnedDictionary._new_step, dictionary.mark

    def at_once(self: CSCConv2d, atoms: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        step = new_step(self, atoms, size)
        both.wait(timeout=60)
        if size == (2, 2):
            held.wait(timeout=60)
        return step

    def slowly(weight: torch.Tensor) -> object:
        if not held.is_set():
            held.set()
            time.sleep(1)
        return mark(weight)

    with torch.no_grad():
        layer.weight.mul_(1)  # Both threads have to find a step size.
        layer.step_size_of = None
    monkeypatch.setattr(LearnedDictionary, "_new_step", at_once)
    monkeypatch.setattr(dictionary, "mark", slowly)
    with ThreadPoolExecutor(2) as pool, torch.no_grad():
        list(pool.map(layer, (small, large)))
    monkeypatch.undo()
    torch.testing.assert_close(layer(large), other(large))
