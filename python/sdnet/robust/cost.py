"""What automatic lmbda costs: time of inference, against the same network at its training lmbda."""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from ..models import Classifier
from .adaptive import AdaptiveClassifier
from .pictures import Labelled, batches
from .table import Row, Table, fingerprint

KEYS = ("model", "weights", "method", "batch", "threads", "machine")
VALUES = ("share_of_inference_time", "images_per_second", "automatic_images_per_second")
ROUNDS = 9


@torch.no_grad()
def cost(name: str, plain: Classifier, automatic: AdaptiveClassifier, labelled: Labelled, out: Path) -> Row:
    """Medians over rounds that alternate between the two, in the processor's time of this program alone.

    Returns the row, which a file that has it is not asked for again.
    """
    batch = batches(labelled.pictures[:250])[0]
    cell = {
        "model": name, "weights": fingerprint(automatic), "method": automatic.method, "batch": len(batch),
        "threads": torch.get_num_threads(), "machine": platform.machine(),
    }  # fmt: skip
    table = Table(out, KEYS, VALUES)
    row = table.find(cell)
    if row is not None:
        return row
    seconds: dict[str, list[float]] = {"plain": [], "automatic": []}
    for _ in range(ROUNDS + 1):
        seconds["plain"].append(_seconds(plain, batch))
        seconds["automatic"].append(_seconds(automatic, batch))
    first, second = (statistics.median(values[1:]) for values in seconds.values())
    rates = {"images_per_second": len(batch) / first, "automatic_images_per_second": len(batch) / second}
    return table.add({**cell, **rates, "share_of_inference_time": second / first - 1})


def _seconds(model: Classifier, batch: Tensor) -> float:
    begin = time.process_time()
    model(batch)
    return time.process_time() - begin
