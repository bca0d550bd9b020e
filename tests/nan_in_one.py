"""Run in processes by test_processes.py: a training of two processes, the second of which sees pictures of NaN."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from sdnet.errors import TrainingError
from sdnet.training import loop, recipes


def main(out: str, name: str) -> None:
    prepared = loop.Run._prepared

    def spoiled(run: loop.Run, pictures: torch.Tensor) -> torch.Tensor:
        return prepared(run, pictures) * (float("nan") if run.fabric.global_rank == 1 else 1)

    loop.Run._prepared = spoiled
    options = ["--model.name", name, "--model.width", "2", "--model.options", "{}", "--threads", "1"]
    options += ["--devices", "2", "--strategy", "ddp"]
    try:
        loop.train(recipes.smoke(recipes.read_recipe("digits", options)), Path(out), Console(quiet=True))
    except TrainingError:
        return
    sys.exit("nobody noticed")
