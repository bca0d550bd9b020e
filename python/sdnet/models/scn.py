"""SCN, the supervised deep sparse coding network (Sun et al. 2017, arXiv 1701.08349), from its description.

Patches instead of convolutions: each 3x3 neighbourhood is coded on its own, by 50 steps of FISTA, in a dictionary
that training shapes through the optimality condition of the code and not through the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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
# Numbers of a matrix of codes solved at once on a CPU: a MiB, of which a step touches a few.
CACHED = 1 << 18
# Pictures of a convolution, from which on torch gives those of 1x1 to oneDNN on one thread too.
PICTURES = 16


def in_cache(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of the rows of equally large matrices: of a size that stays in a CPU's caches, whole on a GPU."""
    count, length = rows[0].shape
    size = CACHED // (length * PICTURES) * PICTURES if rows[0].device.type == "cpu" else count
    return zip(*(matrix.split(max(PICTURES, size)) for matrix in rows), strict=True)


def has_wide_convolutions(rows: Tensor) -> bool:
    """Whether convolutions are oneDNN's with AVX-512: others may take longer than products."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return False
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and mkldnn.enabled and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def multiply(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix, (P, n) and (n, n), on a CPU with AVX-512 as a 1x1 convolution where P allows it.

    oneDNN's convolutions use AVX-512 wherever a CPU has it, MKL's products on Intel's alone.
    """
    count, length = rows.shape
    if count == 0 or count % PICTURES or not has_wide_convolutions(rows):
        return rows @ matrix
    maps = rows.view(PICTURES, -1, 1, length).permute(0, 3, 1, 2)
    return F.conv2d(maps, matrix.t().reshape(length, length, 1, 1)).permute(0, 2, 3, 1).reshape(count, length)


@torch.library.custom_op("sdnet::nonnegative_code", mutates_args=())
def nonnegative_code(products: Tensor, gram: Tensor, lmbda: Tensor) -> Tensor:
    """argmin_{x >= 0} 1/2 ||y - A x||^2 + lmbda sum(x) by FISTA from zero, for each row y'A (P, atoms) of products.

    All that the steps need of a patch y is A'y, and of the dictionary A'A, the gram matrix (atoms, atoms). On the
    support S of a code the optimality condition (A'A)_S x_S = (A'y)_S - lmbda holds with equality, which gives the
    gradients: with beta_S = (A'A)_S^-1 g_S for the gradient g from above, and 0 off S,

        dL/d(A'y) = beta,  dL/d(A'A) = -x beta',  dL/dlmbda = -sum(beta).
    """
    step, contraction = descent(gram)
    constants = (step * (products - lmbda.clamp_min(0))).contiguous()
    return torch.cat([descend(contraction, constant, multiply) for (constant,) in in_cache(constants)])


