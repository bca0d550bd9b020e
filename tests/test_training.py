"""Training: runs, their checkpoints, and resuming after kill -9."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError

for package in ("jsonargparse", "lightning", "tensorboard", "torchvision", "typer"):
    pytest.importorskip(package)

from lightning import Fabric  # noqa: E402
from lightning.fabric.plugins import MixedPrecision  # noqa: E402
from sdnet.errors import CheckpointError, TrainingError, UserError  # noqa: E402
from sdnet.models import Classifier  # noqa: E402
from sdnet.training import checkpoint, loop, sharding  # noqa: E402
from sdnet.training.build import build_optimizer  # noqa: E402
from sdnet.training.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe  # noqa: E402

from csc_kernels import CSCConv2d  # noqa: E402

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


def train(recipe: Recipe, out: Path) -> dict[str, float]:
    return loop.train(recipe, out, Console(quiet=True))


def weights(out: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state = torch.load(out / name, weights_only=True)
    return {**state["network"], **{f"average.{key}": value for key, value in (state["average"] or {}).items()}}


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
        assert expected[name].isfinite().all() and torch.equal(expected[name], found[name]), name


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


def stopped(recipe: Recipe, out: Path, step: int) -> None:
    """A run that the keyboard interrupts before a step."""
    update = loop.Run._update

    def stop(run: loop.Run, *batch: torch.Tensor) -> float:
        if run.step == step:
            raise KeyboardInterrupt
        return update(run, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "_update", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out)


@pytest.mark.parametrize("step", [1, 4, 6, 8])
def test_stopped_at_any_step_a_run_ends_at_the_same_weights(step: int, finished: Path, tmp_path: Path) -> None:
    stopped(TINY, tmp_path, step)
    train(TINY, tmp_path)
    assert_same_weights(finished, tmp_path)


def test_stopped_and_called_again_a_run_drops_the_same_channels(tmp_path: Path) -> None:
    """MDEQ is the model with dropout."""
    recipe = replace(TINY, model=ModelRecipe("mdeq_small", 8), epochs=1, ema=None)
    train(recipe, tmp_path / "whole")
    stopped(recipe, tmp_path / "parts", 2)
    train(recipe, tmp_path / "parts")
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert torch.equal(one["generator"], other["generator"])
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_stopped_and_called_again_a_run_in_half_precision_has_its_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fabric has float16 on GPUs alone; its loss is scaled in the same way here."""
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**22))
    monkeypatch.setattr(loop, "Fabric", lambda **options: Fabric(plugins=copy.deepcopy(scaled)))
    recipe = replace(TINY, model=ModelRecipe("resnet18", 2), precision="16-mixed", clip=1.0, epochs=6, ema=None)
    train(recipe, tmp_path / "whole")
    stopped(recipe, tmp_path / "parts", 16)
    train(recipe, tmp_path / "parts")
    scale = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)["scale"]["scale"]
    assert 2.0**7 < scale < 2.0**22  # Some steps were skipped, each of which halved it, but not all.
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_stopped_and_called_again_a_run_in_bfloat16_ends_at_the_same_weights(tmp_path: Path) -> None:
    """Its step sizes are found under autocast in a step, and without it for a checkpoint."""
    recipe = replace(TINY, model=ModelRecipe("sdnet18_all", 4), precision="bf16-mixed", epochs=1, ema=None)
    train(recipe, tmp_path / "whole")
    stopped(recipe, tmp_path / "parts", 2)
    train(recipe, tmp_path / "parts")
    train(replace(recipe, checkpoint_steps=1000), tmp_path / "unseen")
    for other in ("parts", "unseen"):
        assert_same_weights(tmp_path / "whole", tmp_path / other)


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


@pytest.mark.parametrize("part", ["network", "optimizer"])
def test_a_checkpoint_whose_parts_are_incomplete_is_refused(part: str, finished: Path, tmp_path: Path) -> None:
    state = torch.load(finished / "last.ckpt", weights_only=True)
    state[part].pop(list(state[part])[-1])
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt does not fit: .*(Missing key|param_groups)"):
        train(TINY, tmp_path)


def test_a_checkpoint_of_as_many_classes_and_more_pictures_is_refused(finished: Path, tmp_path: Path) -> None:
    state = torch.load(finished / "last.ckpt", weights_only=True)
    state["steps_per_epoch"] = 5
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"has 5 steps an epoch, with these data it is 3"):
        train(TINY, tmp_path)


def test_what_a_killed_run_had_begun_to_write_goes(tmp_path: Path) -> None:
    (tmp_path / ".last.4711.ckpt").write_bytes(b"half")
    (tmp_path / ".model.abcd_123").mkdir()
    others = {".bashrc.1.bak", ".emacs.disabled", ".last.4711.txt"}
    for name in others:
        (tmp_path / name).mkdir()
    train(replace(TINY, epochs=1), tmp_path)
    assert {path.name for path in tmp_path.glob(".*")} == others


def test_a_folder_of_the_run_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/run/tensorboard: Not a directory"):
        train(TINY, tmp_path / "file" / "run")


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


def test_whole_states_keep_for_which_images_a_step_size_is() -> None:
    layer, other = (torch.nn.Sequential(CSCConv2d(64, 4, 3, padding=1)) for _ in range(2))
    layer(torch.rand(1, 64, 2, 3))
    sharding.load(other, sharding.whole(layer.state_dict()))
    assert layer[0].step_size_of == other[0].step_size_of == (2, 3)


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


@pytest.mark.parametrize(
    "name, reason", [("resnet18", "the loss is (nan|inf)"), ("sdnet18_all", ""), ("scn", "failed to converge")]
)
def test_numbers_that_are_not_finite_stop_save_and_say_the_step(name: str, reason: str, tmp_path: Path) -> None:
    recipe = replace(TINY, model=ModelRecipe(name, 2), optimizer=OptimizerRecipe(rate=1e30), ema=None)
    with pytest.raises(TrainingError, match=rf"{reason}.* at step \d+; the weights are in .*failed\.ckpt"):
        train(recipe, tmp_path)
    assert (tmp_path / "failed.ckpt").exists()


def test_pictures_that_a_model_does_not_take_are_no_divergence(tmp_path: Path) -> None:
    data = replace(TINY.data, name="fashion_mnist")
    with pytest.raises(UserError, match=r"mdeq_small does not take these pictures: .*multiples of 8") as raised:
        train(replace(TINY, data=data, model=ModelRecipe("mdeq_small", 8), ema=None), tmp_path)
    assert not isinstance(raised.value, TrainingError) and not (tmp_path / "failed.ckpt").exists()


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
