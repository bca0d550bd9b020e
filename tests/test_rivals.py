"""What MDEQ and SCN compute: fixed points, sparse codes of patches, and their gradients."""

from __future__ import annotations

import sys
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

for package in ("huggingface_hub", "timm", "torchdeq", "torchvision"):
    pytest.importorskip(package)

from sdnet.models import mdeq  # noqa: E402
from sdnet.models.scn import PatchCoding, multiply, nonnegative_code, scn, solve_on_support  # noqa: E402
from settled import images  # noqa: E402
from torchdeq import get_deq  # noqa: E402

# MDEQ.


def test_mdeqs_size_is_the_published_one() -> None:
    assert sum(p.numel() for p in mdeq.mdeq_small().parameters()) == 11_098_398
    assert sum(p.numel() for p in mdeq.mdeq_small(100).parameters()) == 11_249_688


def test_mdeqs_states_are_a_fixed_point_where_there_is_one() -> None:
    """States near one value make f a contraction; random weights alone do not, whatever the solver."""
    torch.manual_seed(0)
    model = mdeq.mdeq_small(width=8).eval()
    for mix in model.transition.mixes:
        nn.init.constant_(mix[-1].weight, 0.1)
        nn.init.ones_(mix[-1].bias)
    with torch.no_grad():
        injected = model.stem(images())
        zeros = [torch.zeros(2, c, 32 >> i, 32 >> i) for i, c in enumerate(model.channels)]
        states, _ = model.solver(lambda *z: model.transition(z, injected), zeros)
        change = [a - b for a, b in zip(model.transition(tuple(states[-1]), injected), states[-1])]
    relative = sum(d.square().sum() for d in change).sqrt() / sum(z.square().sum() for z in states[-1]).sqrt()
    assert relative < 2e-3


def test_compiled_mdeqs_solver_visits_the_same_states() -> None:
    """And takes of each sample the nearest to the fixed point, which are those of other steps here."""
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64) / 3 for shape in ((6, 6), (4, 4), (6, 4))]

    def f(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        flat = one.flatten(1)
        mixed = (flat @ weights[0]).sin() + other @ weights[2].T
        return mixed.unflatten(1, (2, 3)), (other @ weights[1]).cos() + flat @ weights[2]

    states = [torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)]
    for steps in (1, 2, 6, 7, 12):
        solver = get_deq(core="sliced", f_solver="broyden", f_max_iter=steps, f_tol=0, f_stop_mode="rel").eval()
        found, info = solver(f, states)
        torch.testing.assert_close(mdeq.broyden(f, states, steps), list(found[-1]))
    assert info["nstep"].unique().numel() > 1


