"""CSCConv2d: copies, states and other dtypes."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from layer_helpers import both_norms, both_sizes, image, train_step

import csc_kernels as csc
from csc_kernels import CSCConv2d, changes

pytestmark = pytest.mark.usefixtures("seeded")


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


@both_sizes
def test_copies_made_in_inference_mode_serve_outside_of_it(sizes: tuple[int, int, int]) -> None:
    layer = CSCConv2d(*sizes, padding=1)
    layer(x := image(layer))
    with torch.inference_mode():
        copied, moved = copy.deepcopy(layer), copy.deepcopy(layer).double()
    with torch.no_grad():
        for other in (copied, moved):
            for _ in range(2):
                # A power iteration in another precision stops elsewhere.
                found, step = other(x.to(other.weight.dtype)).float(), other.step_size.float()
                torch.testing.assert_close(step, layer.step_size, rtol=0.02, atol=0)
                torch.testing.assert_close(found, csc.fista(x, layer.dictionary(), 0.1, step, padding=1))
                other.eval()


@both_norms
@pytest.mark.parametrize("training", (True, False))
def test_moves_where_modules_swap_their_tensors(normalize: str, training: bool) -> None:
    layer = CSCConv2d(3, 8, 3, padding=1, normalize=normalize).train(training)
    x = image(layer)
    expected = layer(x).detach().clone()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        torch.testing.assert_close(layer.double()(x.double()).detach().float(), expected)
        layer.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer.float()(x).detach(), expected)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("kernel, stride", ((1, 1), (3, 1), (3, 2)))
def test_nothing_of_earlier_weights_is_kept(kernel: int, stride: int, layout: torch.memory_format) -> None:
    layer = CSCConv2d(40, 6, kernel, stride=stride).to(memory_format=layout)
    kept = []
    for _ in range(3):
        train_step(layer.train(), image(layer))
        with torch.no_grad():
            layer.eval()(image(layer))
        gc.collect()
        kept.append(len(changes._FROZEN))
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_a_thread_holds_the_step_size_goes_on() -> None:
    code = """
import os, threading, torch
from csc_kernels import CSCConv2d, dictionary
torch.set_num_threads(1)
layer, held, leave = CSCConv2d(3, 4, 3), threading.Event(), threading.Event()
def hold():
    with dictionary._STEP:
        held.set()
        leave.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    layer(torch.ones(1, 3, 4, 4))
    os._exit(0)
leave.set()
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
