"""The models as timm, torch.export, torch.compile, ONNX and huggingface_hub see them, and the rivals' sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

for package in ("huggingface_hub", "timm", "torchdeq", "torchvision"):
    pytest.importorskip(package)

import huggingface_hub  # noqa: E402
import sdnet  # noqa: E402
import timm  # noqa: E402
from sdnet.errors import CheckpointError  # noqa: E402
from sdnet.export import export_onnx, plain  # noqa: E402
from sdnet.models import MODELS, Classifier, build, classifier, mdeq  # noqa: E402
from sdnet.models.scn import SCN, PatchCoding, nonnegative_code, solve_on_support  # noqa: E402
from settled import settled  # noqa: E402
from torchdeq import get_deq  # noqa: E402

import csc_kernels as csc  # noqa: E402

SDNETS = ("sdnet18", "sdnet34", "sdnet18_all", "sdnet34_all")


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*SDNETS, "mdeq_small", "scn"])
def test_timm_makes_the_model(name: str) -> None:
    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in model.state_dict().items()}

    model = timm.create_model(name, num_classes=7, width=8).eval()
    assert shapes(model) == shapes(build(name, num_classes=7, width=8))
    assert model(images()).shape == (2, 7)


def test_what_timm_passes_on_and_the_model_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="sdnet18 has no option in_chans; it has num_classes, stem, width"):
        timm.create_model("sdnet18", in_chans=1)


def test_timm_keeps_its_own_resnet() -> None:
    assert type(timm.create_model("resnet18")).__module__.startswith("timm")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options, error", [({"width": 0}, ValueError), ({"num_classes": 2.5}, TypeError)])
def test_a_wrong_number_is_named(name: str, options: dict, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{next(iter(options))} must be"):
        build(name, **options)


def test_the_width_scales_all_stages() -> None:
    model = build("sdnet34_all", width=8)
    assert model.layer0[0].dn.weight.shape[0] == 8 and model.linear.in_features == 64


def in_use(name: str, size: int = 32, **options) -> nn.Module:
    """A small model in evaluation mode none of whose codes is empty."""
    torch.manual_seed(0)
    model = settled(build(name, width=8 if name == "mdeq_small" else 4, **options), images(8, size))
    codes = []
    layers = [module for module in model.modules() if isinstance(module, (csc.CSCConv2d, PatchCoding))]
    hooks = [layer.register_forward_hook(lambda layer, inputs, code: codes.append(code)) for layer in layers]
    model(images(size=size))
    assert len(codes) == len(layers) and all(code.count_nonzero() > 0 for code in codes)
    for hook in hooks:
        hook.remove()
    return model


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of MDEQ's solvers: a graph of all of them takes minutes."""
    for steps in ("FORWARD_STEPS", "BACKWARD_STEPS"):
        monkeypatch.setattr(mdeq, steps, 2)


@pytest.mark.parametrize("name", ["sdnet18", "sdnet18_all", "mdeq_small", "scn"])
def test_exported_the_model_gives_the_same_logits(name: str, two_steps: None) -> None:
    model = in_use(name)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images(3)), model(images(3)))


@pytest.mark.parametrize("name", ["sdnet18", "sdnet18_all", "scn"])
def test_dynamo_takes_the_whole_model_as_one_graph(name: str) -> None:
    model = build(name, width=4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(model(images()).square().sum(), model.parameters())
    found = torch.autograd.grad(compiled(images()).square().sum(), model.parameters())
    for one, other in zip(expected, found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_dynamo_takes_mdeqs_inference_as_one_graph(two_steps: None) -> None:
    model = in_use("mdeq_small")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()))


