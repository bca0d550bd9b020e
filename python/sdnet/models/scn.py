"""SCN, the supervised deep sparse coding network (Sun et al. 2017, arXiv 1701.08349), from its description.

Patches instead of convolutions: each 3x3 neighbourhood is coded on its own, by 50 steps of FISTA, in a dictionary
that training shapes through the optimality condition of the code and not through the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .resnet import check_counts

# (channels, stride) of the fourteen layers: a slim one before every wide one.
LAYERS = (
    (16, 1), (64, 1), (16, 1), (64, 1), (16, 1), (64, 1), (32, 2),
    (128, 1), (32, 1), (128, 1), (64, 2), (256, 1), (64, 1), (256, 1),
)  # fmt: skip
KERNEL = 3
N_ITER = 50
# Keeps the systems of the backward solvable where atoms of the support are nearly dependent.
RIDGE = 1e-6
# Steps of conjugate gradients in the backward, which end earlier at this relative residual.
BACKWARD_STEPS = 50
BACKWARD_TOLERANCE = 1e-5
# Numbers of a matrix of codes solved at once on a CPU: a quarter of a MiB, of which a step touches a few.
CACHED = 1 << 16


def in_cache(*columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of the columns of equally large matrices: of a size that stays in a CPU's caches, whole on a GPU."""
    rows, count = columns[0].shape
    size = CACHED // rows if columns[0].device.type == "cpu" else count
    return zip(*(matrix.split(max(1, size), 1) for matrix in columns), strict=True)


def nonnegative_codes(y: Tensor, dictionary: Tensor, lmbda: Tensor) -> Tensor:
    """argmin_{x >= 0} 1/2 ||y - A x||^2 + lmbda sum(x) by FISTA from zero; y (n, P), A (n, atoms)."""
    gram = dictionary.T @ dictionary
    step = 1 / torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-12)
    contraction = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - step * gram
    constants = step * (dictionary.T @ y - lmbda)
    return torch.cat([_descend(contraction, constant) for (constant,) in in_cache(constants)], 1)


def _descend(contraction: Tensor, constant: Tensor) -> Tensor:
    """FISTA's steps max(contraction @ point + constant, 0)."""
    code = point = torch.zeros_like(constant)
    t = 1.0
    for _ in range(N_ITER):
        following = torch.addmm(constant, contraction, point).clamp_min_(0)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        point = torch.lerp(code, following, 1 + (t - 1) / t_next)
        code, t = following, t_next
    return code


def solve_on_support(gram: Tensor, support: Tensor, right: Tensor) -> Tensor:
    """beta with (A_S'A_S + ridge) beta_S = right_S and zero off each column's support S, by conjugate gradients."""
    return torch.cat([_conjugate_gradients(gram, s, r) for s, r in in_cache(support, right)], 1)


def _conjugate_gradients(gram: Tensor, support: Tensor, right: Tensor) -> Tensor:
    beta = torch.zeros_like(right)
    residual = right * support
    direction = residual
    squared = residual.square().sum(0)
    enough = BACKWARD_TOLERANCE**2 * squared
    for _ in range(BACKWARD_STEPS):
        if bool((squared <= enough).all()):
            break
        product = torch.addmm(direction, gram, direction, beta=RIDGE) * support
        alpha = squared / (direction * product).sum(0).clamp_min(1e-30)
        beta = torch.addcmul(beta, alpha, direction)
        residual = torch.addcmul(residual, alpha, product, value=-1)
        squared_next = residual.square().sum(0)
        direction = torch.addcmul(residual, squared_next / squared.clamp_min(1e-30), direction)
        squared = squared_next
    return beta


class _PatchCode(torch.autograd.Function):
    """The code of patches y (n, P), differentiated implicitly.

    On the support S of a code x the optimality condition A_S'(y - A_S x_S) = lmbda holds with equality. With
    beta_S = (A_S'A_S)^-1 g_S for the gradient g from above,

        dL/dy = A beta,  dL/dA = (y - A x) beta' - (A beta) x',  dL/dlmbda = -sum(beta).
    """

    @staticmethod
    def forward(ctx, y: Tensor, dictionary: Tensor, lmbda: Tensor) -> Tensor:
        code = nonnegative_codes(y, dictionary, lmbda.clamp_min(0))
        ctx.save_for_backward(y, dictionary, code)
        return code

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, dictionary, code = ctx.saved_tensors
        beta = solve_on_support(dictionary.T @ dictionary, (code > 0).to(grad.dtype), grad)
        image = dictionary @ beta
        grad_dictionary = (y - dictionary @ code) @ beta.T - image @ code.T
        return image, grad_dictionary, -beta.sum()


class PatchCoding(nn.Module):
    """Codes of all 3x3 patches: (N, C, H, W) -> (N, atoms, H / stride, W / stride)."""

    def __init__(self, in_channels: int, atoms: int, stride: int) -> None:
        super().__init__()
        size = KERNEL**2 * in_channels
        self.stride = stride
        self.dictionary = nn.Parameter(torch.randn(size, atoms) / size)
        self.lmbda = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, KERNEL, padding=KERNEL // 2, stride=self.stride)
        y = patches.permute(1, 0, 2).flatten(1)
        if self.training:
            # As after every update. In the graph a clamp would have no gradient at 0, where lmbda begins.
            with torch.no_grad():
                self.lmbda.clamp_(min=0)
        code = _PatchCode.apply(y, self.dictionary, self.lmbda)
        rows, columns = (-(-size // self.stride) for size in x.shape[2:])
        return code.view(-1, len(x), rows, columns).transpose(0, 1)


class SCN(nn.Module):
    """Fourteen layers of patch coding, each behind a batch norm without parameters, and a linear classifier."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for wanted, stride in LAYERS:
            atoms = max(1, wanted * width // LAYERS[0][0])
            layers += [nn.BatchNorm2d(channels, eps=1e-4, affine=False), PatchCoding(channels, atoms, stride)]
            channels = atoms
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels, eps=1e-4, affine=False))
        self.linear = nn.Linear(channels, num_classes)
        nn.init.normal_(self.linear.weight, std=1 / channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layers(x).mean((2, 3)))


def scn(num_classes: int = 10, width: int = 16) -> SCN:
    """SCN-4 for pictures of CIFAR's size: seven bottleneck modules, 694,216 parameters by default.

    Args:
        num_classes: number of logits, at least 1.
        width: atoms of the first layer; the others keep their proportion to it.

    Raises:
        TypeError, ValueError: an argument is none of these.

    >>> sum(p.numel() for p in scn().parameters())
    694216
    """
    check_counts(num_classes=num_classes, width=width)
    return SCN(num_classes, width)