def test_every_parameter_of_mdeq_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = mdeq.mdeq_small(width=8)
    model(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [name for name, p in model.named_parameters() if p.grad.count_nonzero() == 0] == []


def test_mdeqs_dropout_mask_is_one_per_picture_and_forward() -> None:
    model, seen = mdeq.mdeq_small(width=8), []
    model.transition.blocks[1].register_forward_pre_hook(lambda block, given: seen.append(given[2]))
    for count in (1, 2):
        model(images(3))
        assert len({id(mask) for mask in seen}) == count and len(seen) > 5 * count
    first, last = seen[0], seen[-1]
    assert first.shape == (3, 16, 1, 1) and not torch.equal(first, last) and not torch.equal(first[0], first[1])
    assert first.unique().tolist() == pytest.approx([0, 1 / (1 - mdeq.DROPOUT)])
    model.eval()(images())
    assert seen[-1] is None


def test_gradients_of_two_forwards_of_mdeq_have_their_own_masks() -> None:
    torch.manual_seed(0)
    model = mdeq.mdeq_small(width=8).double()
    x, state = images().double(), torch.get_rng_state()
    weight = model.transition.blocks[0].norm3.weight
    (expected,) = torch.autograd.grad(model(x).square().sum(), weight)
    torch.set_rng_state(state)
    first = model(x).square().sum()
    model(x)
    (found,) = torch.autograd.grad(first, weight)
    torch.testing.assert_close(found, expected)


def test_mdeq_refuses_pictures_that_do_not_halve() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        mdeq.mdeq_small(width=8)(images(size=20))


# SCN.


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches (P, n), a dictionary (atoms, n) and lmbda."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    dictionary = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    return y, dictionary, torch.tensor(0.2, dtype=torch.float64)


def codes(y: torch.Tensor, dictionary: torch.Tensor, lmbda: torch.Tensor) -> torch.Tensor:
    return nonnegative_code(y @ dictionary.T, dictionary @ dictionary.T, lmbda)


def test_scns_codes_meet_the_optimality_condition() -> None:
    y, dictionary, lmbda = problem()
    code = codes(y, dictionary, lmbda)
    slope = (code @ dictionary - y) @ dictionary.T + lmbda
    assert (code >= 0).all() and (slope > -1e-3).all() and (slope[code > 0].abs() < 1e-3).all()


@pytest.mark.parametrize("count", [0, 5, 16, 48])
@pytest.mark.parametrize("wide", [False, True])
def test_scns_products_are_those_of_matrices(count: int, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    convolved = mock.Mock(wraps=nn.functional.conv2d)
    monkeypatch.setattr(nn.functional, "conv2d", convolved)
    monkeypatch.setattr(sys.modules[PatchCoding.__module__], "has_wide_convolutions", lambda rows: wide)
    rows, matrix = torch.randn(count, 12), torch.randn(12, 12)
    for given in (rows, rows.T.contiguous().T, rows.repeat(1, 2)[:, :12]):
        torch.testing.assert_close(multiply(given, matrix), rows @ matrix)
    assert convolved.call_count == (3 if wide and count in (16, 48) else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scns_codes_and_gradients_do_not_depend_on_blocks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """37 patches at once, by a product, and in blocks of 16, 16 and 5, the first two by a convolution."""
    y, dictionary, lmbda = problem()
    y = torch.cat([y, -y, y.flip(1), 2 * y, y.roll(1, 1), y.square(), y[:1]])
    inputs = tuple(tensor.to(dtype).requires_grad_() for tensor in (y, dictionary, lmbda))
    whole = codes(*inputs)
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    module = sys.modules[PatchCoding.__module__]
    monkeypatch.setattr(module, "CACHED", 1)
    monkeypatch.setattr(module, "has_wide_convolutions", lambda rows: True)
    blocks = codes(*inputs)
    rtol, atol = (1e-9, 1e-9) if dtype == torch.float64 else (1e-3, 1e-4)
    torch.testing.assert_close(blocks, whole, rtol=rtol, atol=atol)
    torch.testing.assert_close(torch.autograd.grad(blocks.square().sum(), inputs), expected, rtol=rtol, atol=atol)


def test_scns_gradients_are_those_of_finite_differences() -> None:
    inputs = tuple(tensor.requires_grad_() for tensor in problem())
    assert torch.autograd.gradcheck(codes, inputs, eps=1e-6, atol=2e-3, rtol=2e-3)


def test_scns_backward_solves_on_the_support() -> None:
    _, dictionary, _ = problem()
    gram, right = dictionary @ dictionary.T, torch.randn(3, 5, dtype=torch.float64)
    support = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    beta = solve_on_support(gram, support, right)
    for kept, found, wanted in zip(support, beta, right):
        expected = torch.linalg.solve(gram[kept][:, kept], wanted[kept])
        torch.testing.assert_close(found[kept], expected, rtol=1e-4, atol=1e-5)
        assert (found[~kept] == 0).all()


def test_scns_ops_are_well_formed() -> None:
    y, dictionary, lmbda = problem()
    products, gram = (y @ dictionary.T).requires_grad_(), (dictionary @ dictionary.T).requires_grad_()
    torch.library.opcheck(nonnegative_code, (products, gram, lmbda))
    torch.library.opcheck(solve_on_support, (gram.detach(), products > 0, products.detach()))


def test_scns_patches_are_the_neighbourhoods_of_the_pixels() -> None:
    layer = PatchCoding(2, 3, stride=2)
    x = torch.randn(2, 2, 7, 6)
    code = layer(x)
    patch = nn.functional.pad(x, (1,) * 4)[1, :, 2:5, 4:7].reshape(1, -1)
    expected = codes(patch, layer.dictionary.flatten(1), layer.lmbda)
    assert code.shape == (2, 3, 4, 3)
    torch.testing.assert_close(code[1, :, 1, 2], expected[0], rtol=1e-3, atol=1e-5)


def test_scns_lmbda_begins_at_zero_learns_and_stays_at_least_zero() -> None:
    torch.manual_seed(0)
    layer, x = PatchCoding(2, 4, 1), images(4, 8)[:, :2]
    layer(x).sum().backward()
    assert layer.lmbda == 0 and layer.lmbda.grad < 0
    with torch.no_grad():
        layer.lmbda.fill_(-1.0)
    below = layer.eval()(x)
    layer.train()(x).sum().backward()
    assert layer.lmbda == 0 and torch.equal(below, layer.eval()(x))


def test_under_autocast_scn_solves_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = PatchCoding(3, 16, 1), images(2, 16).bfloat16().float()
    expected = torch.autograd.grad(layer(x).square().sum(), layer.dictionary)
    with torch.autocast("cpu", torch.bfloat16):
        code = layer(x.bfloat16())
    found = torch.autograd.grad(code.square().sum(), layer.dictionary)
    torch.testing.assert_close(found, expected)


def test_scn_learns_a_batch() -> None:
    torch.manual_seed(0)
    model, labels = scn(2, 4), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images(4, 16)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
