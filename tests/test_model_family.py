"""The models as timm, torch.export, torch.compile, ONNX and huggingface_hub see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

for package in ("huggingface_hub", "timm", "torchdeq", "torchvision"):
    pytest.importorskip(package)

import huggingface_hub  # noqa: E402
import sdnet  # noqa: E402
import timm  # noqa: E402
from sdnet.errors import CheckpointError  # noqa: E402
from sdnet.export import export_onnx, plain  # noqa: E402
from sdnet.models import MODELS, Classifier, build, classifier, mdeq  # noqa: E402
from sdnet.models.scn import PatchCoding  # noqa: E402
from sdnet.robust.adaptive import METHODS, AdaptiveClassifier  # noqa: E402
from sdnet.robust.commands import fixed  # noqa: E402
from sdnet.training.statistics import csc_layers  # noqa: E402
from settled import images, settled  # noqa: E402

import csc_kernels as csc  # noqa: E402

SDNETS = ("sdnet18", "sdnet34", "sdnet18_all", "sdnet34_all")


@pytest.mark.parametrize("name", [*SDNETS, "mdeq_small", "scn"])
def test_timm_makes_the_model(name: str) -> None:
    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in model.state_dict().items()}

    model = timm.create_model(name, num_classes=7, width=8).eval()
    assert shapes(model) == shapes(build(name, num_classes=7, width=8))
    assert model(images()).shape == (2, 7)


def test_what_timm_passes_on_and_the_model_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="sdnet18 has no option drop_rate; it has num_classes, stem, width"):
        timm.create_model("sdnet18", drop_rate=0.1)


@pytest.mark.parametrize("name", [*SDNETS, "mdeq_small", "scn"])
def test_timm_makes_a_model_of_pictures_with_any_channels(name: str) -> None:
    model = timm.create_model(name, in_chans=2, width=8).eval()
    assert model(torch.rand(2, 2, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("stem, reductions", (("cifar", [1, 1, 2, 4, 8]), ("imagenet", [2, 4, 8, 16, 32])))
@pytest.mark.parametrize("name", SDNETS)
def test_timm_gives_the_maps_of_the_stages(name: str, stem: str, reductions: list[int]) -> None:
    x, options = torch.rand(2, 1, 64, 64), {"in_chans": 1, "width": 4, "stem": stem}
    torch.manual_seed(0)
    whole = timm.create_model(name, **options).eval()
    torch.manual_seed(0)
    backbone = timm.create_model(name, features_only=True, **options).eval()
    assert backbone.feature_info.reduction() == reductions
    assert backbone.feature_info.channels() == [4, 4, 8, 16, 32]
    layers = [whole.layer0, whole.layer1, whole.layer2, whole.layer3, whole.layer4]
    expected, y = [(whole.layer0[:-1] if stem == "imagenet" else whole.layer0)(x)], x
    for layer in layers:
        y = layer(y)
        expected.append(y)
    del expected[1]
    maps = backbone(x)
    assert [tuple(found.shape[2:]) for found in maps] == [(64 // by, 64 // by) for by in reductions]
    assert all(torch.equal(found, wanted) for found, wanted in zip(maps, expected, strict=True))
    torch.manual_seed(0)
    some = timm.create_model(name, features_only=True, out_indices=(1, -2), **options).eval()(x)
    assert [torch.equal(found, maps[index]) for found, index in zip(some, (1, 3), strict=True)] == [True, True]


@pytest.mark.parametrize("name", ("sdnet18", "sdnet18_all"))
@pytest.mark.parametrize("inside", (False, True))
def test_a_backbone_takes_the_weights_of_the_whole_model(name: str, inside: bool, tmp_path: Path) -> None:
    whole = timm.create_model(name, width=4, num_classes=3).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    path = "" if inside else str(tmp_path / "whole.pt")
    backbone = timm.create_model(
        name, width=4, num_classes=3, features_only=True, out_indices=(1, 3), checkpoint_path=path
    ).eval()
    if inside:
        state = {f"0.{key}": value for key, value in whole.state_dict().items()}
        nn.Sequential(backbone).load_state_dict(state)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(backbone(x)[1], whole.layer3(whole.layer2(whole.layer1(whole.layer0(x)))))
    again = timm.create_model(name, width=4, features_only=True, out_indices=(1, 3)).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(x)[1], backbone(x)[1])


def test_a_number_of_maps_is_of_the_last() -> None:
    backbone = timm.create_model("sdnet18", width=4, features_only=True, out_indices=2)
    assert backbone.feature_info.channels() == [16, 32]


def test_maps_that_a_model_has_not_are_named() -> None:
    with pytest.raises(ValueError, match="features_only: SCN has no stages"):
        timm.create_model("scn", features_only=True)
    with pytest.raises(ValueError, match=r"out_indices must be some of \(0, 1, 2, 3, 4\)"):
        timm.create_model("sdnet18", features_only=True, out_indices=(5,))
    with pytest.raises(ValueError, match=r"out_indices must differ, got \(-1, 4\)"):
        timm.create_model("sdnet18", features_only=True, out_indices=(-1, 4))
    with pytest.raises(ValueError, match="or count from the end; got 0"):
        timm.create_model("sdnet18", features_only=True, out_indices=0)
    with pytest.raises(ValueError, match="out_indices are of features_only=True"):
        timm.create_model("sdnet18", out_indices=(1,))


def test_a_classifier_has_a_mean_for_each_channel() -> None:
    with pytest.raises(ValueError, match="one number per channel, of which there are 1"):
        Classifier("sdnet18", options={"in_channels": 1})
    grey = Classifier("sdnet18", mean=[0.5], std=[0.2], options={"in_channels": 1, "width": 4}).eval()
    assert grey(torch.rand(2, 1, 16, 16)).shape == (2, 10)


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


def test_onnxruntime_gives_the_same_logits_for_any_number_of_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier("sdnet18_all", std=[0.2, 0.3, 0.25], options={"width": 4})
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


def test_a_saved_model_keeps_what_was_set_in_its_layers(tmp_path: Path) -> None:
    model = Classifier("sdnet18_all", options={"width": 4, "lmbda": 0.05}).eval()
    for folder, changes in ((tmp_path / "none", {}), (tmp_path / "some", {"lmbda": 0.4, "n_iter": 3})):
        for name, value in changes.items():
            setattr(model.network.layer0[0].dn, name, value)
        model.save_pretrained(folder)
        kept = json.loads((folder / "config.json").read_text()).get("settings") or {}
        assert {name: value for name, value in kept.get("layer0.0.dn", {}).items()} == changes
        loaded = Classifier.from_pretrained(folder).eval()
        pictures = torch.rand(2, 3, 32, 32)
        assert torch.equal(loaded(pictures), model(pictures))
        loaded.save_pretrained(folder / "again")
        assert torch.equal(Classifier.from_pretrained(folder / "again").eval()(pictures), model(pictures))


def test_a_saved_model_keeps_tensors_and_parameters_set_in_its_layers(tmp_path: Path) -> None:
    model = Classifier("sdnet18_all", options={"width": 4}).eval()
    csc.set_lmbda(model, nn.Parameter(torch.tensor(0.2), requires_grad=False))  # All layers share it.
    layer = model.network.layer0[0].dn
    layer.lmbda = torch.rand(4, 1, 1, dtype=torch.float64) / 3
    layer.mu = nn.Parameter(torch.rand(1, 4, 1, 1) / 3)
    model.save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path).eval()
    found = loaded.network.layer0[0].dn
    assert torch.equal(found.lmbda, layer.lmbda) and not isinstance(found.lmbda, nn.Parameter)
    assert torch.equal(found.mu, layer.mu) and isinstance(found.mu, nn.Parameter) and found.mu.requires_grad
    shared = {module.lmbda for name, module in loaded.named_modules() if name.endswith("conv1.dn")}
    assert len(shared) == 1 and not shared.pop().requires_grad
    assert torch.equal(loaded(images()), model(images()))


def test_a_tensor_among_the_settings_says_of_which_type() -> None:
    with pytest.raises(ValueError, match="a tensor has values and a dtype, got values"):
        Classifier("sdnet18", options={"width": 4}, settings={"layer0.0.dn": {"lmbda": {"values": [0.1]}}})


@pytest.mark.parametrize("settings", ({"nope": {"lmbda": 1.0}}, {"layer0.0.dn": {"forward": 1.0}}))
def test_unknown_settings_are_named(settings: dict) -> None:
    with pytest.raises(ValueError, match="settings: sdnet18 has no sparse coding layer"):
        Classifier("sdnet18", options={"width": 4}, settings=settings)


def test_a_saved_model_says_for_which_images_its_step_sizes_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, small, large = Classifier("sdnet18_all", options={"width": 16}), images(2), torch.rand(2, 3, 96, 96)
    model(small)
    assert any(layer.step_size_of for layer in csc_layers(model).values())
    model.eval().save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path).eval()
    for pictures in (small, large):
        assert torch.equal(loaded(pictures), model(pictures))
        for one, other in zip(csc_layers(loaded).values(), csc_layers(model).values()):
            assert torch.equal(one.step_size, other.step_size)


def test_a_model_that_chooses_lmbda_keeps_what_was_set_in_its_layers(tmp_path: Path) -> None:
    model = Classifier("sdnet18_all", options={"width": 4}).eval()
    model.calibration = {f"line_{name}": torch.tensor([0.5, 0.1]) for name in METHODS} | {"best": torch.tensor(0)}
    second = list(csc_layers(model))[1]
    model.get_submodule(second).n_iter = 3
    sdnet.adapt(model).save_pretrained(tmp_path)
    loaded = AdaptiveClassifier.from_pretrained(tmp_path)
    assert not fixed(loaded.train()).network.training
    for one in (loaded, fixed(loaded)):
        assert [name for name, layer in csc_layers(one).items() if layer.n_iter == 3] == [second]


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
