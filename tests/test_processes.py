"""Two processes with gloo: one batch, one gradient, one checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for package in ("jsonargparse", "lightning", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

from sdnet.data import load_data  # noqa: E402
from sdnet.models import Classifier  # noqa: E402
from sdnet.training import recipes  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


def call(script: str, *calls: tuple) -> None:
    """Calls of tests/<script>.py's main, each in as many processes as its first argument says."""
    run(sys.executable, str(Path(__file__).with_name("torchrun.py")), script, json.dumps(calls, default=str))


def test_two_processes_have_the_gradient_of_one_on_the_joint_batch(tmp_path: Path) -> None:
    files = {"auto": tmp_path / "one.pt", "ddp": tmp_path / "ddp.pt", "fsdp2": tmp_path / "fsdp2.pt"}
    call("joint_gradient", *((1 if strategy == "auto" else 2, file, strategy) for strategy, file in files.items()))
    one, *others = (torch.load(file, weights_only=True) for file in files.values())
    assert sum(name.endswith("dn.weight") for name in one) == 17
    assert all(grad.abs().max() > 1e-3 for name, grad in one.items() if name.endswith("dn.weight"))
    for strategy, two in zip(("ddp", "fsdp2"), others):
        assert one.keys() == two.keys()
        for name, grad in one.items():
            torch.testing.assert_close(two[name], grad, rtol=1e-3, atol=1e-5, msg=f"{strategy}: {name}")


def test_torchrun_trains_in_two_processes_of_which_one_writes(tmp_path: Path) -> None:
    options = ["--smoke", "--model.width", "2", "--threads", "1", "--devices", "2", "--strategy", "ddp"]
    run(*TORCHRUN, "-m", "sdnet", "train", "digits", "--out", str(tmp_path), *options)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 6
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + len({row.split(",")[0] for row in rows[1:]}) > 1


def test_with_shares_of_the_weights_a_run_ends_at_the_same_weights(tmp_path: Path) -> None:
    """FSDP2 for two steps, DDP for two more, and FSDP2 again for the rest: a checkpoint is of either."""
    part = tmp_path / "parts"
    stops = [(2, tmp_path / "whole", "ddp", 6), (2, part, "fsdp2", 2), (2, part, "ddp", 4), (2, part, "fsdp2", 6)]
    call("stopped_training", *stops)
    whole, parts = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    for name, value in whole["network"].items():
        assert torch.equal(parts["network"][name], value), name
    for number, values in whole["optimizer"]["state"].items():
        found = parts["optimizer"]["state"][number]["momentum_buffer"]
        assert torch.equal(found, values["momentum_buffer"]), number
    # What is logged is of the model that is saved, in which batch norms have the statistics of one process.
    test = load_data(recipes.smoke(recipes.read_recipe("digits")).data, seed=1).test
    pictures, labels = test[range(len(test))]
    for name in ("whole", "parts"):
        model = Classifier.from_pretrained(tmp_path / name / "model").eval()
        loss = torch.nn.functional.cross_entropy(model(pictures / 255), labels)
        for process in (0, 1):
            logged = torch.load(tmp_path / name / f"numbers{process}.pt", weights_only=True)
            torch.testing.assert_close(logged[0], loss.detach(), rtol=1e-5, atol=0)


def test_a_loss_of_nan_in_one_process_stops_both(tmp_path: Path) -> None:
    models = ("resnet18", "sdnet18_all")
    call("nan_in_one", *((2, tmp_path / name, name) for name in models))
    for name in models:
        assert torch.load(tmp_path / name / "failed.ckpt", weights_only=True)["step"] == 0
