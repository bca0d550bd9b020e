"""Do networks with the layer keep the pace of those without, and of their rivals? Writes models.csv."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch
import typer
from cases import LAYOUTS, with_precision
from harness import (
    COLUMNS,
    Contender,
    backend_name,
    choose_allocator,
    console,
    interleave,
    provenance,
    show,
    update_csv,
)
from memory import of_process, peak_of
from model_variants import as_shipped, cleaned_eager
from rich.table import Table
from sdnet.export import plain
from sdnet.models import MODELS
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

MODES = ("inference", "training")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BOTH, LAST = tuple(LAYOUTS), ("channels_last",)


@dataclass(frozen=True)
class Entry:
    """A model in the layouts that are tried, what is done to it first, and with how little precision it runs."""

    model: str
    layouts: tuple[str, ...] = BOTH
    change: Callable[[nn.Module], nn.Module] = lambda model: model
    precision: str = "highest"  # Of torch.set_float32_matmul_precision.
    dtype: torch.dtype | None = None  # Of weights and pictures, where it is not the run's.
    modes: tuple[str, ...] = MODES


@dataclass(frozen=True)
class Case:
    """Networks that are timed side by side."""

    stem: str
    size: int
    batch: int
    entries: dict[str, Entry]
    kind: str = "network"

    @property
    def name(self) -> str:
        pictures = {"cifar": "CIFAR", "imagenet": "ImageNet"}[self.stem]
        return f"{pictures} {self.kind}, batch {self.batch}"


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, dynamic=False)


PAIRS = {
    "ResNet-18": Entry("resnet18"),
    "SDNet-18": Entry("sdnet18"),
    "ResNet-34": Entry("resnet34"),
    "SDNet-34": Entry("sdnet34"),
}
COMPILED = {
    "ResNet-18 compiled": Entry("resnet18", LAST, compiled),
    "SDNet-18 compiled": Entry("sdnet18", LAST, compiled),
}
ALL = {
    "ResNet-18": Entry("resnet18"),
    "SDNet-18-all": Entry("sdnet18_all", LAST),
    "SDNet-18-all, cleaned eager": Entry("sdnet18_all", BOTH, cleaned_eager),
    "SDNet-18-all, cleaned compiled": Entry("sdnet18_all", BOTH, lambda model: compiled(cleaned_eager(model))),
    "SDNet-18-all, as shipped": Entry("sdnet18_all", ("contiguous",), as_shipped),
    "SDNet-34-all": Entry("sdnet34_all", LAST),
}
PRECISIONS = {
    "ResNet-18": Entry("resnet18"),
    "SDNet-18-all": Entry("sdnet18_all", LAST),
    "SDNet-18-all high": Entry("sdnet18_all", LAST, precision="high"),
    "SDNet-18-all bfloat16": Entry("sdnet18_all", LAST, dtype=torch.bfloat16),
}
# Every model once, and what the compiler and bfloat16 make of it. SCN and MDEQ solve nothing in bfloat16, and
# the compiler takes MDEQ in evaluation alone. Both keep CIFAR's form with ImageNet's input.
EVERY = {
    "ResNet-18": Entry("resnet18", LAST),
    "ResNet-34": Entry("resnet34", LAST),
    "SDNet-18": Entry("sdnet18", LAST),
    "SDNet-34": Entry("sdnet34", LAST),
    "SDNet-18-all": Entry("sdnet18_all", LAST),
    "SDNet-34-all": Entry("sdnet34_all", LAST),
    "MDEQ": Entry("mdeq_small", ("contiguous",)),
    "SCN": Entry("scn", ("contiguous",)),
}
RIVALS = {
    "SDNet-18": EVERY["SDNet-18"],
    "SDNet-18, as shipped": Entry("sdnet18", ("contiguous",), as_shipped),
    "MDEQ": EVERY["MDEQ"],
    "SCN": EVERY["SCN"],
}
COMPARISON = {
    **EVERY,
    "SDNet-18, as shipped": Entry("sdnet18", ("contiguous",), as_shipped),
    "SDNet-18-all, as shipped": Entry("sdnet18_all", ("contiguous",), as_shipped),
    **{
        f"{name} compiled": replace(EVERY[name], change=compiled, modes=("inference",) if name == "MDEQ" else MODES)
        for name in ("ResNet-18", "SDNet-18", "SDNet-18-all", "MDEQ", "SCN")
    },
    **{
        f"{name} bfloat16": replace(EVERY[name], dtype=torch.bfloat16)
        for name in EVERY
        if name not in ("MDEQ", "SCN")
    },
}
# Those whose memory is compared.
MEMORY = ("ResNet-18", "SDNet-18")
# Of models.csv: beside the harness's, parameters and floating point operations of one picture.
MODEL_COLUMNS = (*COLUMNS, "parameters", "gflop")
CASES = {
    "pairs": Case("cifar", 32, 64, PAIRS | COMPILED),
    "all": Case("cifar", 32, 32, ALL),
    "precisions": Case("cifar", 32, 128, PRECISIONS),
    "rivals": Case("cifar", 32, 16, RIVALS),
    "imagenet": Case("imagenet", 224, 8, PAIRS),
    "imagenet_all": Case("imagenet", 224, 4, {name: ALL[name] for name in ("ResNet-18", "SDNet-18-all")}),
    "comparison": Case("cifar", 32, 16, COMPARISON, "comparison"),
    "imagenet_comparison": Case("imagenet", 224, 2, COMPARISON, "comparison"),
}


def build(entry: Entry, stem: str) -> nn.Module:
    torch.manual_seed(0)
    options = {} if entry.model in ("mdeq_small", "scn") else {"stem": stem}
    return MODELS[entry.model](num_classes=10 if stem == "cifar" else 1000, **options)


def model_call(
    entry: Entry, case: Case, layout: str, mode: str, dtype: torch.dtype
) -> Callable[[int | None], object]:
    """Logits of one batch, or of its first pictures; or one step of training with SGD."""
    own = entry.dtype or torch.float32
    model = build(entry, case.stem).to(own, memory_format=LAYOUTS[layout])
    model = entry.change(model)
    x = torch.randn(case.batch, 3, case.size, case.size).to(own, memory_format=LAYOUTS[layout])

    def logits(count: int | None) -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(x[:count])

    if mode == "inference":
        model.eval()

        def infer(count: int | None = None) -> torch.Tensor:
            with torch.no_grad():
                return logits(count)

        return with_precision(entry.precision, infer)

    labels = torch.randint(10, (case.batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    def train(count: int | None = None) -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits(count).float(), labels[:count]).backward()
        optimizer.step()

    return with_precision(entry.precision, train)


def peak_bytes(case: str, name: str, layout: str) -> int | str:
    """The peak of a training step in bytes, above weights, gradients and momentum; measured in its own process."""
    return of_process(
        name, [__file__, "--peak", f"{case}/{name}/{layout}", "--threads", str(torch.get_num_threads())]
    )


def print_peak(case: str, name: str, layout: str) -> None:
    call = model_call(CASES[case].entries[name], CASES[case], layout, "training", torch.float32)
    call(1)  # Libraries, gradients and momentum come in with a small step.
    print(peak_of(lambda: call(None)))


@lru_cache
def size(model: str, stem: str, pixels: int) -> tuple[int, float]:
    """Parameters, and GFLOP of one picture in ordinary convolutions and products.

    Sparse codes count in plain operators: a layer of SDNet as three convolutions, one of SCN as its 50 steps.
    """
    network, picture = build(Entry(model), stem).eval(), torch.randn(1, 3, pixels, pixels)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    counted = network if model == "mdeq_small" else plain(network, picture)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted(picture)
    return parameters, counter.get_total_flops() / 1e9


def sizes(case: Case) -> Table:
    """The table of a case's models."""
    table = Table(title=f"sizes, {case.name}")
    for heading in ("model", "parameters", "GFLOP per picture"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in dict.fromkeys(entry.model for entry in case.entries.values()):
        parameters, gflop = size(model, case.stem, case.size)
        table.add_row(model, f"{parameters:,}", f"{gflop:.3f}")
    return table


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(CASES)}; all without.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="inference, training; both without.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 by autocast.")] = "float32",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds.")] = 7,
    quick: Annotated[bool, typer.Option(help="Three rounds of the pairs.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    allocator: Annotated[str, typer.Option(help="keep or system, see harness.choose_allocator.")] = "keep",
    out: Annotated[Path, typer.Option(help="Folder for models.csv.")] = Path("bench/results"),
    peak: Annotated[str, typer.Option(help="CASE/NAME/LAYOUT whose memory is to be printed.", hidden=True)] = "",
) -> None:
    """Time whole networks at full width: images per second are batch / median."""
    torch.set_num_threads(threads)
    if peak:
        return print_peak(*peak.split("/"))
    choose_allocator(allocator)
    unknown = sorted(set(only or ()) - set(CASES))
    if unknown:
        raise typer.BadParameter(f"no case {', '.join(unknown)}; there is {', '.join(CASES)}", param_hint="--only")
    for name in ["pairs"] if quick else only or CASES:
        console.print(sizes(CASES[name]))
        for one in mode or MODES:
            run(name, one, dtype, 3 if quick else rounds, allocator, out)


def run(chosen: str, mode: str, dtype: str, rounds: int, allocator: str, out: Path) -> None:
    case = CASES[chosen]
    contenders = [
        Contender(
            name, layout, model_call(entry, case, layout, mode, DTYPES[dtype]),
            backend=backend_name() if name.startswith("SDNet") and "," not in name else "torch",
        )
        for name, entry in case.entries.items()
        if mode in entry.modes
        for layout in entry.layouts
    ]  # fmt: skip
    title = f"{case.name}, {mode}, {dtype}"
    interleave(contenders, title, rounds=rounds, seconds=0, warm_up=1)
    if mode == "training" and dtype == "float32":
        for one in contenders:
            if one.name in MEMORY or case.kind == "comparison" and one.name in EVERY:
                one.peak_bytes = peak_bytes(chosen, one.name, one.layout)
    facts = {"case": case.name, "mode": mode, "dtype": dtype}
    rows = []
    for one in contenders:
        parameters, gflop = size(case.entries[one.name].model, case.stem, case.size)
        own = {"parameters": parameters, "gflop": f"{gflop:.4g}"}
        rows.append({**facts, "allocator": allocator, **provenance(), **one.row(), **own})
    update_csv(out / "models.csv", rows, MODEL_COLUMNS)
    show(title, rows)


if __name__ == "__main__":
    typer.run(main)