def descent(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The step size 1 / ||A'A|| and the matrix I - step A'A of the gradient's steps."""
    wide = torch.promote_types(gram.dtype, torch.float32)
    step = (1 / torch.linalg.eigvalsh(gram.to(wide))[-1].clamp_min(1e-12)).to(gram.dtype)
    return step, torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - step * gram


def descend(
    contraction: Tensor, constant: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> Tensor:
    """FISTA's steps max(point @ contraction + constant, 0), their products in operators of ONNX by default."""
    code = point = torch.zeros_like(constant)
    t = 1.0
    for _ in range(N_ITER):
        following = product(point, contraction).add_(constant).clamp_min_(0)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        point = torch.lerp(code, following, 1 + (t - 1) / t_next)
        code, t = following, t_next
    return code


@torch.library.custom_op("sdnet::solve_on_support", mutates_args=())
def solve_on_support(gram: Tensor, support: Tensor, right: Tensor) -> Tensor:
    """beta with (A_S'A_S + ridge) beta_S = right_S and zero off each row's support S, by conjugate gradients."""
    return torch.cat([_conjugate_gradients(gram, s.to(r.dtype), r) for s, r in in_cache(support, right)])


def _conjugate_gradients(gram: Tensor, support: Tensor, right: Tensor) -> Tensor:
    beta = torch.zeros_like(right)
    residual = direction = right * support
    squared = residual.square().sum(1, keepdim=True)
    enough = BACKWARD_TOLERANCE**2 * squared
    for _ in range(BACKWARD_STEPS):
        if bool((squared <= enough).all()):
            break
        product = multiply(direction, gram).add_(direction, alpha=RIDGE).mul_(support)
        alpha = squared / (direction * product).sum(1, keepdim=True).clamp_min(1e-30)
        beta = torch.addcmul(beta, alpha, direction)
        residual = torch.addcmul(residual, alpha, product, value=-1)
        squared_next = residual.square().sum(1, keepdim=True)
        direction = torch.addcmul(residual, squared_next / squared.clamp_min(1e-30), direction)
        squared = squared_next
    return beta


@nonnegative_code.register_fake
def _(products: Tensor, gram: Tensor, lmbda: Tensor) -> Tensor:
    return torch.empty_like(products, memory_format=torch.contiguous_format)


@solve_on_support.register_fake
def _(gram: Tensor, support: Tensor, right: Tensor) -> Tensor:
    return torch.empty_like(right, memory_format=torch.contiguous_format)


def _keep(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], output)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gram, code = ctx.saved_tensors
    beta = solve_on_support(gram, code > 0, grad)
    return beta, -(code.T @ beta), -beta.sum()


nonnegative_code.register_autograd(_backward, setup_context=_keep)


class PatchCoding(nn.Module):
    """Codes of all 3x3 patches: (N, C, H, W) -> (N, atoms, H / stride, W / stride)."""

    def __init__(self, in_channels: int, atoms: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        size = KERNEL**2 * in_channels
        self.dictionary = nn.Parameter(torch.randn(atoms, in_channels, KERNEL, KERNEL) / size)
        self.lmbda = nn.Parameter(torch.zeros(()))

    def products(self, x: Tensor) -> Tensor:
        """A'y of all patches y, a convolution: (P, atoms)."""
        found = F.conv2d(x, self.dictionary, None, self.stride, KERNEL // 2)
        return found.permute(0, 2, 3, 1).flatten(0, 2)

    def gram(self) -> Tensor:
        atoms = self.dictionary.flatten(1)
        return atoms @ atoms.T

    def folded(self, code: Tensor, x: Tensor) -> Tensor:
        """The codes (P, atoms) of the pictures x as maps."""
        rows, columns = (-(-size // self.stride) for size in x.shape[2:])
        return code.view(x.shape[0], rows, columns, self.dictionary.shape[0]).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            # As after every update. In the graph a clamp would have no gradient at 0, where lmbda begins.
            with torch.no_grad():
                self.lmbda.clamp_(min=0)
        if torch.is_autocast_enabled(x.device.type):  # Of a solve bfloat16 leaves little.
            with torch.autocast(x.device.type, enabled=False):
                return self._code(x.to(self.dictionary.dtype))
        return self._code(x)

    def _code(self, x: Tensor) -> Tensor:
        return self.folded(nonnegative_code(self.products(x), self.gram(), self.lmbda), x)


class SCN(nn.Module):
    """Fourteen layers of patch coding, each behind a batch norm without parameters, and a linear classifier."""

    def __init__(self, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for wanted, stride in LAYERS:
            atoms = max(1, wanted * width // LAYERS[0][0])
            layers += [nn.BatchNorm2d(channels, eps=1e-4, affine=False), PatchCoding(channels, atoms, stride)]
            channels = atoms
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels, eps=1e-4, affine=False))
        self.linear = nn.Linear(channels, num_classes)
        nn.init.normal_(self.linear.weight, std=1 / channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layers(x).mean((2, 3)))


def scn(num_classes: int = 10, width: int = 16, in_channels: int = 3) -> SCN:
    """SCN-4 for pictures of CIFAR's size: seven bottleneck modules, 694,216 parameters by default.

    Args:
        num_classes: number of logits, at least 1.
        width: atoms of the first layer; the others keep their proportion to it.
        in_channels: of the pictures.

    Raises:
        TypeError, ValueError: an argument is none of these.

    >>> sum(p.numel() for p in scn().parameters())
    694216
    """
    check_counts(num_classes=num_classes, width=width, in_channels=in_channels)
    return SCN(num_classes, width, in_channels)
