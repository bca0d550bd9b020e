"""An adversarial example that is known to exist has to be found (Zimmermann et al. 2022, arXiv 2206.13991).

For each picture a linear two-class readout of the network's features is fitted that tells random points well inside
the allowed distance from one planted point at its border. The planted point is adversarial for certain, by
construction. An attack that does not find such points says nothing by finding none in the network itself.
"""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from .attacks import Threat, pgd, random_noise
from .check import Check

INNER = 48
# Random points are at up to this share of eps; the planted one is at eps.
WITHIN = 0.5
RESTARTS = 5


class Planted(nn.Module):
    """The network's features behind a two-class readout of each picture's own: logits (0, w x features + b).

    Args:
        model: the pipeline, lmbda included.
        weight, bias: of each picture's readout, (N, features) and (N,).
        linear: the classifier inside the model, before which the features are.
    """

    def __init__(self, model: nn.Module, linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.model, self.linear = model, linear
        self.weight, self.bias = weight, bias
        self.train(model.training)

    def forward(self, pictures: Tensor) -> Tensor:
        score = (features(self.model, self.linear, pictures) * self.weight).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


def features(model: nn.Module, linear: nn.Linear, pictures: Tensor) -> Tensor:
    """What the classifier of a model reads, (N, features)."""
    seen: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    try:
        model(pictures)
    finally:
        handle.remove()
    return seen[-1]


def last_linear(model: nn.Module) -> nn.Linear:
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear classifier to plant behind")
    return found[-1]


@torch.no_grad()
def plant(model: nn.Module, pictures: Tensor, threat: Threat, seed: int = 0) -> tuple[Planted, Tensor]:
    """The model with readouts for which each picture has an adversarial point, and those points."""
    linear = last_linear(model)
    planted = random_noise(pictures, threat, seed)
    inner = []
    for number in range(INNER):
        share = WITHIN * (number + 1) / INNER
        inner.append(random_noise(pictures, Threat(threat.norm, share * threat.eps), seed + 1 + number))
    clean = features(model, linear, pictures)
    points = torch.stack([clean, *(features(model, linear, part) for part in inner)], 1).double()
    target = features(model, linear, planted).double()
    weights, biases = [], []
    for own, wanted in zip(points.cpu(), target.cpu()):
        centre, scale = own.mean(0), own.std(0).clamp_min(1e-6)
        data = torch.cat([(own - centre) / scale, ((wanted - centre) / scale)[None]])
        fit = LogisticRegression(C=1e4, class_weight="balanced", max_iter=2000)
        fit.fit(data.numpy(), [0] * len(own) + [1])
        weight = torch.from_numpy(fit.coef_[0]) / scale
        scores = own @ weight
        # Nine tenths of the way from the highest inner point to the planted one.
        threshold = 0.1 * scores.max() + 0.9 * (wanted @ weight)
        size = (wanted @ weight - scores.max()).abs().clamp_min(1e-9)
        weights.append(weight / size)
        biases.append(-threshold / size)
    weight, bias = torch.stack(weights).to(pictures), torch.stack(biases).to(pictures)
    return Planted(model, linear, weight, bias), planted


def planted_is_found(model: nn.Module, pictures: Tensor, threat: Threat, seed: int = 0) -> Check:
    """Whether PGD finds four in five of the planted points; random search is shown beside it."""
    victim, planted = plant(model, pictures, threat, seed)
    labels = torch.zeros(len(pictures), dtype=torch.long, device=pictures.device)
    with torch.no_grad():
        valid = (victim(planted).argmax(1) == 1) & (victim(pictures).argmax(1) == 0)
    # One batch, restart by restart: readouts belong to their pictures' places.
    found = torch.zeros_like(valid)
    chance = torch.zeros_like(valid)
    for restart in range(RESTARTS):
        moved = pgd(victim, pictures, labels, threat, 100, seed=seed + restart)
        guess = random_noise(pictures, threat, seed + 1000 + restart)
        with torch.no_grad():
            found |= victim(moved).argmax(1) == 1
            chance |= victim(guess).argmax(1) == 1
        if bool(found[valid].all()):
            break
    count = int(valid.sum())
    hits, lucky = int((found & valid).sum()), int((chance & valid).sum())
    seen = f"{hits} of {count} by PGD, {lucky} by random search"
    return Check("planted adversarial examples found", seen, count > 0 and hits >= 0.8 * count)
