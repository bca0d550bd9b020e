"""Whether an evaluation can be trusted (Carlini et al. 2019, arXiv 1902.06705; Croce et al. 2022, 2202.13711).

Every check gives a number and whether it is as it should be; what fails is said, not hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from csc_kernels import CSCConv2d

from .attacks import Dense, Threat, pgd
from .check import Check
from .evaluation import classified_right
from .pictures import Labelled
from .planted import planted_is_found

# Steps of the curve that must not rise.
STEPS = (1, 5, 20, 100)
# Of a picture moved by all of [0, 1], nothing is left.
UNBOUNDED = Threat("Linf", 1.0)


def checks(
    model: nn.Module, labelled: Labelled, threat: Threat, seed: int = 0, longest: int = STEPS[-1]
) -> Iterator[Check]:
    """All checks of one defence on pictures, one after another.

    Args:
        longest: steps at which the curve of survivors by steps ends.

    Raises:
        ValueError: the model is in training mode.
    """
    dense = Dense(model)
    x, y = labelled.pictures / 255, labelled.labels
    runs: list[Callable[[], Check]] = [
        partial(gradients_are_not_masked, dense, x, y),
        partial(codes_are_not_empty, model, x),
        partial(gradient_is_the_difference_quotient, dense, x[:2], y[:2], seed),
        partial(inference_is_deterministic_and_per_picture, model, x[:16]),
        partial(more_steps_never_help, model, x, y, threat, seed, longest),
        partial(larger_eps_never_helps, model, x, y, threat, seed),
        partial(unbounded_eps_leaves_nothing, model, x, y, seed),
        partial(planted_is_found, model, x[:16], threat, seed),
    ]
    for run in runs:
        yield run()


def gradients_are_not_masked(dense: Dense, x: Tensor, y: Tensor) -> Check:
    """A picture whose gradient is zero everywhere cannot be attacked by its gradient, and looks robust."""
    points = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(dense(points), y, reduction="sum")
    if not loss.requires_grad:
        return Check("pictures without a gradient", "100 %: the model is detached from its input", False)
    (gradient,) = torch.autograd.grad(loss, points)
    share = (gradient.flatten(1).abs().amax(1) == 0).double().mean().item()
    finite = bool(gradient.isfinite().all())
    return Check(
        "pictures without a gradient", f"{share:.1%}{'' if finite else ', some not finite'}", share == 0 and finite
    )


@torch.no_grad()
def codes_are_not_empty(model: nn.Module, x: Tensor) -> Check:
    """Where lmbda is so large that a layer's code is all zero, logits are constant and gradients vanish."""
    empty = torch.zeros(len(x), dtype=torch.bool)

    def record(layer: nn.Module, inputs: object, code: Tensor) -> None:
        empty.logical_or_((code == 0).flatten(1).all(1).cpu())

    handles = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, CSCConv2d)]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    share = empty.double().mean().item()
    return Check("pictures with an empty code", f"{share:.1%}", share == 0)


def gradient_is_the_difference_quotient(dense: Dense, x: Tensor, y: Tensor, seed: int) -> Check:
    """Of the whole pipeline in double precision, along random directions; the median of their relative errors.

    The pipeline is piecewise smooth: a kink between the two points of a quotient spoils single directions.
    """
    double = copy.deepcopy(dense).double()
    points = (0.05 + 0.9 * x.double()).requires_grad_()

    def loss(at: Tensor) -> Tensor:
        return nn.functional.cross_entropy(double(at), y, reduction="sum")

    (gradient,) = torch.autograd.grad(loss(points), points)
    generator = torch.Generator().manual_seed(seed)
    errors = []
    with torch.no_grad():
        for _ in range(5):
            direction = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
            step = 1e-7 * direction
            quotient = (loss(points + step) - loss(points - step)) / 2e-7
            expected = (gradient * direction).sum()
            errors.append(((quotient - expected).abs() / expected.abs().clamp_min(1e-12)).item())
    error = sorted(errors)[2]
    return Check("gradient against difference quotients, relative error", f"{error:.1e}", error < 1e-3)


@torch.no_grad()
def inference_is_deterministic_and_per_picture(model: nn.Module, x: Tensor) -> Check:
    together, again = model(x), model(x)
    alone = torch.cat([model(picture[None]) for picture in x])
    apart = (together - alone).abs().max().item() / together.abs().max().clamp_min(1e-12).item()
    same = torch.equal(together, again)
    return Check(
        "twice the same, and the same in a batch as alone",
        f"{'the same' if same else 'not the same'}; alone {apart:.1e} apart",
        same and apart < 1e-4,
    )


def more_steps_never_help(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, longest: int) -> Check:
    tried = sorted({*STEPS, longest})
    curve = [_left(model, x, y, threat, steps, seed) for steps in tried]
    seen = ", ".join(f"{steps}: {left}" for steps, left in zip(tried, curve))
    # Starts are random: one picture in fifty may come back.
    slack = max(1, len(x) // 50)
    return Check(
        f"survivors of {len(x)} by steps of PGD", seen, all(b <= a + slack for a, b in zip(curve, curve[1:]))
    )


def larger_eps_never_helps(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Check:
    factors = (0.25, 0.5, 1, 2, 4, 8)
    curve = [_left(model, x, y, Threat(threat.norm, factor * threat.eps), 20, seed) for factor in factors]
    seen = ", ".join(f"{factor:g} eps: {left}" for factor, left in zip(factors, curve))
    slack = max(1, len(x) // 50)
    return Check(f"survivors of {len(x)} by eps", seen, all(b <= a + slack for a, b in zip(curve, curve[1:])))


def unbounded_eps_leaves_nothing(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Check:
    left = _left(model, x, y, UNBOUNDED, 100, seed)
    return Check("survivors of unbounded eps", str(left), left == 0)


def _left(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, seed: int) -> int:
    return int(classified_right(model, pgd(model, x, y, threat, steps, seed=seed), y).sum())
