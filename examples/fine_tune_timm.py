"""Fine-tune a timm model whose stem has become a sparse code: python examples/fine_tune_timm.py [--steps N]."""

from __future__ import annotations

from typing import Annotated

import timm
import torch
import typer
from sdnet import replace_convs
from sdnet.data import EvaluationBatches, TrainingBatches, load_data
from sdnet.training.recipe import DataRecipe
from torch.nn import functional as F


def main(
    model: Annotated[str, typer.Option(help="A model of timm.")] = "convnext_atto",
    layers: Annotated[str, typer.Option(help="Names of the convolutions to replace.")] = "stem.*",
    pretrained: Annotated[bool, typer.Option(help="Download timm's weights.")] = False,
    steps: Annotated[int, typer.Option(min=1)] = 60,
) -> None:
    """Train on scikit-learn's digits, which need no download, and print the test accuracy."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=10, pretrained=pretrained)
    replace_convs(network, layers)
    data = load_data(DataRecipe(name="digits", pad=1, flip=False), seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    batches = TrainingBatches(data.train, 64, 0)

    def logits(pictures: torch.Tensor) -> torch.Tensor:
        return network(F.interpolate(pictures.float() / 255, scale_factor=4))

    for step in range(steps):
        epoch, batch = divmod(step, len(batches))
        if batch == 0:
            current = batches.epoch(epoch)
        pictures, labels = next(current)
        loss = F.cross_entropy(logits(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    network.eval()
    with torch.no_grad():
        hits = sum((logits(x).argmax(1) == y).sum().item() for x, y in EvaluationBatches(data.test, 100, 0))
    print(f"test accuracy {hits / len(data.test):.1%}")


if __name__ == "__main__":
    typer.run(main)
