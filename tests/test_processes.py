"""Two processes with gloo: one batch, one gradient, one checkpoint."""

from __future__ import annotations

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

SCRIPT = Path(__file__).with_name("joint_gradient.py")


def torchrun(*command: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_have_the_gradient_of_one_on_the_joint_batch(strategy: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "one.pt"), "1", "auto"], check=True, timeout=400)
    torchrun(str(SCRIPT), str(tmp_path / "two.pt"), "2", strategy)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one.keys() == two.keys() and sum(name.endswith("dn.weight") for name in one) == 17
    assert all(grad.abs().max() > 1e-3 for name, grad in one.items() if name.endswith("dn.weight"))
    for name, grad in one.items():
        torch.testing.assert_close(two[name], grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_run_of_two_processes_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    options = [
        "-m", "sdnet", "train", "digits", "--out", str(tmp_path), "--smoke", "--model.width", "2", "--threads", "1",
    ]  # fmt: skip
    torchrun(*options, "--devices", "2", "--strategy", "ddp")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 6
    written = [(tmp_path / name).read_bytes() for name in ("last.ckpt", "log.csv")]
    torchrun(*options, "--devices", "2", "--strategy", "ddp")
    assert [(tmp_path / name).read_bytes() for name in ("last.ckpt", "log.csv")] == written


def test_with_shares_of_the_weights_a_run_ends_at_the_same_weights(tmp_path: Path) -> None:
    """FSDP2 for two steps, DDP for two more, and FSDP2 again for the rest: a checkpoint is of either."""
    script = str(SCRIPT.with_name("stopped_training.py"))
    torchrun(script, str(tmp_path / "whole"), "ddp", "6")
    for strategy, stop in (("fsdp2", 2), ("ddp", 4), ("fsdp2", 6)):
        torchrun(script, str(tmp_path / "parts"), strategy, str(stop))
        assert torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["step"] == stop
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


@pytest.mark.parametrize("name", ["resnet18", "sdnet18_all"])
def test_a_loss_of_nan_in_one_process_stops_both(name: str, tmp_path: Path) -> None:
    torchrun(str(SCRIPT.with_name("nan_in_one.py")), str(tmp_path), name)
    assert torch.load(tmp_path / "failed.ckpt", weights_only=True)["step"] == 0
