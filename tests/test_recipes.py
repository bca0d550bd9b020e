"""Training: schedules, batches, recipes, and how bad input on the command line ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from rich.console import Console

for package in ("jsonargparse", "lightning", "tensorboard", "torchvision", "typer"):
    pytest.importorskip(package)

from sdnet import cli  # noqa: E402
from sdnet.data import TrainingBatches, load_data  # noqa: E402
from sdnet.data.arrays import Split, TrainingPictures, crop_and_flip  # noqa: E402
from sdnet.errors import DataError, UserError  # noqa: E402
from sdnet.training import loop, recipes  # noqa: E402
from sdnet.training.recipe import DataRecipe, ScheduleRecipe  # noqa: E402
from sdnet.training.schedule import learning_rate  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

# Schedules and batches.


def test_the_cosine_rises_falls_and_ends_at_the_least() -> None:
    def rate(step: int) -> float:
        schedule = ScheduleRecipe(warm_up=1, least=1e-3)
        return learning_rate(step, highest=0.5, steps_per_epoch=10, epochs=5, schedule=schedule)

    assert rate(0) == pytest.approx(0.05) and rate(9) == pytest.approx(0.5)
    assert rate(30) == pytest.approx((0.5 + 1e-3) / 2) and rate(50) == pytest.approx(1e-3)


@pytest.mark.parametrize("warm_up", [0.01, 0.03, 0.5])
def test_a_rise_of_a_part_of_an_epoch_ends_at_the_highest_rate(warm_up: float) -> None:
    schedule = ScheduleRecipe(warm_up=warm_up)
    rates = [learning_rate(n, highest=0.1, steps_per_epoch=46, epochs=3, schedule=schedule) for n in range(30)]
    assert max(rates) == pytest.approx(0.1)


def test_steps_fall_where_the_published_schedule_has_them() -> None:
    rates = [
        learning_rate(10 * epoch, highest=0.1, steps_per_epoch=10, epochs=100, schedule=ScheduleRecipe("step"))
        for epoch in (0, 29, 30, 59, 60, 90)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-4])


def pictures(count: int = 37) -> TrainingPictures:
    generator = numpy.random.default_rng(0)
    images = generator.integers(1, 256, size=(count, 6, 5, 3), dtype=numpy.uint8)
    return TrainingPictures(Split(images, numpy.arange(count)), seed=3, pad=2, flip=True)


def test_an_epoch_shows_every_picture_once_but_the_rest_of_a_batch() -> None:
    batches = TrainingBatches(pictures(), 8, 0)
    labels = torch.cat([labels for _, labels in batches.epoch(0)])
    assert len(labels) == 32 and len(labels.unique()) == 32
    assert not torch.equal(labels, torch.cat([labels for _, labels in batches.epoch(1)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_from_any_batch_on_is_the_rest_of_it(workers: int) -> None:
    whole = list(TrainingBatches(pictures(), 8, 0).epoch(2))
    rest = list(TrainingBatches(pictures(), 8, workers).epoch(2, first=1))
    assert len(rest) == len(whole) - 1
    for (images, labels), (expected, expected_labels) in zip(rest, whole[1:]):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)


def test_processes_share_each_batch_of_one() -> None:
    whole = list(TrainingBatches(pictures(), 8, 0).epoch(1))
    shares = [list(TrainingBatches(pictures(), 8, 0, rank, 2).epoch(1)) for rank in (0, 1)]
    for (images, labels), *parts in zip(whole, *shares):
        assert torch.equal(torch.stack([part for part, _ in parts], 1).flatten(0, 1), images)
        assert torch.equal(torch.stack([part for _, part in parts], 1).flatten(), labels)


def test_crops_are_cut_from_the_padded_picture_and_mirrored() -> None:
    images = torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5) + 1
    draws = torch.tensor([[0.0, 0.99, 0.9], [0.5, 0.5, 0.1]])
    found = crop_and_flip(images, draws, pad=1, flip=True)
    padded = torch.nn.functional.pad(images, (1,) * 4)
    assert torch.equal(found[0], padded[0, :, 0:4, 2:7])
    assert torch.equal(found[1], images[1].flip(-1))


# Recipes and the command line.


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_is_read(name: str) -> None:
    recipe = recipes.read_recipe(name)
    assert recipe.epochs > 0 and recipe.model.name


def test_the_published_settings_are_those_of_the_recipes() -> None:
    cifar, imagenet = (recipes.read_recipe(f"{name}_sdnet18") for name in ("cifar100", "imagenet"))
    assert (cifar.epochs, cifar.data.batch, cifar.optimizer.rate, cifar.optimizer.decay) == (220, 128, 0.1, 5e-4)
    assert cifar.optimizer.nesterov and cifar.schedule.name == "cosine"
    assert (imagenet.epochs, imagenet.data.batch, imagenet.optimizer.decay) == (100, 512, 1e-4)
    assert not imagenet.optimizer.nesterov and imagenet.schedule.epochs == (30, 60, 90)
    assert recipes.read_recipe("imagenet_sdnet18_all").data.batch == 256


@pytest.mark.parametrize("name", ["cifar10_sdnet18_all_no_shortcut", "imagenet_sdnet18", "cifar100_scn"])
def test_a_trial_of_a_recipe_trains_and_checkpoints_without_its_data(name: str, tmp_path: Path) -> None:
    width = "8" if name.endswith("scn") else "4"
    recipe = recipes.smoke(recipes.read_recipe(name, ["--model.width", width, "--data.size", "48"]))
    loop.train(replace(recipe, threads=1), tmp_path, Console(quiet=True))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no_such_recipe"], "no recipe 'no_such_recipe'"),
        (["digits", "--epochss", "3"], "--epochss"),
        (["--epochs", "3", "digits"], "the recipe comes first"),
        (["archive.tar"], "archive.tar: 'utf-8' codec can't decode"),
        (["digits", "--epochs", "many"], "epochs"),
        (["digits", "--model.name", "vgg"], "model must be one of"),
        (["digits", "--model.options", "{colour: red}"], "no option colour"),
        (["digits", "--model.options", "{num_classes: 3}"], "num_classes is no option"),
        (["digits", "--strategy", "fsdp2", "--ema", "0.9"], "ema goes with --strategy ddp"),
        (["digits", "--strategy", "fsdp2", "--model.name", "scn"], "scn has parameters that cannot be shared out"),
        (["digits", "--data.batch", "0"], "batch of 0"),
        (["digits", "--data.workers", "-1"], "workers must be at least 0"),
        (["digits", "--epochs", "0"], "epochs must be at least 1 and finite, got 0"),
        (["digits", "--threads", "0"], "threads must be at least 1"),
        (["digits", "--checkpoint_steps", "0"], "checkpoint_steps must be at least 1"),
        (["digits", "--ema", "1.5"], "ema must be at least 0 and at most 1, got 1.5"),
        (["digits", "--label_smoothing", "5"], "label_smoothing must be at least 0 and at most 1, got 5"),
        (["digits", "--optimizer.rate", "-1"], "optimizer.rate must be at least 0"),
        (["digits", "--optimizer.rate", ".inf"], "optimizer.rate must be at least 0 and finite, got inf"),
        (["digits", "--optimizer.momentum", "0"], "needs an optimizer.momentum above 0"),
        (["digits", "--data.pad", "-1"], "data.pad must be at least 0"),
        (["digits", "--devices", "0"], "devices must be at least 1"),
        (["digits", "--seed", "99999999999"], "seed must be at least 0"),
        (["cifar100_sdnet18", "--data.root", "archive.tar"], "cifar100 is read from a folder"),
        (["cifar10_sdnet18"], "--data.root"),
        (["cifar10_sdnet18", "--data.root", "nowhere"], "cifar-10-batches-py"),
        (["imagenet_sdnet18", "--data.root", "nowhere"], "<class>/<file>"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_a_message_and_a_code(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("archive.tar").write_bytes(b"\xff\xfe\x88")
    result = CliRunner().invoke(cli.app, ["train", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    assert message in result.output and "Traceback" not in result.output


def test_an_unknown_field_in_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 2\ncolour: red\n")
    with pytest.raises(UserError, match="colour"):
        recipes.read_recipe(str(tmp_path / "mine.yaml"))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    data = load_data(DataRecipe(name="digits", random=True, limit=4), seed=0)
    with pytest.raises(DataError, match="more than the 4"):
        TrainingBatches(data.train, 8, 0)
