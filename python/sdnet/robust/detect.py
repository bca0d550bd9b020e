"""The first layer's residual as a score of pictures that are not what the network was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ..models import Classifier
from ..models.modes import evaluating
from .adaptive import mean_deviation, noise_deviation, residual
from .pictures import Labelled, batches
from .stem import stem_layers
from .sweep import CLEAN, Strength, corrupted, source_of
from .table import Row, Table, fingerprint

KEYS = ("model", "weights", "corruption", "severity", "constant", "pictures", "data", "source")
VALUES = ("residual", "noise", "deviation", "confidence")


@torch.no_grad()
def scores(model: Classifier, pictures: Tensor) -> dict[str, Tensor]:
    """Of uint8 pictures: residual, two noise estimates, and one minus the largest probability; high is foreign."""
    layer = stem_layers(model)[0]
    found: dict[str, list[Tensor]] = {name: [] for name in VALUES}
    with evaluating(model):
        for part in batches(pictures):
            found["residual"].append(residual(layer, (part - model.mean) / model.std, float(layer.lmbda)))
            found["noise"].append(noise_deviation(part))
            found["deviation"].append(mean_deviation(part))
            found["confidence"].append(1 - model(part).softmax(1).amax(1))
    return {name: torch.cat(values) for name, values in found.items()}


def auroc(clean: Tensor, foreign: Tensor) -> float:
    """Chance that a foreign picture has the higher score, ties counting half.

    >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    labels = [0] * len(clean) + [1] * len(foreign)
    return float(roc_auc_score(labels, torch.cat([clean, foreign]).double().cpu().numpy()))


def detect(
    name: str, model: Classifier, clean: Labelled, out: Path, strengths: Sequence[Strength], seed: int = 0,
    published: Path | None = None,
) -> Iterator[Row]:  # fmt: skip
    """AUROC of each score, clean against each strength; goes on in the file `out`.

    Raises:
        ValueError: the model has no sparse coding layer.
    """
    table = Table(out, KEYS, VALUES)
    weights, data = fingerprint(model), clean.digest
    own: dict[str, Tensor] = {}
    for strength in strengths:
        if strength == CLEAN:
            continue
        cell = {
            "model": name, "weights": weights, "corruption": strength.corruption, "severity": strength.severity,
            "constant": strength.constant, "pictures": len(clean), "data": data,
            "source": source_of(strength, seed, published),
        }  # fmt: skip
        row = table.find(cell)
        if row is None:
            own = own or scores(model, clean.pictures)
            foreign = scores(model, corrupted(clean, strength, seed, published).pictures)
            row = table.add({**cell, **{kind: auroc(own[kind], foreign[kind]) for kind in VALUES}})
        yield row
