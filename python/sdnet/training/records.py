"""What a run writes down: a CSV file that a resumed run continues, and TensorBoard's events."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ..errors import UserError
from ..files import written_aside


class Records:
    """One row of numbers per epoch in log.csv, the same numbers in TensorBoard's event files.

    Args:
        out: folder of the run.
        step: where the run goes on; rows after it are of work that was lost, and will be written again.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / "log.csv"
        self.rows = [row for row in self._read() if int(row["step"]) <= step]
        with self._disk():
            self.events = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of an epoch that ended after `step` steps."""
        self.rows.append({"step": str(step), **{name: f"{value:.6g}" for name, value in numbers.items()}})
        with written_aside(self.path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]), restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        with self._disk():
            for name, value in numbers.items():
                self.events.add_scalar(name, value, step)
            self.events.flush()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path.parent / 'tensorboard'}: {error.strerror or error}"
            ) from error