def test_dynamo_takes_mdeqs_training_as_one_graph(two_steps: None) -> None:
    """In float64: far from a fixed point, where random weights are, Broyden's steps magnify roundings."""
    torch.manual_seed(0)
    model, x, found = build("mdeq_small", width=8).double(), images().double(), []
    for form in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        torch.manual_seed(0)  # Of the dropout.
        logits = form(x)
        found.append((logits, *torch.autograd.grad(logits.square().sum(), model.parameters())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "options, size",
    [({}, 32), ({}, 37), ({"n_iter": 4, "mu": 0.2}, 32), ({"n_iter": 4, "mu": 0.2}, 37),
     ({"stem": "imagenet"}, 64), ({"stem": "imagenet"}, 69)],
)  # fmt: skip
def test_in_plain_operators_the_model_is_the_same(options: dict, size: int) -> None:
    model = in_use("sdnet18_all", size, **options)
    without = plain(model, images(size=size))
    assert not any(isinstance(module, csc.CSCConv2d) for module in without.modules())
    torch.testing.assert_close(without(images(size=size)), model(images(size=size)), rtol=1e-4, atol=1e-4)


def test_a_signed_code_is_the_same_in_plain_operators() -> None:
    model = nn.Sequential(csc.CSCConv2d(3, 5, 3, stride=2, padding=1, nonneg=False, n_iter=3)).eval()
    torch.testing.assert_close(plain(model, images())(images()), model(images()), rtol=1e-4, atol=1e-5)


def check_onnx(model: nn.Module, path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export_onnx(model, images(), path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        logits = session.run(None, {"pictures": images(count).numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(logits), model(images(count)).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "sdnet18_all"])
def test_onnxruntime_gives_the_same_logits_for_any_number_of_pictures(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(name, std=[0.2, 0.3, 0.25], options={"width": 4})
    check_onnx(settled(model, images(8)), tmp_path / "model.onnx")


def test_a_layer_in_two_places_is_plain_in_both() -> None:
    layer = csc.CSCConv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    assert not any(isinstance(module, csc.CSCConv2d) for module in plain(model, images()).modules())
    torch.testing.assert_close(plain(model, images())(images()), model(images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain(layer, images())(images()), layer(images()), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="0 needs pictures of one size, it had"):
        plain(nn.Sequential(layer, nn.MaxPool2d(2), layer).eval(), images())


def test_onnxruntime_gives_the_codes_of_scn(tmp_path: Path) -> None:
    """One of its fourteen layers: all of them take a minute and a half."""
    layer = PatchCoding(3, 4, stride=2)
    nn.init.constant_(layer.lmbda, 0.01)
    check_onnx(nn.Sequential(nn.BatchNorm2d(3, affine=False), layer).eval(), tmp_path / "model.onnx")


def test_onnxruntime_gives_mdeqs_logits(tmp_path: Path, two_steps: None) -> None:
    torch.manual_seed(0)
    model = Classifier("mdeq_small", std=[0.2, 0.3, 0.25], options={"width": 8})
    check_onnx(settled(model, images(8)), tmp_path / "model.onnx")


def test_saved_and_loaded_a_classifier_is_the_same(tmp_path: Path) -> None:
    model = Classifier("sdnet18", 3, [0.5] * 3, [0.2] * 3, {"width": 4, "lmbda": 0.3}, ("a", "b", "c")).eval()
    model(images())
    model.save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path).eval()
    assert loaded.classes == ("a", "b", "c") and loaded.network.layer0[0].dn.lmbda == 0.3
    assert torch.equal(loaded(images()), model(images()))


def test_a_calibration_is_saved_and_loaded(tmp_path: Path) -> None:
    model = Classifier("sdnet18", options={"width": 4})
    model.calibration = {"line_noise": torch.tensor([2.0, 0.1])}
    model.save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path).calibration
    assert loaded is not None and torch.equal(loaded["line_noise"], model.calibration["line_noise"])
    model.calibration = None
    model.save_pretrained(tmp_path)
    assert Classifier.from_pretrained(tmp_path).calibration is None


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_calibration_comes_from_the_hub_too(
    calibrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Classifier("sdnet18", options={"width": 4})
    model.calibration = {"line_noise": torch.tensor([2.0, 0.1])} if calibrated else None
    model.save_pretrained(tmp_path)

    def download(repo_id: str, filename: str, **options: object) -> str:
        assert repo_id == "someone/model"
        if not (tmp_path / filename).exists():
            raise huggingface_hub.errors.EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(classifier, "hf_hub_download", download)
    assert (Classifier.from_pretrained("someone/model").calibration is not None) == calibrated


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    Classifier("sdnet18", options={"width": 4}).save_pretrained(tmp_path / "one")
    Classifier("sdnet18_all", options={"width": 4}).save_pretrained(tmp_path / "other")
    (tmp_path / "one" / "model.safetensors").replace(tmp_path / "other" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not of the model in config\.json: .*layer1"):
        Classifier.from_pretrained(tmp_path / "other")


def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="sdnet18_all"):
        build("sdnet19")
    with pytest.raises(ValueError, match="no pretrained model 'cifar10_vgg'"):
        sdnet.load_pretrained("cifar10_vgg")


def test_models_ship() -> None:
    assert sorted(sdnet.pretrained()) == ["cifar10_resnet18_w16", "cifar10_sdnet18_all_w16", "cifar10_sdnet18_w16"]


@pytest.mark.parametrize("name", sdnet.pretrained())
def test_a_shipped_model_is_small_and_runs_at_once(name: str) -> None:
    model = sdnet.load_pretrained(name)
    assert (sdnet.pretrained()[name] / "model.safetensors").stat().st_size <= 3_000_000
    assert not model.training and model(images()).shape == (2, 10) and len(model.classes) == 10


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
    model, labels = SCN(2, 4), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images(4, 16)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
