"""Attacks and what makes them trustworthy: each check is seen to fail where it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

for package in (
    "foolbox",
    "huggingface_hub",
    "matplotlib",
    "pyautoattack",
    "sklearn",
    "timm",
    "torchvision",
    "typer",
):
    pytest.importorskip(package)

from sdnet import cli  # noqa: E402
from sdnet.errors import UserError  # noqa: E402
from sdnet.models import Classifier  # noqa: E402
from sdnet.robust import attacks, checks, evaluation, planted  # noqa: E402
from sdnet.robust.adaptive import AdaptiveClassifier  # noqa: E402
from sdnet.robust.attacks import Dense, Effort, Threat, auto, check_moved, pgd, random_noise  # noqa: E402
from sdnet.robust.certified import certified_radii, constant, lipschitz_bound, verdict  # noqa: E402
from sdnet.robust.detect import auroc, detect  # noqa: E402
from sdnet.robust.evaluation import Automatic, classified_right, defences, evaluate  # noqa: E402
from sdnet.robust.options import parsed  # noqa: E402
from sdnet.robust.pictures import Labelled, arrays, spread  # noqa: E402
from sdnet.robust.stem import AtLmbda  # noqa: E402
from sdnet.robust.sweep import grid  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

LINF = Threat("Linf", 16 / 255)
QUICK = Effort(restarts=1, steps=5, queries=5)


@pytest.fixture(scope="module")
def digits() -> Labelled:
    return spread(arrays("digits", None).test, 24)


@pytest.fixture(scope="module")
def model() -> Classifier:
    """An SDNet that has learned the digits a little, in about a second."""
    torch.manual_seed(0)
    made = Classifier("sdnet18", std=[0.5] * 3, options={"width": 4}, classes=tuple("0123456789"))
    training = spread(arrays("digits", None).train, 600)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for step in range(60):
        part = slice(step * 50 % 600, step * 50 % 600 + 50)
        loss = nn.functional.cross_entropy(made(training.pictures[part] / 255), training.labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def automatic(model: Classifier) -> AdaptiveClassifier:
    made = AdaptiveClassifier(method="residual", **model.arguments).eval().requires_grad_(False)
    made.load_state_dict({**made.state_dict(), **model.state_dict(), "line_residual": torch.tensor([0.3, 0.15])})
    return made


def pair(digits: Labelled) -> tuple[Tensor, Tensor]:
    return digits.pictures / 255, digits.labels


class Cut(nn.Module):
    """A model that no gradient leaves: robust to its own gradient's attacks alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach() + 0 * x)


# Threats and attacks.


def test_a_threat_is_read_and_written() -> None:
    assert parsed("Linf:8/255") == Threat("Linf", 8 / 255) and parsed("L2:0.5") == Threat("L2", 0.5)
    assert str(Threat("Linf", 8 / 255)) == "Linf 8/255" and str(Threat("L2", 0.5)) == "L2 0.5"


@pytest.mark.parametrize(
    "text, message",
    [("L3:1", "norm must be one of"), ("L2:-1", "eps must be above 0"), ("L2", "norm:eps, such as")],
)
def test_a_wrong_threat_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


