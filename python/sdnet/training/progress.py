"""The progress bar of training, and one line per epoch that stays."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Shows the epoch, loss and pictures per second, in one process of many."""

    def __init__(self, console: Console, epochs: int, steps: int, shown: bool) -> None:
        self.epochs, self.steps, self.shown, self.console = epochs, steps, shown, console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not shown, transient=True)
        self.task = self.bar.add_task("", total=steps)

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def begin(self, epoch: int, first: int) -> None:
        self.name = f"epoch {epoch + 1}/{self.epochs}"
        self.bar.reset(self.task, description=self.name, completed=first, total=self.steps)

    def advance(self, loss: float, rate: float) -> None:
        self.bar.update(self.task, advance=1, description=f"{self.name}, loss {loss:.3f}, {rate:.0f} images/s")

    def end(self, epoch: int, numbers: Mapping[str, float]) -> None:
        if self.shown:
            self.console.print(
                f"{self.name}: loss {numbers['train_loss']:.4f}, test loss {numbers['test_loss']:.4f}, "
                f"accuracy {numbers['accuracy']:.2%}, {numbers['images_per_second']:.0f} images/s",
                highlight=False,
            )
