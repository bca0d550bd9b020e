"""Does a network with the layer keep the pace of one without? Writes models.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from cases import LAYOUTS
from harness import Contender, backend_name, choose_allocator, interleave, provenance, show, update_csv
from sdnet.models import resnet18, sdnet18, sdnet18_all
from torch.nn import functional as F

# SDNet-18-all has the layer everywhere, and four times the arithmetic: in one layout, as information.
MODELS = {
    "ResNet-18": (resnet18, tuple(LAYOUTS)),
    "SDNet-18": (sdnet18, tuple(LAYOUTS)),
    "SDNet-18-all": (sdnet18_all, ("channels_last",)),
}
BATCH = 64
MODES = ("inference", "training")


def model_call(build: Callable[..., torch.nn.Module], layout: str, mode: str) -> Callable[[], object]:
    """Logits of one batch, or one step of training with SGD."""
    torch.manual_seed(0)
    model = build(num_classes=10, stem="cifar").to(memory_format=LAYOUTS[layout])
    x = torch.randn(BATCH, 3, 32, 32).to(memory_format=LAYOUTS[layout])
    if mode == "inference":
        model.eval()

        def infer() -> torch.Tensor:
            with torch.inference_mode():
                return model(x)

        return infer

    labels = torch.randint(10, (BATCH,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return train


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Rounds.")] = 7,
    quick: Annotated[bool, typer.Option(help="Three rounds, without SDNet-18-all.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    allocator: Annotated[str, typer.Option(help="keep or system, see harness.choose_allocator.")] = "keep",
    out: Annotated[Path, typer.Option(help="Folder for models.csv.")] = Path("bench/results"),
) -> None:
    """Time whole networks, CIFAR stem, batch 64."""
    torch.set_num_threads(threads)
    choose_allocator(allocator)
    for mode in MODES:
        contenders = [
            Contender(
                name,
                layout,
                model_call(build, layout, mode),
                backend="torch" if name == "ResNet-18" else backend_name(),
            )
            for name, (build, layouts) in MODELS.items()
            for layout in layouts
            if not (quick and name == "SDNet-18-all")
        ]
        title = f"models, {mode}, batch {BATCH}"
        interleave(contenders, title, rounds=3 if quick else rounds, seconds=0, warm_up=1)
        facts = {"case": f"CIFAR network, batch {BATCH}", "mode": mode, "dtype": "float32"}
        rows = [{**facts, "allocator": allocator, **provenance(), **one.row()} for one in contenders]
        update_csv(out / "models.csv", rows)
        show(title, rows)


if __name__ == "__main__":
    typer.run(main)
