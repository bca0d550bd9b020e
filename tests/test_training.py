"""Training: schedules, batches, checkpoints, resuming after kill -9, recipes, and how bad input ends."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError

for package in ("jsonargparse", "lightning", "tensorboard", "torchvision", "typer"):
    pytest.importorskip(package)

from sdnet import cli  # noqa: E402
from sdnet.data import TrainingBatches, load_data  # noqa: E402
from sdnet.data.arrays import Split, TrainingPictures, crop_and_flip  # noqa: E402
from sdnet.errors import CheckpointError, DataError, TrainingError, UserError  # noqa: E402
from sdnet.models import Classifier  # noqa: E402
from sdnet.training import checkpoint, loop, recipes, sharding  # noqa: E402
from sdnet.training.build import build_optimizer  # noqa: E402
from sdnet.training.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe, ScheduleRecipe  # noqa: E402
from sdnet.training.schedule import learning_rate  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

TINY = Recipe(
    model=ModelRecipe("sdnet18_all", 2),
    data=DataRecipe(name="digits", random=True, limit=24, batch=8, pad=1),
    optimizer=OptimizerRecipe(rate=0.02),
    epochs=3,
    ema=0.9,
    checkpoint_steps=2,
    threads=1,
)
OPTIONS = [
    "--model.name", "sdnet18_all", "--model.width", "2", "--model.options", "{}", "--data.random", "true",
    "--data.limit", "24", "--data.batch", "8", "--data.pad", "1", "--data.flip", "true", "--data.mean",
    "[0.4914,0.4822,0.4465]", "--data.std", "[0.2023,0.1994,0.2010]", "--optimizer.rate", "0.02",
    "--schedule.warm_up", "0", "--epochs", "3", "--ema", "0.9", "--checkpoint_steps", "2", "--threads", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def threads_stay() -> None:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(recipe: Recipe, out: Path) -> dict[str, float]:
    return loop.train(recipe, out, Console(quiet=True))


def weights(out: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state = torch.load(out / name, weights_only=True)
    return {**state["network"], **{f"average.{key}": value for key, value in state["average"].items()}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run of TINY."""
    out = tmp_path_factory.mktemp("run")
    train(TINY, out)
    return out


def written_rows(out: Path) -> list[dict[str, str]]:
    """The rows of log.csv but for the speed, which no two runs share."""
    with (out / "log.csv").open(newline="") as file:
        return [{**row, "images_per_second": ""} for row in csv.DictReader(file)]


def assert_same_weights(one: Path, other: Path) -> None:
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name].nan_to_num(), found[name].nan_to_num()), name


# Runs.


def test_a_run_leaves_checkpoints_a_model_and_logs(finished: Path) -> None:
    assert {"last.ckpt", "best.ckpt", "model", "log.csv", "tensorboard"} == set(os.listdir(finished))
    rows = written_rows(finished)
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    for kind in ("sparsity", "reconstruction_error", "lmbda", "lipschitz"):
        values = [float(value) for name, value in rows[-1].items() if name.startswith(f"{kind}/")]
        assert len(values) == 17 and all(math.isfinite(value) and value >= 0 for value in values)