@pytest.mark.parametrize("threat", [LINF, Threat("L2", 0.5)], ids=str)
def test_random_noise_has_the_threats_length(threat: Threat) -> None:
    x = torch.full((4, 3, 16, 16), 0.5)
    moved = (random_noise(x, threat, 0) - x).flatten(1)
    length = moved.abs().amax(1) if threat.norm == "Linf" else moved.norm(dim=1)
    torch.testing.assert_close(length, torch.full((4,), threat.eps), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threat", [LINF, Threat("L2", 1.5)], ids=str)
def test_pgd_is_worse_than_noise_and_stays_within(model: Classifier, digits: Labelled, threat: Threat) -> None:
    x, y = pair(digits)
    adversarial = pgd(model, x, y, threat, steps=20)
    check_moved(x, adversarial, threat)
    noisy = classified_right(model, random_noise(x, threat, 0), y).sum()
    assert noisy > len(y) / 2 and classified_right(model, adversarial, y).sum() < noisy - 3


@pytest.mark.parametrize("attack", evaluation.AUTO)
def test_autoattacks_attacks_stay_within(model: Classifier, digits: Labelled, attack: str) -> None:
    x, y = digits.pictures[:6] / 255, digits.labels[:6]
    check_moved(x, auto(model, x, y, LINF, attack, QUICK), LINF)


def test_a_wrong_point_on_the_way_is_kept() -> None:
    class Wrong(nn.Module):
        """Wrong about the first picture in its second call alone."""

        calls = 0

        def forward(self, pictures: Tensor) -> Tensor:
            self.calls += 1
            return torch.eye(2)[torch.tensor([self.calls == 2, False]).long()]

    x = torch.rand(2, 3, 4, 4)
    watched = attacks._Watched(Wrong().eval(), x, torch.zeros(2, dtype=torch.long))
    for moved in (x, x + 1, x + 2):
        watched(moved)
    assert watched.lost.tolist() == [True, False]
    assert watched.seen[0].equal(x[0] + 1) and watched.seen[1].equal(x[1])


def test_attacks_depend_on_the_seed_and_leave_the_generator(model: Classifier, digits: Labelled) -> None:
    x, y = pair(digits)
    before = torch.random.get_rng_state()
    first, again, other = (pgd(model, x, y, LINF, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_attack_that_goes_too_far_is_caught(digits: Labelled) -> None:
    x, _ = pair(digits)
    with pytest.raises(RuntimeError, match="moved a picture by"):
        check_moved(x, (x + 17 / 255).clamp(0, 1), LINF)
    with pytest.raises(RuntimeError):
        check_moved(x, x - 0.01, LINF)


def test_a_model_in_training_mode_is_refused(model: Classifier, digits: Labelled, tmp_path: Path) -> None:
    x, y = pair(digits)
    model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            pgd(model, x, y, LINF, 1)
        with pytest.raises(ValueError, match="training mode"):
            list(evaluate(defences({"m": model}, {}, [], [0.1]), digits, [LINF], tmp_path / "a.csv", QUICK))
    finally:
        model.eval()


@pytest.mark.parametrize("package, run", [("foolbox", "pgd"), ("pyautoattack", "auto")])
def test_a_missing_library_is_named(
    model: Classifier, digits: Labelled, monkeypatch: pytest.MonkeyPatch, package: str, run: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    last = {"pgd": (1,), "auto": ("square", QUICK)}[run]
    with pytest.raises(UserError, match=f"attacks need the package {package}.*pip install"):
        getattr(attacks, run)(model, *pair(digits), LINF, *last)


def test_mdeqs_gradient_reaches_the_picture_under_attack_alone() -> None:
    torch.manual_seed(0)
    made = Classifier("mdeq_small", options={"width": 8}).eval().requires_grad_(False)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    (through,) = torch.autograd.grad(Dense(made)(x).square().sum(), x)
    assert through.abs().sum() > 0


# The table.


def test_defences_stand_beside_each_other(model: Classifier, automatic: AdaptiveClassifier) -> None:
    resnet = Classifier("resnet18", options={"width": 2}).eval()
    made = defences({"m": model, "r": resnet}, {"m": automatic}, [0.5], [0.1, 0.5])
    assert [(d.model, d.name) for d in made] == [
        ("m", "training lmbda"), ("m", "lmbda 0.5"), ("m", "automatic, residual"), ("r", "none"),
    ]  # fmt: skip
    static = "transfer from the training lmbda (published setting, overstates)"
    assert static in made[1].sources and made[1].sources[static] is model
    assert "transfer from r" in made[0].sources and "lmbda held constant (BPDA)" in made[2].sources


def test_what_is_attacked_is_what_is_evaluated(
    model: Classifier, automatic: AdaptiveClassifier, digits: Labelled
) -> None:
    x, _ = pair(digits)
    raised, own = defences({"m": model}, {"m": automatic}, [0.9], [0.1])[1:]
    torch.testing.assert_close(raised.deployed(x), AtLmbda(model, 0.9)(x))
    torch.testing.assert_close(own.deployed(x), automatic(x))
    assert not torch.allclose(raised.deployed(x), model(x))


def test_a_constant_lmbda_changes_the_gradient_and_not_the_logits(
    automatic: AdaptiveClassifier, digits: Labelled
) -> None:
    points = (0.2 + 0.6 * digits.pictures[:4] / 255).requires_grad_()
    whole, held = Automatic(automatic), Automatic(automatic, constant=True)
    torch.testing.assert_close(whole(points), held(points))
    first, second = (torch.autograd.grad(m(points).square().sum(), points)[0] for m in (whole, held))
    assert not torch.allclose(first, second)


def test_a_table_of_attacks_goes_on_and_is_resumed(
    model: Classifier, automatic: AdaptiveClassifier, digits: Labelled, tmp_path: Path
) -> None:
    few = Labelled(digits.pictures[:8], digits.labels[:8])
    made = defences({"m": model}, {"m": automatic}, [0.5], [0.1, 0.5])
    stopped = evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=["square"])
    first = [next(stopped)[0] for _ in range(4)]
    stopped.close()
    rows = list(evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=["square"]))
    assert [row for row, new in rows if not new] == first and len(rows) == 5 + 6 + 7
    clean = next(row for row, _ in rows if row["attack"] == "clean")
    assert clean["survived"].count("1") == classified_right(model, few.pictures / 255, few.labels).sum()
    shown = evaluation.table_rows([row for row, _ in rows])
    assert [row["defence"] for row in shown] == ["training lmbda", "lmbda 0.5", "automatic, residual"]
    for row in shown:
        values = [float(row[name]) for name in evaluation.COLUMNS if row[name]]
        assert float(row["worst case"]) <= min(values) and row["threat"] == "Linf 16/255"
    assert shown[2]["PGD, BPDA"] and not shown[0]["PGD, BPDA"]


def test_of_autoattack_each_takes_the_pictures_that_those_before_left(
    model: Classifier, digits: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Labelled(digits.pictures[:8], digits.labels[:8])
    seen: list[tuple[str, int]] = []

    def double(model, pictures, labels, threat, attack, effort, seed):
        seen.append((attack, len(pictures)))
        return pictures

    right = torch.ones(8, dtype=torch.bool)

    def judged(model, adversarial, labels):
        fates = right.clone()
        if seen:
            fates[: 2 * len(seen)] = False
        return fates

    monkeypatch.setattr(evaluation, "auto", double)
    monkeypatch.setattr(evaluation, "classified_right", judged)
    made = defences({"m": model}, {}, [], [0.1])
    attacks = ["apgd-ce", "apgd-t", "square"]
    rows = [row for row, _ in evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=attacks)]
    assert seen == [("apgd-ce", 8), ("apgd-t", 6), ("square", 8)]
    fates = {row["attack"]: row["survived"] for row in rows if row["attack"] in attacks}
    assert fates["apgd-ce"] == "00111111" and fates["apgd-t"] == "00001111"
    # What is left is known from the file, too.
    lines = (tmp_path / "a.csv").read_text().splitlines(keepends=True)
    (tmp_path / "a.csv").write_text("".join(line for line in lines if ",apgd-t," not in line))
    seen.clear()
    list(evaluate(made, few, [LINF], tmp_path / "a.csv", QUICK, attacks=attacks))
    assert seen == [("apgd-t", 6)]


def row(attack: str, survived: str, through: str = "itself") -> dict[str, str]:
    return {"model": "m", "defence": "d", "norm": "L2", "eps": "0.5", "attack": attack, "through": through,
            "survived": survived}  # fmt: skip


def test_the_worst_case_is_per_picture() -> None:
    assert evaluation.worst([row("a", "1101"), row("b", "1011")]) == 0.5


def test_a_transfer_that_beats_the_white_box_is_told() -> None:
    weak = [row("pgd-100", "1110"), row("pgd-100", "0000", "transfer from r"), row("random noise", "1111", "")]
    (found,) = evaluation.strength_checks(weak)
    assert found["white box is the strongest"].startswith("no: transfer from ResNet 0.0")
    (found,) = evaluation.strength_checks([row("pgd-100", "0000"), row("square", "1000")])
    assert found["white box is the strongest"] == "yes"


def test_the_interval_is_wilsons() -> None:
    assert evaluation.interval(0.5, 1000) == pytest.approx((0.469, 0.531), abs=1e-3)
    assert evaluation.interval(0.0, 500)[0] == 0 and 0 < evaluation.interval(0.0, 500)[1] < 0.01


# The checks, and that they can fail.


@pytest.fixture(scope="module")
def kept(model: Classifier, digits: Labelled) -> dict[str, checks.Check]:
    few = Labelled(digits.pictures[:6], digits.labels[:6])
    return {check.name: check for check in checks.checks(model, few, LINF)}


def test_an_honest_model_passes_its_checks(kept: dict[str, checks.Check]) -> None:
    assert len(kept) == 8 and [check for check in kept.values() if not check.passed] == []


def test_a_model_without_gradient_fails_them(model: Classifier, digits: Labelled) -> None:
    x, y = digits.pictures[:6] / 255, digits.labels[:6]
    assert not checks.gradients_are_not_masked(Dense(Cut(model)), x, y).passed
    assert not checks.gradient_is_the_difference_quotient(Dense(Cut(model)), x[:2], y[:2], 0).passed
    assert not checks.unbounded_eps_leaves_nothing(Cut(model), x, y, 0).passed
    found = planted.planted_is_found(Cut(model), x[:3], LINF)
    assert not found.passed and found.seen.startswith("0 of 3")


def test_an_empty_code_is_seen(model: Classifier, digits: Labelled) -> None:
    x, _ = pair(digits)
    assert checks.codes_are_not_empty(model, x).passed
    assert checks.codes_are_not_empty(AtLmbda(model, 1e6), x).seen == "100.0%"


def test_a_choice_by_batch_is_seen(model: Classifier, digits: Labelled) -> None:
    class OfTheBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x) + x.mean()

    x, _ = pair(digits)
    assert checks.inference_is_deterministic_and_per_picture(model, x).passed
    assert not checks.inference_is_deterministic_and_per_picture(OfTheBatch(), x).passed


def test_the_planted_point_is_adversarial_and_its_picture_is_not(model: Classifier, digits: Labelled) -> None:
    x = digits.pictures[:6] / 255
    victim, points = planted.plant(model, x, LINF)
    check_moved(x, points, LINF)
    assert victim(points).argmax(1).tolist() == [1] * 6 and victim(x).argmax(1).tolist() == [0] * 6


# Out of distribution, and certified radii.


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0])) == 0.75


