"""The layer against other ways to compute it, side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

import csc_kernels as csc

from .plain import Published, cleaned

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
OWN = "csc_kernels"
Call = Callable[[], object]


@dataclass
class Entry:
    """The faster layout of one contender."""

    name: str
    layout: str
    milliseconds: float


@dataclass
class Race:
    """The contenders of one case, the slowest first; `note` says what to know about them."""

    case: str
    entries: list[Entry]
    note: str | None

    @property
    def own(self) -> Entry:
        return next(entry for entry in self.entries if entry.name == OWN)


def run_races(learned: csc.CSCConv2d, picture: Tensor, progress: Progress, quick: bool) -> list[Race]:
    """Two nonnegative steps, as SDNet takes them: the stem of a CIFAR network, and the demo's own shape."""
    generator = torch.Generator().manual_seed(0)
    batch = 4 if quick else 64
    stem = csc.CSCConv2d(3, 64, 3, padding=1)
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    like_learned = csc.CSCConv2d(3, learned.out_channels, learned.kernel_size, padding=learned.padding)
    like_learned.load_state_dict(learned.state_dict())
    rows, columns = picture.shape[2:]
    cases = {
        f"CIFAR stem, {batch} images of 32x32, 3->64 atoms 3x3": (stem, images),
        f"one picture of {rows}x{columns}, 3->{learned.out_channels} atoms 7x7": (like_learned, picture),
    }
    return [race(case, layer.eval(), x, progress, quick) for case, (layer, x) in cases.items()]


@torch.no_grad()
def race(case: str, layer: csc.CSCConv2d, picture: Tensor, progress: Progress, quick: bool) -> Race:
    task = progress.add_task(f"timing: {case}", total=None)
    note = "as shipped: with the power iteration that its loops run before every batch"
    runs = {("as shipped", "contiguous"): as_shipped(layer, picture)}
    for layout, memory_format in LAYOUTS.items():
        x = picture.contiguous(memory_format=memory_format)
        for name, call in contenders(layer, x).items():
            runs[name, layout] = call
        if not quick:
            try:
                runs["torch.compile", layout] = compiled(layer, x)
            except Exception as error:  # without a compiler, or where inductor does not work
                note = f"torch.compile does not work here: {str(error).strip().splitlines()[0]}"
    times = interleaved(list(runs.values()), seconds=0 if quick else 6)
    progress.update(task, total=1, completed=1)
    fastest: dict[str, Entry] = {}
    for (name, layout), taken in zip(runs, times):
        if name not in fastest or taken < fastest[name].milliseconds:
            fastest[name] = Entry(name, layout, taken)
    return Race(case, sorted(fastest.values(), key=lambda entry: -entry.milliseconds), note)


def as_shipped(layer: csc.CSCConv2d, x: Tensor) -> Call:
    published = Published(x.shape[1], layer.out_channels, layer.kernel_size[0], padding=layer.padding)
    published.weight.copy_(layer.dictionary())

    def call() -> None:
        published.update_step_size((x.shape[2], x.shape[3]))
        published(x)

    return call


def contenders(layer: csc.CSCConv2d, x: Tensor) -> dict[str, Call]:
    """Other ways to the layer's code of x, and the bare convolution as a floor."""
    dictionary, step_size, padding = layer.dictionary(), float(layer.step_size), layer.padding
    return {
        "cleaned eager": lambda: cleaned(x, dictionary, layer.lmbda, step_size, padding=padding),
        OWN: lambda: layer(x),
        "plain conv2d": lambda: F.conv2d(x, dictionary, padding=padding),
    }


def compiled(layer: csc.CSCConv2d, x: Tensor) -> Call:
    dictionary, step_size = layer.dictionary(), float(layer.step_size)
    function = torch.compile(cleaned, fullgraph=True, dynamic=False)

    def call() -> Tensor:
        return function(x, dictionary, layer.lmbda, step_size, padding=layer.padding)

    call()
    return call


def interleaved(calls: Sequence[Call], seconds: float) -> list[float]:
    """Median milliseconds of each call, one after the other in every round: at least three rounds, more while
    `seconds` last."""
    times: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(times[0]) < 4 or time.perf_counter() - begin < seconds:
        for call, taken in zip(calls, times):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    # The first round warms up.
    return [statistics.median(taken[1:]) for taken in times]