def test_killed_with_sigkill_and_called_again_a_run_ends_at_the_same_weights(
    finished: Path, tmp_path: Path
) -> None:
    """The second step's checkpoint is there: the kill falls somewhere in what follows."""
    command = [sys.executable, "-m", "sdnet", "train", "digits", "--out", str(tmp_path), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    step = torch.load(tmp_path / "last.ckpt", weights_only=True)["step"]
    assert 0 < step < 9, "the run was not killed half-way"
    train(TINY, tmp_path)
    assert_same_weights(finished, tmp_path)


@pytest.mark.parametrize("step", [1, 4, 6, 8])
def test_stopped_at_any_step_a_run_ends_at_the_same_weights(
    step: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = loop.Run._update
    with monkeypatch.context() as patch:

        def stop(run: loop.Run, *batch: torch.Tensor) -> float:
            if run.step == step:
                raise KeyboardInterrupt
            return update(run, *batch)

        patch.setattr(loop.Run, "_update", stop)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, tmp_path)
    train(TINY, tmp_path)
    assert_same_weights(finished, tmp_path)


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize("part", ["_evaluate", "_export", "_save"])
def test_stopped_at_the_end_of_an_epoch_a_run_loses_no_part_of_its_results(
    part: str, epoch: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TINY has epochs of three steps, and a checkpoint after every second one."""
    whole = getattr(loop.Run, part)
    with monkeypatch.context() as patch:

        def stop(run: loop.Run, *names: str) -> object:
            if run.step == 3 * epoch and names in ((), ("last.ckpt",)):
                raise KeyboardInterrupt
            return whole(run, *names)

        patch.setattr(loop.Run, part, stop)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, tmp_path)
    train(TINY, tmp_path)
    assert_same_weights(finished, tmp_path)
    one, other = (torch.load(out / "best.ckpt", weights_only=True) for out in (finished, tmp_path))
    assert one["step"] == other["step"]
    one, other = ((out / "model" / "model.safetensors").read_bytes() for out in (finished, tmp_path))
    assert one == other
    assert written_rows(tmp_path) == written_rows(finished)


def test_a_finished_run_called_again_changes_nothing(finished: Path) -> None:
    before = (finished / "last.ckpt").read_bytes(), (finished / "log.csv").read_bytes()
    train(TINY, finished)
    assert before == ((finished / "last.ckpt").read_bytes(), (finished / "log.csv").read_bytes())


def test_digits_are_learned(tmp_path: Path) -> None:
    data = DataRecipe(name="digits", batch=64, pad=1, flip=False)
    recipe = Recipe(model=ModelRecipe("sdnet18", 8), data=data, epochs=2, threads=1)
    assert train(recipe, tmp_path)["accuracy"] > 0.7


# Checkpoints.


def test_a_truncated_checkpoint_is_refused_by_name(finished: Path, tmp_path: Path) -> None:
    content = (finished / "last.ckpt").read_bytes()
    for kept in (0, 100, len(content) // 2, len(content) - 10):
        (tmp_path / "last.ckpt").write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"last\.ckpt is truncated"):
            train(TINY, tmp_path)


def test_a_changed_byte_in_a_checkpoint_is_noticed(finished: Path, tmp_path: Path) -> None:
    content = bytearray((finished / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is truncated or no checkpoint .*has another checksum"):
        train(TINY, tmp_path)


@pytest.mark.parametrize("key", ["network", "recipe"])
def test_a_checkpoint_that_lacks_a_part_is_refused(key: str, finished: Path, tmp_path: Path) -> None:
    state = torch.load(finished / "last.ckpt", weights_only=True)
    del state[key]
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=f"last.ckpt is incomplete: it lacks {key}"):
        train(TINY, tmp_path)


def test_a_checkpoint_of_other_classes_is_refused(finished: Path, tmp_path: Path) -> None:
    state = torch.load(finished / "last.ckpt", weights_only=True)
    state["classes"] = ["cat", "dog"]
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"is of the classes cat, dog \(2\), the data have 0, .* \(10\)"):
        train(TINY, tmp_path)


def test_a_checkpoint_from_before_a_field_came_is_taken(finished: Path, tmp_path: Path) -> None:
    state = torch.load(finished / "last.ckpt", weights_only=True)
    del state["recipe"]["data"]["classes"], state["recipe"]["strategy"], state["classes"], state["losses"]
    torch.save(state, tmp_path / "last.ckpt")
    assert train(TINY, tmp_path) == {}  # It had ended.


def test_processes_that_the_recipe_does_not_count_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started, the recipe has devices=1"):
        train(TINY, tmp_path)


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_goes_on_in_its_own_form(fused: bool) -> None:
    """Fused SGD takes no shares of weights, and a checkpoint is of either kind."""
    saved, going_on = (build_optimizer(torch.nn.Linear(2, 2), OptimizerRecipe(), one) for one in (not fused, fused))
    sharding.load_optimizer(going_on, saved.state_dict())
    assert going_on.param_groups[0]["fused"] is fused


def test_a_foreign_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt is no checkpoint of sdnet train"):
        train(TINY, tmp_path)


def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs(finished: Path) -> None:
    other = replace(TINY, model=ModelRecipe("sdnet18", 4))
    with pytest.raises(CheckpointError, match=r"model.name: sdnet18_all in the checkpoint, sdnet18 now"):
        train(other, finished)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "last.ckpt", {"step": 1})
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: No space left on device"):
        checkpoint.save(tmp_path / "last.ckpt", {"step": 2})
    assert os.listdir(tmp_path) == ["last.ckpt"] and (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("name, reason", [("resnet18", "the loss is (nan|inf)"), ("sdnet18_all", "")])
def test_numbers_that_are_not_finite_stop_save_and_say_the_step(name: str, reason: str, tmp_path: Path) -> None:
    recipe = replace(TINY, model=ModelRecipe(name, 2), optimizer=OptimizerRecipe(rate=1e30), ema=None)
    with pytest.raises(TrainingError, match=rf"{reason} at step \d+; the weights are in .*failed\.ckpt"):
        train(recipe, tmp_path)
    assert (tmp_path / "failed.ckpt").exists()


def test_a_test_loss_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    """One step on all pictures, after which nothing but the evaluation looks at the weights."""
    recipe = replace(
        TINY, data=replace(TINY.data, batch=24), model=ModelRecipe("resnet18", 2), ema=None, epochs=1,
        optimizer=OptimizerRecipe(rate=1e30),
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"the test loss is (nan|inf) at step 1; the weights are in"):
        train(recipe, tmp_path)


def test_a_full_disk_while_the_model_is_written_is_named_and_the_model_comes_later(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: object, folder: str) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "save_pretrained", full)
        with pytest.raises(UserError, match=r"cannot write .*model: No space left on device"):
            train(TINY, tmp_path)
    assert not any("model" in name for name in os.listdir(tmp_path))
    train(TINY, tmp_path)
    assert_same_weights(finished, tmp_path)
    assert written_rows(tmp_path) == written_rows(finished)


# Schedules and batches.


def test_the_cosine_rises_falls_and_ends_at_the_least() -> None:
    def rate(step: int) -> float:
        schedule = ScheduleRecipe(warm_up=1, least=1e-3)
        return learning_rate(step, highest=0.5, steps_per_epoch=10, epochs=5, schedule=schedule)

    assert rate(0) == pytest.approx(0.05) and rate(9) == pytest.approx(0.5)
    assert rate(30) == pytest.approx((0.5 + 1e-3) / 2) and rate(50) == pytest.approx(1e-3)


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
    train(replace(recipe, threads=1), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no_such_recipe"], "no recipe 'no_such_recipe'"),
        (["digits", "--epochss", "3"], "--epochss"),
        (["digits", "--epochs", "many"], "epochs"),
        (["digits", "--model.name", "vgg"], "model must be one of"),
        (["digits", "--model.options", "{colour: red}"], "no option colour"),
        (["digits", "--model.options", "{num_classes: 3}"], "num_classes is no option"),
        (["digits", "--strategy", "fsdp2", "--ema", "0.9"], "ema goes with --strategy ddp"),
        (["digits", "--strategy", "fsdp2", "--model.name", "scn"], "scn has parameters that cannot be shared out"),
        (["digits", "--data.batch", "0"], "batch of 0"),
        (["digits", "--data.workers", "-1"], "workers must be at least 0"),
        (["digits", "--epochs", "0"], "epochs must be at least 1 and at most inf, got 0"),
        (["digits", "--threads", "0"], "threads must be at least 1"),
        (["digits", "--checkpoint_steps", "0"], "checkpoint_steps must be at least 1"),
        (["digits", "--ema", "1.5"], "ema must be at least 0 and at most 1, got 1.5"),
        (["digits", "--label_smoothing", "5"], "label_smoothing must be at least 0 and at most 1, got 5"),
        (["digits", "--optimizer.rate", "-1"], "optimizer.rate must be at least 0"),
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
    Path("archive.tar").touch()
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
