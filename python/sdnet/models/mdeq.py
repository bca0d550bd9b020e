"""MDEQ, the multiscale deep equilibrium model (Bai et al. 2020, arXiv 2006.08656), on torchdeq.

Four resolutions side by side are one state z; the features of a picture are the fixed point z = f(z, picture). Its
gradient solves a linear system at that point (the implicit function theorem) and keeps no iterate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torchdeq import get_deq

from .resnet import check_counts

BRANCHES = 4
EXPANSION = 5
GROUPS = 8
DROPOUT = 0.22  # DEQ v2's LARGE_reg; MDEQ LARGE has 0.3.
FINAL_CHANNELS = 1680
HEAD_PER_CHANNEL = 14 / 32
# Broyden's steps forward and backward, and the relative residual that ends them earlier.
FORWARD_STEPS, BACKWARD_STEPS = 18, 20
TOLERANCE = 1e-3


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)
    nn.init.normal_(layer.weight, std=0.01)
    return layer


def normed(channels: int, affine: bool = True, groups: int = GROUPS) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, affine=affine)


class Branch(nn.Module):
    """The residual block of one resolution, into which the picture is injected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.conv1 = weight_norm(nn.Conv2d(channels, inner, 3, padding=1, bias=False))
        self.norm1 = normed(inner)
        self.conv2 = weight_norm(nn.Conv2d(inner, channels, 3, padding=1, bias=False))
        self.norm2 = normed(channels)
        self.norm3 = normed(channels)

    def forward(self, z: Tensor, injected: Tensor | float, kept: Tensor | None) -> Tensor:
        out = self.conv2(F.relu(self.norm1(self.conv1(z))))
        if kept is not None:
            out = out * kept
        out = self.norm2(out + injected) + z
        return self.norm3(F.relu(out))


def exchange(channels: list[int], source: int, target: int) -> nn.Module:
    """From one resolution to another: strided 3x3 convolutions down, a 1x1 convolution and copies up."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            conv(channels[source], channels[target], 1),
            normed(channels[target]),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    steps: list[nn.Module] = []
    for level in range(source, target):
        last = level == target - 1
        out = channels[target] if last else channels[source]
        steps += [conv(channels[source], out, 3, stride=2), normed(out)]
        if not last:
            steps.append(nn.ReLU())
    return nn.Sequential(*steps)


class Transition(nn.Module):
    """f: each resolution's block, what the resolutions tell each other, and a 1x1 convolution each."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        levels = range(len(channels))
        self.blocks = nn.ModuleList(Branch(count) for count in channels)
        self.exchanges = nn.ModuleList(
            nn.ModuleList(exchange(channels, source, target) for source in levels) for target in levels
        )
        self.mixes = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), weight_norm(nn.Conv2d(count, count, 1, bias=False)), normed(count, groups=GROUPS // 2)
            )
            for count in channels
        )

    def forward(
        self, states: Sequence[Tensor], injected: Tensor, masks: Sequence[Tensor | None] = (None,) * BRANCHES
    ) -> list[Tensor]:
        """The next states; where there are masks, (N, C, 1, 1) each, dropout of whole channels."""
        injections = (injected, *[0.0] * (BRANCHES - 1))
        out = [block(*given) for block, *given in zip(self.blocks, states, injections, masks)]
        return [
            mix(torch.stack([convert(z) for convert, z in zip(row, out)]).sum(0))
            for mix, row in zip(self.mixes, self.exchanges)
        ]