def test_the_residual_tells_noise_from_digits(model: Classifier, digits: Labelled, tmp_path: Path) -> None:
    wanted = grid(["gaussian_noise"], [5], scan=False)
    (found,) = detect("m", model, digits, tmp_path / "d.csv", wanted)
    assert float(found["noise"]) > 0.9 and 0 <= float(found["residual"]) <= 1
    assert list(detect("m", model, digits, tmp_path / "d.csv", wanted)) == [found]


@pytest.mark.parametrize("name", ["sdnet18", "sdnet18_all", "resnet18"])
def test_no_pair_of_pictures_breaks_the_lipschitz_bound(name: str) -> None:
    torch.manual_seed(0)
    made = Classifier(name, std=[0.3] * 3, options={"width": 2}).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.rand(4, 3, 16, 16)
    y = x + 0.01 * torch.randn_like(x)
    with torch.no_grad():
        ratio = (made(x) - made(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert ratio.max() <= lipschitz_bound(made, (16, 16))


def test_a_codes_constant_holds_and_is_not_idle() -> None:
    torch.manual_seed(0)
    layer = Classifier("sdnet18", options={"width": 4}).eval().network.layer0[0].dn
    layer.lmbda = 0.0
    x = torch.randn(1, 3, 16, 16)
    seen = 0.0
    for _ in range(30):
        y = x + 1e-2 * torch.nn.functional.normalize(torch.randn_like(x).flatten(1)).view_as(x)
        with torch.no_grad():
            seen = max(seen, ((layer(x) - layer(y)).norm() / (x - y).norm()).item())
    assert 0.02 * constant(layer) < seen <= constant(layer)


def test_overlapping_windows_of_a_max_pool_count() -> None:
    pool, x, y = nn.MaxPool2d(3, 2, 1), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    y[0, 0, 3, 3] = 1.0
    assert float((pool(x) - pool(y)).norm()) == constant(pool) == 2.0 and constant(nn.MaxPool2d(2)) == 1.0


def test_a_code_with_momentum_has_no_constant() -> None:
    layer = Classifier("sdnet18", options={"width": 4}).eval().network.layer0[0].dn
    layer.n_iter = 3
    with pytest.raises(ValueError, match="n_iter"):
        constant(layer)


def test_radii_are_margins_over_the_bound(model: Classifier, digits: Labelled) -> None:
    x, y = pair(digits)
    radii = certified_radii(model, x, y)
    right = model(x).argmax(1) == y
    assert (radii[right] > 0).all() and (radii[~right] == 0).all()
    assert "vacuous" in verdict(radii, lipschitz_bound(model, (16, 16)))


def test_a_network_without_a_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="got SCN"):
        lipschitz_bound(Classifier("scn", options={"width": 2}))


# The commands.


def command(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def results(automatic: AdaptiveClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack")
    automatic.save_pretrained(folder / "own")
    arguments = (
        "attack", "--model", folder / "own", "--out", folder / "out", "--data", "digits", "--pictures", 6,
        "--threat", "Linf:16/255", "--attacks", "square", "--steps", 3, "--restarts", 1, "--queries", 3,
    )  # fmt: skip
    for kept in (0, 18):
        result = command(*arguments)
        assert result.exit_code == 0 and f"18 cells, {kept} of them" in result.output, result.output
    result = command(
        "robust", "--model", folder / "own", "--out", folder / "out", "--data", "digits", "--pictures", 6,
        "--corruption", "shot_noise", "--severity", 5, "--lmbda", 0.1, "--lmbda", 0.5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    arguments = ("--results", folder / "out", "--data", "digits", "--pictures", 12)
    result = command("report", folder / "own", "--out", folder / "page.html", *arguments)
    assert result.exit_code == 0, result.output
    return folder


def test_attack_writes_tables_and_checks(results: Path) -> None:
    text = (results / "out" / "attack.md").read_text()
    assert "published setting, overstates" in text and "planted adversarial examples found" in text


def test_the_page_holds_all_results(results: Path) -> None:
    text = (results / "page.html").read_text()
    shown = re.sub(r"base64,[^\"]*", "", text)
    for heading in ("Clean accuracy", "Noise", "Attacks", "Checks", "Certified radius", "Dictionary", "describe"):
        assert re.search(f"<h2>[^<]*{heading}", shown), heading
    assert not re.search(r"(https?:)?//[a-z]", shown) and "vacuous" in shown


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_opens_in_a_browser(results: Path, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    script = "<script>for(const i of document.images)document.title+=' '+(i.complete?i.naturalWidth:0)</script>"
    seen = tmp_path / "seen.html"
    seen.write_text((results / "page.html").read_text().replace("</body>", f"{script}</body>"))
    done = subprocess.run(["chromium", *options, seen.as_uri()], capture_output=True, text=True, timeout=120)
    widths = re.search(r"<title>own((?: \d+)+)</title>", done.stdout)
    assert widths and len(widths[1].split()) == 4 and all(int(width) > 300 for width in widths[1].split())


@pytest.mark.parametrize(
    "options, message",
    [
        (["--threat", "L3:1"], "norm must be one of"),
        (["--threat", "L2:none"], "such as Linf:8/255"),
        (["--attacks", "hope"], "no attack hope; there is apgd-ce"),
        (["--lmbda", "-1"], "lmbda must be at least 0"),
        (["--model", "nowhere"], "no model 'nowhere'"),
    ],
)
def test_bad_input_to_attack_ends_with_a_message(
    options: list[str], message: str, results: Path, tmp_path: Path
) -> None:
    result = command(
        "attack", "--model", results / "own", "--out", tmp_path, "--data", "digits", "--pictures", 2, *options
    )
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
