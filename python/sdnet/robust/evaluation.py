"""The attack table: every defence under every attack, each picture's fate kept, so that worst cases are exact.

The columns stand side by side: an attack computed at the training lmbda and evaluated at a raised one is what was
published, and overstates robustness; it is labelled as the transfer attack that it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .adaptive import AdaptiveClassifier
from .attacks import AUTO, Effort, Threat, auto, check_moved, pgd, random_noise
from .pictures import Labelled
from .stem import AtLmbda, AverageOver
from .table import Row, Table, fingerprint

KEYS = ("model", "weights", "defence", "norm", "eps", "attack", "through", "pictures", "data", "effort", "seed")
VALUES = ("robust_accuracy", "survived")
ITSELF = "itself"
STANDARD = Effort()
# AutoAttack's, each on the pictures that those before it left, as in its standard version. Square, the black-box
# check, takes all pictures.
CHAINED = ("apgd-ce", "apgd-t", "fab-t")
THREATS = tuple(Threat("Linf", k / 255) for k in (1, 2, 8)) + tuple(Threat("L2", e) for e in (0.1, 0.25, 0.5))


class Automatic(nn.Module):
    """An automatic model as attacks see it.

    Args:
        constant: no gradient passes through the choice of lmbda, which every step makes anew (BPDA, Athalye et
            al. 2018, arXiv 1802.00420, for choices whose gradient says little).
    """

    def __init__(self, model: AdaptiveClassifier, constant: bool = False) -> None:
        super().__init__()
        self.model, self.constant = model, constant
        self.train(model.training)

    def forward(self, pictures: Tensor) -> Tensor:
        lmbda = self.model.lmbda_of(pictures)
        return self.model.at(pictures, lmbda.detach() if self.constant else lmbda)


@dataclass
class Defence:
    """A network as it is deployed, and other models whose gradients attack it too, by what they are called."""

    model: str
    name: str
    deployed: nn.Module
    sources: dict[str, nn.Module]


def defences(
    models: Mapping[str, nn.Module],
    automatic: Mapping[str, AdaptiveClassifier],
    raised: Sequence[float],
    lmbdas: Sequence[float],
) -> list[Defence]:
    """Of each model: at its own lmbda, and of an SDNet at raised ones and at the automatic one.

    Sources: those of the same network at its training lmbda and on average over `lmbdas`, and the networks that
    have no lmbda, a ResNet say.
    """
    without = {name: model for name, model in models.items() if not _has_lmbda(model)}
    made = []
    for name, model in models.items():
        foreign = {f"transfer from {other}": source for other, source in without.items() if other != name}
        if name in without:
            made.append(Defence(name, "none", model, foreign))
            continue
        static = {f"{TRANSFER} (published setting, overstates)": model}
        average = {"average over lmbda": AverageOver(model, tuple(lmbdas))}
        made.append(Defence(name, "training lmbda", model, {**average, **foreign}))
        for lmbda in raised:
            deployed = AtLmbda(model, lmbda)
            made.append(Defence(name, f"lmbda {lmbda:g}", deployed, {**static, **average, **foreign}))
        if name in automatic:
            own = automatic[name]
            constant = {"lmbda held constant (BPDA)": Automatic(own, constant=True)}
            deployed_own = Automatic(own)
            title = f"automatic, {own.method}"
            made.append(Defence(name, title, deployed_own, {**constant, **static, **average, **foreign}))
    return made


TRANSFER = "transfer from the training lmbda"


def _has_lmbda(model: nn.Module) -> bool:
    from ..training.statistics import csc_layers

    return bool(csc_layers(model))


def evaluate(
    defended: Sequence[Defence],
    labelled: Labelled,
    threats: Sequence[Threat],
    out: Path,
    effort: Effort = STANDARD,
    seed: int = 0,
    attacks: Sequence[str] = AUTO,
) -> Iterator[tuple[Row, bool]]:
    """Run what is not yet in the file `out`; yields every cell's row and whether it is new.

    Per defence and threat: clean pictures, random noise of the same length, PGD of 20 and of 100 steps, the
    `attacks` of AutoAttack, and PGD of 100 steps through each of the defence's sources. Of those in CHAINED a
    picture survives when it has survived the ones before too.

    Raises:
        ValueError: a model is in training mode.
        UserError: a library of attacks is missing, or the file cannot be written; finished cells stay.
    """
    table = Table(out, KEYS, VALUES)
    pictures, labels = labelled.pictures / 255, labelled.labels
    weights = {id(defence): fingerprint(defence.deployed) for defence in defended}
    data = labelled.digest

    @cache
    def moved_through(source: nn.Module, threat: Threat) -> Tensor:
        """One attack serves all whom it is transferred to."""
        return pgd(source, pictures, labels, threat, effort.steps, effort.restarts, seed)

    for threat in threats:
        for defence in defended:
            model = defence.deployed
            if model.training:
                raise ValueError(f"{defence.model} is in training mode; call model.eval() first")
            left = torch.ones(len(labelled), dtype=torch.bool)
            chain: list[str] = []  # The attacks that left them.
            runs: dict[tuple[str, str], Callable[[], Tensor]] = {
                ("clean", ""): lambda: pictures,
                ("random noise", ""): partial(random_noise, pictures, threat, seed),
            }
            for steps in dict.fromkeys((min(20, effort.steps), effort.steps)):
                runs[f"pgd-{steps}", ITSELF] = partial(
                    pgd, model, pictures, labels, threat, steps, effort.restarts, seed
                )
            for attack in attacks:
                whom = left if attack in CHAINED else torch.ones_like(left)
                runs[attack, ITSELF] = partial(
                    attacked, model, pictures, labels, whom, threat, attack, effort, seed
                )
            for through, source in defence.sources.items():
                runs[f"pgd-{effort.steps}", through] = partial(moved_through, source, threat)
            for (attack, through), run in runs.items():
                said = f"{effort}, after {', '.join(chain)}" if attack in CHAINED and chain else str(effort)
                cell = {
                    "model": defence.model, "weights": weights[id(defence)], "defence": defence.name,
                    "norm": threat.norm, "eps": threat.eps, "attack": attack, "through": through,
                    "pictures": len(labelled), "data": data, "effort": said, "seed": seed,
                }  # fmt: skip
                row = table.find(cell)
                new = row is None
                if row is None:
                    adversarial = run()
                    check_moved(pictures, adversarial, threat)
                    survived = classified_right(model, adversarial, labels)
                    if attack in CHAINED:
                        survived &= left
                    numbers = {
                        "robust_accuracy": survived.float().mean().item(),
                        "survived": "".join("01"[int(fate)] for fate in survived),
                    }
                    row = table.add({**cell, **numbers})
                if attack in CHAINED:
                    chain.append(attack)
                    left &= torch.tensor([fate == "1" for fate in row["survived"]])
                yield row, new
        moved_through.cache_clear()


def attacked(
    model: nn.Module, pictures: Tensor, labels: Tensor, whom: Tensor, threat: Threat, attack: str, effort: Effort,
    seed: int,
) -> Tensor:  # fmt: skip
    """One of AutoAttack's on the pictures of `whom`, (N,), bool; the others as they are."""
    adversarial = pictures.clone()
    if whom.any():
        adversarial[whom] = auto(model, pictures[whom], labels[whom], threat, attack, effort, seed)
    return adversarial


