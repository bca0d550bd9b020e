"""The lines from what is read off a picture to its lmbda, found on training pictures with synthetic noise.

Which pictures are classified right at which lmbda is computed once, for noises of several strengths; a rule is then
judged by looking up each picture's lmbda in that table. The lines are fitted to one half of the pictures, and the
best method is chosen on the other half, which no line has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from .adaptive import METHODS, MOST, AdaptiveClassifier
from .corruptions import NOISES, SCAN, corrupt, eight_bits
from .pictures import batches
from .stem import stem_lmbda

# The share of clean pictures, right at the training lmbda, that an automatic lmbda may make wrong. Those that it
# makes right are not set off against them: a difference of two small counts tells little of other pictures.
CLEAN_LOSS = 0.003
# How many lines of the finer search, along either end.
STEPS = 41


@dataclass
class Observed:
    """Levels of noise (L), the first of them clean, by pictures (N).

    right: (L, N, lmbdas), bool. features: by method, (L, N).
    """

    lmbdas: numpy.ndarray
    right: numpy.ndarray
    features: dict[str, numpy.ndarray]

    def half(self, first: bool) -> Observed:
        chosen = slice(0, None, 2) if first else slice(1, None, 2)
        return Observed(
            self.lmbdas, self.right[:, chosen], {name: values[:, chosen] for name, values in self.features.items()}
        )

    def judge(self, method: str, slope: float, intercept: float) -> tuple[float, float]:
        """Mean accuracy of a line, at the nearest lmbda tried, and the share of clean pictures that it loses."""
        wanted = (slope * self.features[method] + intercept).clip(self.lmbdas[0], self.lmbdas[-1])
        nearest = abs(wanted[..., None] - self.lmbdas).argmin(-1)
        right = numpy.take_along_axis(self.right, nearest[..., None], -1)[..., 0]
        lost = self.right[0, :, 0] & ~right[0]
        return float(right.mean()), float(lost.mean())


def calibrate(model: AdaptiveClassifier, pictures: Tensor, labels: Tensor, seed: int = 0) -> Observed:
    """Set the lines and the best method of a model; returns what they were found from.

    Args:
        pictures, labels: of training, (N, C, H, W), uint8 or in [0, 1], and (N,); at least 4.

    Raises:
        TypeError: pictures are of another type.
        ValueError: there are fewer, or they leave [0, 1].
    """
    if len(pictures) < 4:
        raise ValueError(f"calibration needs at least 4 pictures, got {len(pictures)}")
    observed = observe(model, pictures, labels, seed)
    fitted, judged = observed.half(True), observed.half(False)
    lines = {name: line_by_accuracy(fitted, name) for name in METHODS if name != "residual"}
    lines["residual"] = line_by_levels(fitted, "residual")
    device = model.mean.device
    for method, line in lines.items():
        setattr(model, f"line_{method}", torch.tensor(line, dtype=torch.float32, device=device))
    scores = []
    for method in METHODS:
        accuracy, lost = judged.judge(method, *lines[method])
        # A method that loses clean pictures is taken only where the others lose more.
        scores.append((-round(max(0.0, lost - CLEAN_LOSS), 6), accuracy))
    model.best = torch.tensor(scores.index(max(scores)), device=device)
    return observed


def levels() -> list[tuple[str, float] | None]:
    """Clean (None), and every second strength of the published scan of each noise."""
    return [None, *((noise, constant) for noise in NOISES for constant in SCAN[noise][::2])]


@torch.no_grad()
def observe(model: AdaptiveClassifier, pictures: Tensor, labels: Tensor, seed: int) -> Observed:
    """Features, and correctness at every lmbda from the training one to 1.4."""
    grid = numpy.round(numpy.arange(0.1, MOST + 0.01, 0.1), 6)
    lmbdas = numpy.array([model.probe, *grid[grid > model.probe]])
    labels = labels.to(model.mean.device)
    right: list[Tensor] = []
    features: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    eight = torch.from_numpy(eight_bits(pictures)).to(pictures.device)
    for level in levels():
        noisy = eight if level is None else corrupt(eight, level[0], constant=level[1], seed=seed)
        parts = batches(noisy)
        for method in METHODS:
            features[method].append(torch.cat([model.feature(part, method) for part in parts]))
        at = []
        for lmbda in lmbdas:
            with stem_lmbda(model, float(lmbda)):
                at.append(torch.cat([model.logits(part).argmax(1) for part in parts]) == labels)
        right.append(torch.stack(at, -1))
    return Observed(
        lmbdas,
        torch.stack(right).cpu().numpy(),
        {method: torch.stack(found).double().cpu().numpy() for method, found in features.items()},
    )


def line_by_levels(observed: Observed, method: str) -> tuple[float, float]:
    """Least squares through each level's mean feature and the lmbda that was best for it, as published."""
    feature = observed.features[method].mean(1)
    best = observed.lmbdas[observed.right.mean(1).argmax(-1)]
    if numpy.ptp(feature) == 0:
        return 0.0, float(best.mean())
    slope, intercept = numpy.polyfit(feature, best, 1)
    return float(slope), float(intercept)


def line_by_accuracy(observed: Observed, method: str) -> tuple[float, float]:
    """The line of the highest mean accuracy among those that lose at most 0.3 % of the clean pictures.

    Lines are named by the features at which they leave the training lmbda and reach the largest one.
    """
    quantiles = numpy.quantile(observed.features[method], numpy.linspace(0, 1, STEPS))
    least, most = observed.lmbdas[0], observed.lmbdas[-1]
    best, line = observed.right[..., 0].mean(), (0.0, float(least))
    for i, start in enumerate(quantiles):
        for end in (*quantiles[i + 1 :], *(quantiles[-1] * numpy.array([1.25, 1.5, 2, 3, 5]))):
            if end <= start:
                continue
            slope = (most - least) / (end - start)
            accuracy, lost = observed.judge(method, slope, least - slope * start)
            if lost <= CLEAN_LOSS and accuracy > best:
                best, line = accuracy, (float(slope), float(least - slope * start))
    return line
