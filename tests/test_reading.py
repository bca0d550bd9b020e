"""Reading a network: inversion, figures, the page, and convolutions that become codes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

for package in ("huggingface_hub", "matplotlib", "sklearn", "timm", "torchvision", "typer"):
    pytest.importorskip(package)

import sdnet  # noqa: E402
from sdnet import cli  # noqa: E402
from sdnet.errors import DataError  # noqa: E402
from sdnet.models import Classifier  # noqa: E402
from sdnet.reading import invertible_layers  # noqa: E402
from sdnet.reading.figures import equalised  # noqa: E402
from sdnet.reading.inversion import unnormalised  # noqa: E402
from sdnet.reading.pictures import few_pictures  # noqa: E402
from sdnet.reading.report import write_report  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import csc_kernels as csc  # noqa: E402

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def chain(seed: int = 0, **options) -> Classifier:
    """SDNet-18-all without shortcuts whose batch norms do something."""
    torch.manual_seed(seed)
    model = Classifier("sdnet18_all", mean=MEAN, std=STD, options={"width": 4, "shortcut": False, **options})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_stems_inversion_is_the_synthesis_of_its_code(pictures: torch.Tensor) -> None:
    model = Classifier("sdnet18", mean=MEAN, std=STD, options={"width": 8}).eval()
    layer = model.network.layer0[0].dn
    with torch.no_grad():
        code = layer((pictures - model.mean) / model.std)
        expected = layer.reconstruct(code) * model.std + model.mean
    torch.testing.assert_close(sdnet.invert(model, pictures), expected)


def test_a_second_codes_inversion_goes_through_the_norm_and_the_stem(pictures: torch.Tensor) -> None:
    model = chain()
    network, x = model.network, (pictures - model.mean) / model.std
    first, norm = network.layer0[0].dn, network.layer0[1]
    second = network.layer1.layers[0].conv1.dn
    with torch.no_grad():
        described = second.reconstruct(second(norm(first(x))))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        before = (described - norm.bias[:, None, None]) / scale[:, None, None] + norm.running_mean[:, None, None]
        expected = first.reconstruct(before) * model.std + model.mean
    found = sdnet.invert(model, pictures, layer="layer1.layers.0.conv1.dn")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_norm_is_undone() -> None:
    norm = chain().network.layer0[1]
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(unnormalised(norm, norm(x)), x)


def test_a_norm_that_lost_a_channel_gives_its_mean() -> None:
    norm = chain().network.layer0[1]
    norm.weight.data[2] = 0
    x = unnormalised(norm, norm(torch.randn(2, 4, 3, 3)))
    assert x.isfinite().all() and (x[:, 2] == norm.running_mean[2]).all()


@pytest.mark.parametrize("size", [(32, 32), (29, 35)])
def test_every_layer_gives_pictures_of_the_images_size(size: tuple[int, int]) -> None:
    model, images = chain(), torch.rand(1, 3, *size)
    assert len(invertible_layers(model)) == 17
    for layer in invertible_layers(model)[::4]:
        found = sdnet.invert(model, images, layer=layer)
        assert found.shape == images.shape and found.isfinite().all()


def test_the_imagenet_stem_is_inverted_too() -> None:
    model, images = chain(stem="imagenet"), torch.rand(1, 3, 64, 64)
    assert len(invertible_layers(model)) == 18
    assert sdnet.invert(model, images).shape == images.shape


def test_reading_leaves_the_modes_and_the_state_of_the_model(pictures: torch.Tensor, tmp_path: Path) -> None:
    model = chain().train()
    model.network.layer0[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sdnet.invert(model, pictures, layer="layer0.0.dn")
    write_report(tmp_path / "page.html", model, pictures, "a title")
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_with_shortcuts_only_the_first_block_leads_back(pictures: torch.Tensor) -> None:
    model = chain(shortcut=True)
    names = ["layer0.0.dn", "layer1.layers.0.conv1.dn", "layer1.layers.0.conv2.dn"]
    assert invertible_layers(model) == names
    with pytest.raises(ValueError, match="does not lead back.*layer1.layers.0.conv2.dn do"):
        sdnet.invert(model, pictures, layer="layer3.layers.0.conv1.dn")


def test_another_network_is_refused(pictures: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="Linear"):
        sdnet.invert(nn.Linear(3, 3), pictures)


def test_equalised_pictures_rank_their_pixels() -> None:
    x = torch.tensor([[[[5.0, -1.0], [100.0, 7.0]]]])
    torch.testing.assert_close(equalised(x), torch.tensor([[[[1 / 3, 0.0], [1.0, 2 / 3]]]]))


# The page.


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, chain(), torch.rand(4, 3, 32, 32), "a <model>")
    return path


def test_the_page_holds_all_that_it_shows(page: Path) -> None:
    text = page.read_text()
    assert text.count("<img") == 3 == text.count('src="data:image/png;base64,')
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert "a &lt;model&gt;" in text and text.count("<tr>") == 1 + 17


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_opens_in_a_browser_without_a_network(page: Path, tmp_path: Path) -> None:
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--proxy-server=127.0.0.1:9", "--dump-dom",
    ]  # fmt: skip
    script = "<script>for(const i of document.images)document.title+=' '+(i.complete?i.naturalWidth:0)</script>"
    seen = tmp_path / "seen.html"
    seen.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    done = subprocess.run([*command, seen.as_uri()], capture_output=True, text=True, timeout=120)
    widths = re.search(r"<title>a &lt;model&gt;((?: \d+)+)</title>", done.stdout)
    assert widths and all(int(width) > 300 for width in widths[1].split())


def test_show_and_invert_write_their_files(tmp_path: Path) -> None:
    chain().save_pretrained(tmp_path / "model")
    for command, name in (("show", "page.html"), ("invert", "layers.png")):
        result = CliRunner().invoke(cli.app, [command, str(tmp_path), "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).stat().st_size > 10_000


def test_show_writes_its_figures_as_files_too(tmp_path: Path) -> None:
    chain().save_pretrained(tmp_path / "model")
    options = ["--out", str(tmp_path / "page.html"), "--figures", str(tmp_path / "figures")]
    result = CliRunner().invoke(cli.app, ["show", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    names = ["dictionary_and_most_active_atoms.png", "sparsity.png", "what_the_codes_describe.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names
    assert all((tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)


@pytest.mark.parametrize(
    "options, message",
    [
        (["nowhere"], "no model 'nowhere'"),
        (["MODEL", "--layer", "layer9"], "does not lead back"),
        (["MODEL", "--pictures", "EMPTY"], "holds no pictures"),
    ],
)
def test_bad_input_ends_with_a_message(options: list[str], message: str, tmp_path: Path) -> None:
    chain().save_pretrained(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    places = {"MODEL": str(tmp_path), "EMPTY": str(tmp_path / "empty")}
    arguments = [places.get(option, option) for option in options]
    result = CliRunner().invoke(cli.app, ["invert", *arguments, "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("command, name", [("show", "x.png"), ("invert", "x.txt"), ("invert", "x")])
def test_what_cannot_be_written_so_is_named(command: str, name: str, tmp_path: Path) -> None:
    chain().save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(cli.app, [command, str(tmp_path), "--out", str(tmp_path / name)])
    assert result.exit_code == 1 and "must end in" in result.output and not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "name, message", [("resnet18", "has no sparse coding layer to invert"), ("scn", "only SDNets can be inverted")]
)
def test_a_network_that_cannot_be_inverted_is_named(name: str, message: str, tmp_path: Path) -> None:
    Classifier(name, options={"width": 4}).save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(cli.app, ["invert", str(tmp_path), "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    chain().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    result = CliRunner().invoke(cli.app, ["show", str(tmp_path), "--out", str(tmp_path / "x.html")])
    assert result.exit_code == 1 and "holds no model that fits" in result.output


# Convolutions that become codes.


def test_filters_become_atoms_of_unit_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.ReLU())
    weight = model[0].weight.detach().clone()
    sdnet.replace_convs(model, show=False)
    assert isinstance(model[0], csc.CSCConv2d)
    torch.testing.assert_close(model[0].weight.detach(), nn.functional.normalize(weight, dim=(1, 2, 3)))
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 8, 5, 5)


def test_a_model_with_modules_in_place_trains_and_weights_of_zeros_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
    nn.init.zeros_(model[2].weight)
    model.append(torch.jit.script(nn.ReLU(inplace=True)))
    done = sdnet.replace_convs(model, show=False)
    assert [entry.reason for entry in done] == [None, "is zero, which has no direction"]
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert model[0].weight.grad is not None


def test_a_classifier_whose_layers_are_others_is_not_saved(tmp_path: Path) -> None:
    model = Classifier("sdnet18", options={"width": 4})
    sdnet.replace_convs(model.network, "layer1.0.*", show=False)
    with pytest.raises(ValueError, match=r"sdnet18 has other sparse coding layers than this network \(layer1"):
        model.save_pretrained(tmp_path / "model")


def test_an_unreadable_picture_is_named_and_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        few_pictures(tmp_path)
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"b\.png cannot be read: No such file"):
        few_pictures(tmp_path)


def test_a_bias_stays_behind_the_code() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    bias = model[0].bias
    sdnet.replace_convs(model, show=False)
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(model(x), model[0][0](x) + bias[:, None, None])


def test_patterns_choose_the_layers_and_reasons_say_what_stays() -> None:
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "body": nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, dilation=2)),
        }
    )
    done = sdnet.replace_convs(model, ["stem", "body.*"], show=False)
    assert {entry.name: entry.reason for entry in done} == {
        "stem": None, "body.0": "has 8 groups", "body.1": "has dilation (2, 2)",
    }  # fmt: skip
    assert isinstance(model["body"][0], nn.Conv2d)


def test_a_pattern_without_a_match_lists_the_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    for patterns in ("head.*", ["0", "head.*"]):
        with pytest.raises(ValueError, match=r"no convolution matches \['head\.\*'\]; the model has 0"):
            sdnet.replace_convs(model, patterns)
    assert isinstance(model[0], nn.Conv2d)


def test_a_convolution_in_two_places_becomes_one_layer_in_both() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    done = sdnet.replace_convs(model, "0", show=False)
    assert [entry.name for entry in done] == ["0"] and isinstance(model[2], nn.Conv2d)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    sdnet.replace_convs(model, show=False)
    assert isinstance(model[0], csc.CSCConv2d) and model[0] is model[2]


def test_convolutions_that_share_a_weight_still_do() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).eval()
    model[2].weight = model[0].weight
    sdnet.replace_convs(model, show=False)
    assert model[0][0].weight is model[2][0].weight and model[0][1].bias is not model[2][1].bias
    assert not any(module.training for module in model.modules())


def test_a_convolution_with_hooks_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.utils.spectral_norm(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1))
    model[2].register_forward_hook(lambda conv, given, found: None)
    model.append(nn.Conv2d(3, 3, 1, dtype=torch.complex64))
    done = sdnet.replace_convs(model, show=False)
    assert [entry.reason for entry in done] == [None, "has hooks", "has hooks", "is of torch.complex64"]


def test_a_page_about_a_replaced_network_has_no_inversion(pictures: torch.Tensor, tmp_path: Path) -> None:
    """And none of a layer that the forward leaves out; a code may be negative."""
    model = nn.Sequential(csc.CSCConv2d(3, 8, 3, nonneg=False), nn.Flatten(1), nn.LazyLinear(2)).double()
    model(pictures.double())
    model[2].aside = csc.CSCConv2d(3, 8, 3)
    write_report(tmp_path / "page.html", model, pictures.double(), "a title")
    text = (tmp_path / "page.html").read_text()
    assert "Dictionary" in text and "What the codes describe" not in text


def test_a_convolution_alone_has_no_place_to_be_replaced_in() -> None:
    with pytest.raises(ValueError, match=r"put it into an nn\.Sequential"):
        sdnet.replace_convs(nn.Conv2d(3, 3, 1))


def test_a_timm_convnext_trains_with_codes_in_its_stem() -> None:
    import timm

    model = timm.create_model("convnext_atto", num_classes=4)
    sdnet.replace_convs(model, "stem.*", show=False)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    layer = next(module for module in model.modules() if isinstance(module, csc.CSCConv2d))
    assert layer.weight.grad.abs().sum() > 0