@torch.no_grad()
def classified_right(model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
    """Which pictures a model classifies right, (N,), bool."""
    found = torch.cat([model(part.clamp(0, 1)).argmax(1) for part in pictures.split(250)])
    return found == labels


def worst(rows: Sequence[Row]) -> float:
    """Accuracy over the pictures that survive every attack of the rows."""
    fates = [row["survived"] for row in rows]
    return sum(all(fate == "1" for fate in picture) for picture in zip(*fates)) / len(fates[0])


COLUMNS = {
    "clean": ("clean", ""),
    "random noise": ("random noise", ""),
    "transfer from training lmbda (published setting, overstates)": (r"pgd-\d+", f"{TRANSFER}.*"),
    "transfer from ResNet": (r"pgd-\d+", "transfer from (?!the training).*"),
    "PGD through it": (r"pgd-\d+", ITSELF),
    "PGD, BPDA": (r"pgd-\d+", "lmbda held.*"),
    "PGD, average over lmbda": (r"pgd-\d+", "average.*"),
    "AutoAttack": ("apgd-ce|apgd-t|fab-t|square", ITSELF),
    "Square (black box)": ("square", ITSELF),
    "worst case": (r"(?!clean|random).*|clean", ".*"),
}


def table_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A row per defence and threat; in every column what survives all attacks of that column, in per cent."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["defence"], row["norm"], row["eps"]), []).append(row)
    made = []
    for (model, defence, norm, eps), members in groups.items():
        shown = {"model": model, "defence": defence, "threat": str(Threat(norm, snapped(norm, eps)))}
        left: dict[str, float] = {}
        for column, (attack, through) in COLUMNS.items():
            chosen = [
                r for r in members if re.fullmatch(attack, r["attack"]) and re.fullmatch(through, r["through"])
            ]
            if chosen:
                left[column] = worst(chosen)
            shown[column] = f"{100 * left[column]:.1f}" if chosen else ""
        low, high = interval(left["worst case"], len(members[0]["survived"]))
        made.append({**shown, "95 %": f"{100 * low:.1f} to {100 * high:.1f}"})
    return made


def snapped(norm: str, eps: str) -> float:
    """An eps as it was before it was written with six digits."""
    value = float(eps)
    over = round(255 * value)
    return over / 255 if norm == "Linf" and abs(255 * value - over) < 1e-3 else value


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def strength_checks(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Per defence and threat: the attack through it is at least as strong as transfers, black boxes and noise."""
    made = []
    for row in table_rows(rows):
        white = [row[name] for name in ("PGD through it", "PGD, BPDA", "AutoAttack") if row[name]]
        others = {
            name: row[name] for name in row if name.startswith(("transfer", "Square", "random", "PGD, average"))
        }
        stronger = [
            f"{name.split(' (')[0]} {value}"
            for name, value in others.items()
            if white and value and float(value) < min(map(float, white)) - 0.2
        ]
        made.append(
            {
                "model": row["model"], "defence": row["defence"], "threat": row["threat"],
                "white box is the strongest": "no: " + ", ".join(stronger) if stronger else "yes",
            }
        )  # fmt: skip
    return made
