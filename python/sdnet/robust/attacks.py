"""Attacks of the literature on pictures in [0, 1], from the libraries that everybody compares with.

PGD (Madry et al. 2018, arXiv 1706.06083) is foolbox's; APGD, FAB and Square (AutoAttack, Croce & Hein 2020, arXiv
2003.01690) are pyautoattack's, which packages the authors' code. The model that an attack gets is the whole
pipeline, normalisation and lmbda included.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

NORMS = ("Linf", "L2")
# AutoAttack's standard version, which also says their parameters.
AUTO = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class Threat:
    """How far a picture may be moved: in the largest change of a number, or in Euclidean length.

    Raises:
        ValueError: no such norm, or eps is not above 0.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")
        if not self.eps > 0:
            raise ValueError(f"eps must be above 0, in pixels of [0, 1], got {self.eps}")

    def __str__(self) -> str:
        over = 255 * self.eps
        if self.norm == "Linf" and abs(over - round(over)) < 1e-9:
            return f"Linf {round(over)}/255"
        return f"{self.norm} {self.eps:g}"


@dataclass(frozen=True)
class Effort:
    """restarts of PGD; steps of APGD and FAB; queries of Square."""

    restarts: int = 5
    steps: int = 100
    queries: int = 5000

    def __str__(self) -> str:
        return f"{self.restarts} restarts, {self.steps} steps, {self.queries} queries"


class Dense(nn.Module):
    """The model with the gradient that an attack needs: finite numbers in, logits out, in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if model.training:
            raise ValueError(
                "the model is in training mode: its batch norms would follow the attack. Call model.eval() first"
            )
        self.model = copy.deepcopy(model)
        self.eval()
        # In evaluation torchdeq returns fixed points detached, and an attack would see no gradient. The module
        # alone that solves is put into training mode, which differentiates implicitly.
        for module in self.modules():
            if type(module).__module__.startswith("torchdeq"):
                module.train()

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pictures)


def random_noise(pictures: Tensor, threat: Threat, seed: int) -> Tensor:
    """Pictures moved by all of eps in a random direction: what an attack has to be worse than."""
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed)).to(pictures)
    if threat.norm == "Linf":
        return (pictures + threat.eps * noise.sign()).clamp(0, 1)
    length = noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (pictures + threat.eps * noise / length).clamp(0, 1)


def pgd(
    model: nn.Module, pictures: Tensor, labels: Tensor, threat: Threat, steps: int, restarts: int = 1, seed: int = 0
) -> Tensor:
    """Projected gradient descent on the cross entropy from random starts; a picture that is lost rests.

    Steps are eps / 4 long, or 2.5 eps / steps in L2.

    Raises:
        ValueError: the model is in training mode.
        UserError: foolbox is not installed.
    """
    try:
        import foolbox
    except ImportError as error:
        raise _needed("foolbox", error) from None
    dense = Dense(model)
    kind: Any = foolbox.attacks.LinfPGD if threat.norm == "Linf" else foolbox.attacks.L2PGD
    stepsize = 0.25 if threat.norm == "Linf" else 2.5 / steps
    attack = kind(rel_stepsize=stepsize, steps=steps, random_start=True)
    adversarial = pictures.clone()
    left = torch.arange(len(pictures), device=pictures.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(restarts):
            if not len(left):
                break
            # foolbox warns of any module in training mode; Dense has seen to it.
            watched = _Watched(dense, pictures[left], labels[left])
            target = foolbox.PyTorchModel(watched, bounds=(0, 1), device=pictures.device)
            _, found, _ = attack(target, pictures[left], labels[left], epsilons=threat.eps)
            adversarial[left] = torch.where(watched.lost.view(-1, 1, 1, 1), watched.seen, found)
            left = left[~watched.lost]
    return adversarial


class _Quiet(nn.Module):
    """A module that calls another which is not its child, so that modes are not inherited."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._call = [model]
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        return self._call[0](pictures)


class _Watched(_Quiet):
    """Keeps the first picture on an attack's way that is classified wrong: its last one need not be."""

    def __init__(self, model: nn.Module, pictures: Tensor, labels: Tensor) -> None:
        super().__init__(model)
        self.labels, self.seen = labels, pictures.clone()
        self.lost = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)

    def forward(self, pictures: Tensor) -> Tensor:
        logits = super().forward(pictures)
        new = (logits.argmax(1) != self.labels) & ~self.lost
        self.seen[new] = pictures.detach()[new]
        self.lost |= new
        return logits


def auto(
    model: nn.Module, pictures: Tensor, labels: Tensor, threat: Threat, attack: str, effort: Effort, seed: int = 0
) -> Tensor:
    """One attack of AutoAttack's standard version, on the pictures that are classified right.

    Raises:
        ValueError: the model is in training mode.
        UserError: pyautoattack is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise _needed("pyautoattack", error) from None
    dense = Dense(model)
    with torch.no_grad():
        classes = dense(pictures[:1]).shape[1]
    run = AutoAttack(_Quiet(dense), norm=threat.norm, eps=threat.eps, seed=seed, device=pictures.device)
    run.attacks_to_run = [attack]
    run.apgd.n_iter = run.apgd_targeted.n_iter = run.fab.n_iter = effort.steps
    run.apgd_targeted.n_target_classes = run.fab.n_target_classes = min(9, classes - 1)
    run.square.n_queries = effort.queries
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adversarial, _ = run.run_standard_evaluation(pictures, labels, batch_size=250)
    return adversarial.detach()


def _needed(package: str, error: ImportError) -> UserError:
    return UserError(f'attacks need the package {package} ({error}): pip install "csc_kernels[attacks]"')


def check_moved(pictures: Tensor, adversarial: Tensor, threat: Threat) -> None:
    """Raises RuntimeError where an attack left its threat model, or the range of pictures."""
    moved = (adversarial - pictures).flatten(1)
    length = moved.abs().amax(1) if threat.norm == "Linf" else moved.norm(dim=1)
    inside = bool(((adversarial >= -1e-6) & (adversarial <= 1 + 1e-6)).all())
    if not inside or bool((length > threat.eps * (1 + 1e-4) + 1e-6).any()):
        raise RuntimeError(f"an attack moved a picture by {length.max().item():.6g}, allowed is {threat}")