class Bottleneck(nn.Module):
    """The residual block of the head."""

    def __init__(self, in_channels: int, inner: int) -> None:
        super().__init__()
        out = 4 * inner
        self.body = nn.Sequential(
            conv(in_channels, inner, 1), nn.BatchNorm2d(inner, affine=False), nn.ReLU(),
            conv(inner, inner, 3), nn.BatchNorm2d(inner, affine=False), nn.ReLU(),
            conv(inner, out, 1), nn.BatchNorm2d(out, affine=False),
        )  # fmt: skip
        self.shortcut = nn.Sequential(conv(in_channels, out, 1), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


@torch.no_grad()
def broyden(f: Callable[..., Iterable[Tensor]], states: list[Tensor], steps: int) -> list[Tensor]:
    """For each sample the state nearest to f's fixed point of those that Broyden's method visits.

    torchdeq's solver but for its early end, which a graph cannot have.
    """
    shapes = [z.shape[1:] for z in states]

    def apart(x: Tensor) -> list[Tensor]:
        parts = x.split([shape.numel() for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]

    def together(states: Iterable[Tensor]) -> Tensor:
        return torch.cat([z.flatten(1) for z in states], dim=1)

    # The inverse of the Jacobian of f(x) - x is -1 + sum_i u_i v_i'.
    us: list[Tensor] = []
    vs: list[Tensor] = []

    def product(left: list[Tensor], right: list[Tensor], x: Tensor) -> Tensor:
        if not left:
            return -x
        inner = torch.einsum("bld,bd->bl", torch.stack(right, 1), x)
        return torch.einsum("bld,bl->bd", torch.stack(left, 1), inner) - x

    x = best = together(states)
    change = together(f(*states)) - x
    update = change
    least = x.new_full((x.shape[0], 1), torch.inf)
    for _ in range(steps):
        before = change
        x = x + update
        value = together(f(*apart(x)))
        change = value - x
        residual = change.norm(dim=1, keepdim=True) / (value.norm(dim=1, keepdim=True) + 1e-9)
        nearer = residual < least
        best, least = torch.where(nearer, x, best), torch.where(nearer, residual, least)
        bent = change - before
        v = product(vs, us, update)
        u = (update - product(us, vs, bent)) / (v * bent).sum(1, keepdim=True)
        us.append(torch.where(u.isnan(), 0.0, u))
        vs.append(torch.where(v.isnan(), 0.0, v))
        update = -product(us, vs, change)
    return apart(best)


class ImplicitGradient(torch.autograd.Function):
    """Fixed points of a transition, whose gradient is (1 - J')^-1 of theirs, J the Jacobian there: for graphs.

    torchdeq's has no form there: it ends early.
    """

    @staticmethod
    def forward(ctx: Any, transition: Transition, injected: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.transition = transition
        ctx.save_for_backward(injected, *tensors)
        return tuple(z.clone() for z in tensors[BRANCHES:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        injected, *tensors = ctx.saved_tensors
        masks, states = tensors[:BRANCHES], tensors[BRANCHES:]
        _, vjp = torch.func.vjp(lambda *z: tuple(ctx.transition(z, injected, masks)), *states)

        def step(*y: Tensor) -> list[Tensor]:
            return [a + b for a, b in zip(vjp(y), gradients)]

        solved = broyden(step, [torch.zeros_like(gradient) for gradient in gradients], BACKWARD_STEPS)
        return None, None, *[None] * BRANCHES, *solved


class MDEQ(nn.Module):
    """A stem, the fixed point, and a head that gathers the resolutions.

    Shapes:
        x (N, in_channels, H, W), H and W multiples of 8 -> logits (N, num_classes).
    """

    def __init__(self, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(BRANCHES)]
        inner = [max(1, int(count * HEAD_PER_CHANNEL)) for count in channels]
        final = FINAL_CHANNELS * width // 32
        self.channels = channels
        layers: list[nn.Module] = []
        for count in (in_channels, width):
            layers += [conv(count, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
        self.stem = nn.Sequential(*layers, conv(width, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.transition = Transition(channels)
        self.solver = get_deq(
            core="sliced", ift=True, f_solver="broyden", b_solver="broyden", f_max_iter=FORWARD_STEPS,
            b_max_iter=BACKWARD_STEPS, f_tol=TOLERANCE, b_tol=TOLERANCE, f_stop_mode="rel", b_stop_mode="rel",
        )  # fmt: skip
        self.gather = nn.ModuleList(Bottleneck(count, size) for count, size in zip(channels, inner))
        self.descend = nn.ModuleList(
            nn.Sequential(conv(4 * fine, 4 * coarse, 3, stride=2, bias=True), nn.BatchNorm2d(4 * coarse), nn.ReLU())
            for fine, coarse in zip(inner, inner[1:])
        )
        self.final = nn.Sequential(conv(4 * inner[-1], final, 1, bias=True), nn.BatchNorm2d(final), nn.ReLU())
        self.linear = nn.Linear(final, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        smallest = 2 ** (BRANCHES - 1)
        if x.shape[-2] % smallest or x.shape[-1] % smallest:
            raise ValueError(f"mdeq takes rows and columns in multiples of {smallest}, got {tuple(x.shape)}")
        injected = self.stem(x)
        # One mask for all evaluations of f in a solve.
        masks: list[Tensor | None] = [None] * BRANCHES
        if self.training:
            masks = [F.dropout(x.new_ones(x.shape[0], count, 1, 1), DROPOUT) for count in self.channels]
        states = [
            x.new_zeros(x.shape[0], count, x.shape[2] >> i, x.shape[3] >> i)
            for i, count in enumerate(self.channels)
        ]
        # A normalised weight is computed once per solve, here and not in the solver, which records no gradients.
        with parametrize.cached():
            for module in self.transition.modules():
                if parametrize.is_parametrized(module, "weight"):
                    _ = module.weight

            def f(*z: Tensor) -> list[Tensor]:
                return self.transition(z, injected, masks)

            if torch.compiler.is_compiling():
                states = broyden(f, states, FORWARD_STEPS)
                if self.training:
                    states = ImplicitGradient.apply(self.transition, injected.detach(), *masks, *f(*states))
            else:
                states = self.solver(f, states)[0][-1]
        y = self.gather[0](states[0])
        for bottleneck, descend, z in zip(self.gather[1:], self.descend, states[1:]):
            y = bottleneck(z) + descend(y)
        return self.linear(self.final(y).mean((2, 3)))


def mdeq_small(num_classes: int = 10, width: int = 32, in_channels: int = 3) -> MDEQ:
    """The MDEQ that has SDNet-18's size: four branches of 32 to 256 channels, 11.1 million parameters.

    In evaluation its fixed point is detached, as torchdeq does it: there is no gradient of the picture.

    Args:
        num_classes: number of logits, at least 1.
        width: channels of the finest branch, a multiple of 8.
        in_channels: of the pictures.

    Raises:
        TypeError, ValueError: an argument is none of these.

    >>> 0.9 < sum(p.numel() for p in mdeq_small().parameters()) / 11_173_962 < 1.1
    True
    """
    check_counts(num_classes=num_classes, width=width, in_channels=in_channels)
    if width % GROUPS:
        raise ValueError(f"width must be a multiple of {GROUPS}, got {width}")
    return MDEQ(num_classes, width, in_channels)
