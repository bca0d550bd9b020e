"""Run in processes by test_processes.py: a training of two processes, which both stop before a given step."""

import contextlib
import os
from pathlib import Path

import torch
from rich.console import Console
from sdnet.training import loop, recipes


def main(out: str, strategy: str, stop: int) -> None:
    update, build = loop.Run._update, loop.build_optimizer

    def until(run: loop.Run, *batch: torch.Tensor) -> float:
        if run.step == stop:
            raise KeyboardInterrupt
        return update(run, *batch)

    loop.Run._update = until
    # Shares are of contiguous weights alone, and no fused optimizer takes them: with these, rounding would differ.
    loop.build_optimizer = lambda network, options, fused: build(network, options, fused=False)
    options = ["--model.width", "4", "--threads", "1", "--channels_last", "false", "--devices", "2"]
    recipe = recipes.smoke(recipes.read_recipe("digits", [*options, "--strategy", strategy]))
    with contextlib.suppress(KeyboardInterrupt):
        run = loop.train(recipe, Path(out), Console(quiet=True))
        numbers = torch.tensor([run["test_loss"], run["accuracy"]]) if run else torch.zeros(0)
        torch.save(numbers, Path(out) / f"numbers{os.environ['RANK']}.pt")
    assert torch.load(Path(out) / "last.ckpt", weights_only=True)["step"] == stop
