"""A radius within which a prediction cannot change, from a Lipschitz constant of the network.

If logits move by at most L times what the picture moves in l2, the margin between two of them moves by at most
sqrt(2) L times that, and the class stands within margin / (sqrt(2) L) (Tsuzuku et al. 2018, arXiv 1802.04034). L is
the product over the layers, in evaluation mode, of

    convolution        ||W||, by the certified bound of `csc_kernels.lipschitz`
    sparse code        from c_1 = P(s A'x) and c_{k+1} = P(c_k + s A'(x - A c_k)): with prox P of constant 1 and
                       I - s A'A of norm at most 1 (s <= 1 / ||A||^2), each step adds s ||A||: n s ||A||. The
                       Huber loss changes nothing; momentum, which begins with the third step, would
    batch norm         largest |gamma| / sqrt(var + eps)
    block              main branch plus shortcut
    max pool           square root of how many windows see one number
    average pool       1 / sqrt(H W)
    linear             largest singular value
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from csc_kernels import CSCConv2d, lipschitz

from ..models import Classifier, ResNet
from ..models.modes import evaluating
from .adaptive import AdaptiveClassifier


@torch.no_grad()
def lipschitz_bound(model: Classifier, size: tuple[int, int] = (32, 32)) -> float:
    """A bound of ||f(x) - f(y)|| / ||x - y|| for pictures of a size, f the logits of a ResNet or an SDNet.

    Raises:
        ValueError: the model is another network, chooses lmbda by itself, or has a layer without a known constant.
    """
    network = model.network
    if isinstance(model, AdaptiveClassifier):
        raise ValueError("a model that chooses lmbda by the picture has no certified bound: its choice moves too")
    if not isinstance(network, ResNet):
        raise ValueError(f"only ResNets and SDNets have a certified bound here, got {type(network).__name__}")
    bound = 1 / float(model.std.min())
    for part in (network.layer0, network.layer1, network.layer2, network.layer3, network.layer4):
        bound *= constant(part)
    # Features are averages over the last map, whose size is the picture's over the strides.
    rows, columns = _map_size(model, size)
    return bound / math.sqrt(rows * columns) * float(torch.linalg.matrix_norm(network.linear.weight, 2))


@torch.no_grad()
def _map_size(model: Classifier, size: tuple[int, int]) -> tuple[int, int]:
    seen: list[tuple[int, int]] = []
    handle = model.network.get_submodule("layer4").register_forward_hook(
        lambda m, i, out: seen.append(tuple(out.shape[-2:]))
    )
    try:
        with evaluating(model):
            model(torch.zeros(1, len(model.mean), *size).to(model.mean))
    finally:
        handle.remove()
    return seen[0]


@torch.no_grad()
def constant(module: nn.Module) -> float:
    """The Lipschitz constant of a layer, a chain of layers, or a residual block."""
    if isinstance(module, nn.Conv2d):
        # bound of ||W||^2; the synthesis that it is written for is the transpose, of the same norm.
        return math.sqrt(float(lipschitz(module.weight, stride=module.stride, method="bound")))
    if isinstance(module, CSCConv2d):
        if not module.square_noise or module.n_iter > 2 and module.momentum != "none":
            raise ValueError(f"no Lipschitz constant is known of {module}")
        # The dictionary of n_dict times the channels sees the input so many times.
        squared = float(lipschitz(module.dictionary(), stride=module.stride, method="bound"))
        norm = math.sqrt(squared * module.n_dict)
        return module.n_iter * float(module.step_size) * norm
    if isinstance(module, nn.BatchNorm2d):
        state = module.state_dict()
        deviation = (state["running_var"] + module.eps).sqrt()
        return float((state.get("weight", torch.ones_like(deviation)).abs() / deviation).max())
    if isinstance(module, (nn.ReLU, nn.Identity)):
        return 1.0
    if isinstance(module, nn.MaxPool2d):
        (rows, columns), (down, across) = _pair(module.kernel_size), _pair(module.stride)
        return math.sqrt(math.ceil(rows / down) * math.ceil(columns / across))
    if hasattr(module, "conv1") and hasattr(module, "bn2"):
        parts = dict(module.named_children())
        main = math.prod(constant(parts[name]) for name in ("conv1", "bn1", "conv2", "bn2"))
        return main + (constant(parts["shortcut"]) if "shortcut" in parts else 0.0)
    children = list(module.children())
    if isinstance(module, nn.Sequential):
        return math.prod(constant(child) for child in children)
    raise ValueError(f"no Lipschitz constant is known of {type(module).__name__}")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@torch.no_grad()
def certified_radii(model: Classifier, pictures: Tensor, labels: Tensor) -> Tensor:
    """Per picture (N, C, H, W) in [0, 1], the l2 radius in which it stays right; 0 where it is wrong: (N,)."""
    bound = lipschitz_bound(model, (pictures.shape[-2], pictures.shape[-1]))
    with evaluating(model):
        logits = model(pictures)
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return (own - others).clamp_min(0) / (math.sqrt(2) * bound)


def verdict(radii: Tensor, bound: float) -> str:
    """The radii in words: with its number, and vacuous where not even one 8-bit step of one number fits in."""
    right = radii[radii > 0]
    if not len(right):
        return "no picture is classified right"
    middle = right.median().item()
    word = "vacuous: less than one step of 8 bits in one number, 1/255" if right.max() < 1 / 255 else "not vacuous"
    return (
        f"Lipschitz bound {bound:.3g}; certified l2 radius, median {middle:.2g}, largest {right.max():.2g}: {word}"
    )
