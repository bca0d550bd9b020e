"""Few input channels: the kernels of csrc/cpu."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import code_size, step_weights
from ..ops.fista import kept_tensors
from ..ops.library import empty, gradient_of, image, unused
from ..reference import unbroadcast
from .paths import takes_pairs

# Limits of the kernels: registers for one vector per channel, kernel rows on the stack.
CHANNELS = 4
KERNEL_ROWS = 32
# Steps of a solve follow each other down the image, each called by the next: up to 1.5 KB of the stack a step, of
# which threads have 2 MiB at least where nobody chose less.
STEPS = 1000

# Products between two looks for Ctrl-C, which Python notices between calls: about two seconds of two cores.
INTERRUPTIBLE = 5e10


def serves(dictionary: Tensor) -> bool:
    return dictionary.shape[1] <= CHANNELS and dictionary.shape[2] <= KERNEL_ROWS


def varies_in_space(parameter: Tensor) -> bool:
    return max((1, 1, *parameter.shape)[-2:]) > 1


def per_code(value: Tensor, z_shape: Sequence[int]) -> Tensor:
    """A threshold or divisor as the kernels read it: (N or 1, K, 1, 1), or (.., H', W') if it varies there."""
    value = value.to(torch.float32)
    value = value.reshape((1,) * (4 - value.dim()) + tuple(value.shape))
    spatial = tuple(z_shape[2:]) if varies_in_space(value) else (1, 1)
    return value.expand(value.shape[0], z_shape[1], *spatial).contiguous()


def threshold(lmbda: Tensor, step_size: Tensor, z_shape: Sequence[int]) -> Tensor:
    """t lmbda; of a number in one operation: each takes long once the caches have forgotten it."""
    if lmbda.dim() == 0:
        return equal_thresholds(step_size.item() * lmbda.item(), z_shape[1])
    return per_code(step_size * lmbda, z_shape)


@functools.lru_cache(maxsize=64)
def equal_thresholds(value: float, atoms: int) -> Tensor:
    """Of all atoms; kept, because a backward asks for those of its forward."""
    most = torch.finfo(torch.float32).max  # Of larger numbers torch.full makes an error, not infinity.
    with torch.inference_mode(False):
        return torch.full((1, atoms, 1, 1), value if value <= most else torch.inf, dtype=torch.float32)


def divisor(mu: Tensor, step_size: Tensor, z_shape: Sequence[int]) -> Tensor | None:
    """1 + t mu; None where mu is the number 0."""
    if mu.dim() == 0 and mu.item() == 0:
        return None
    return per_code(1 + step_size * mu, z_shape)


def mask_like(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask as a view with x's shape and a dtype that the kernels read."""
    if mask is None:
        return None
    return (mask if mask.is_floating_point() else mask.to(x.dtype)).expand(x.shape)


def code_shape(x: Tensor, dictionary: Tensor, stride, pads) -> tuple[int, int, int, int]:
    size = code_size(x.shape[2:], dictionary.shape[2:], stride, pads)
    return (x.shape[0], dictionary.shape[0], *size)


def synthesis(z, dictionary, stride, pads, like, x=None, mask=None):
    """mask (x - A z), in the layout of `like`; x counts as zero where it is not given."""
    result = empty(like, like.shape)
    torch.ops.csc_native.synthesis(z, dictionary, stride, pads, takes_pairs(), x, mask_like(like, mask), result)
    return result


def analysis(r, dictionary, stride, pads, scale, base=None):
    """base + scale A' r."""
    code = empty(r, code_shape(r, dictionary, stride, pads))
    torch.ops.csc_native.analysis(
        r, dictionary, stride, pads, takes_pairs(), scale, base, None, None, False, None, 0.0, code, None
    )
    return code


def correlation(r, code, dictionary, stride, pads):
    """The gradient of <A' r, code> with respect to the dictionary, float32."""
    result = torch.zeros(dictionary.shape, dtype=torch.float32)
    torch.ops.csc_native.correlation(r, code, dictionary, stride, pads, takes_pairs(), result)
    return result


def residual(x, z, dictionary, stride, pads, mask):
    return synthesis(z, dictionary, stride, pads, x, x=x, mask=mask)


def residual_backward(grad, x, z, dictionary, stride, pads, mask, needs):
    if mask is not None:
        grad = grad * mask
    return (
        image(x, grad.clone() if mask is None else grad) if needs[0] else unused(x),
        image(x, analysis(grad, dictionary, stride, pads, -1.0)) if needs[1] else unused(x),
        gradient_of(dictionary, -correlation(grad, z, dictionary, stride, pads)) if needs[2] else unused(x),
        unused(x),
    )


def fista_step(x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask):
    r = residual(x, z if gradient_at_z else y, dictionary, stride, pads, mask)
    z_next = empty(x, z.shape)
    y_next = unused(x) if beta is None else empty(x, z.shape)
    torch.ops.csc_native.analysis(
        r, dictionary, stride, pads, takes_pairs(), step_size.item(), y,
        threshold(lmbda, step_size, z.shape), divisor(mu, step_size, z.shape), nonneg,
        None if beta is None else z, beta or 0.0, z_next, None if beta is None else y_next,
    )  # fmt: skip
    return z_next, y_next


def fista_step_backward(
    grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads,
    gradient_at_z, mask, needs,
):  # fmt: skip
    """Composed of the kernels' passes; see csc_kernels.reference for the formulas."""
    t = step_size.item()
    grad = grad_z_next if beta is None else grad_z_next + (1 + beta) * grad_y_next
    gradient = torch.where(z_next != 0, grad, 0) / (1 + step_size * mu).to(grad.dtype)
    point = z if gradient_at_z else y
    picture = synthesis(gradient, dictionary, stride, pads, x, mask=mask)
    r = residual(x, point, dictionary, stride, pads, mask)
    grad_dictionary = t * (
        correlation(r, gradient, dictionary, stride, pads) + correlation(picture, point, dictionary, stride, pads)
    )
    grad_point = analysis(picture, dictionary, stride, pads, t)
    grad_z = torch.zeros_like(grad) if beta is None else -beta * grad_y_next
    grad_y = gradient
    if gradient_at_z:
        grad_z = grad_z + grad_point
    else:
        grad_y = gradient + grad_point
    penalties = penalty_gradients(penalty_sums(gradient, z_next), step_size, lmbda, mu)
    grads = (image(x, -t * picture), image(x, grad_z), image(x, grad_y), grad_dictionary, *penalties, None)
    targets = (dictionary, lmbda, mu, step_size)
    return (
        *(g if need else unused(x) for g, need in zip(grads[:3], needs[:3])),
        *(gradient_of(target, g) if need else unused(x) for target, g, need in zip(targets, grads[3:], needs[3:7])),
        unused(x),
    )


def penalty_sums(gradient: Tensor, z: Tensor) -> Tensor:
    """(N, 2, K): sums over the code of sign(z) G and z G."""
    g, z = gradient.float(), z.float()
    return torch.stack([(factor * g).sum((2, 3)) for factor in (z.sign(), z)], 1)


def penalty_gradients(sums, step_size, *penalties):
    """Gradients in lmbda and mu; see csrc/cpu/fista_backward.cpp.

    One that varies over the code takes no gradient here: csc_kernels.native.unsupported says so.
    """
    scaled = -step_size * sums.unsqueeze(-1).unsqueeze(-1)
    return [None if varies_in_space(p) else unbroadcast(s, p.shape) for s, p in zip(scaled.unbind(1), penalties)]


def parts(dictionary: Tensor, z: Tensor, n_iter: int, at_least: int = 1) -> list[slice | None]:
    """The batch in parts that take seconds each; nearly always one, None."""
    atoms, batch = dictionary.shape[0], z.shape[0]
    products = 2 * n_iter * z.numel() * dictionary.numel() // atoms
    if products <= INTERRUPTIBLE:
        return [None]
    size = max(at_least, int(INTERRUPTIBLE * batch / products))
    return [slice(first, first + size) for first in range(0, batch, size)]


def part_of(tensor: Tensor | None, part: slice | None) -> Tensor | None:
    """The samples of a part; a parameter that all samples share stays whole."""
    return tensor if tensor is None or part is None or tensor.shape[0] == 1 else tensor[part]


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    z = empty(x, code_shape(x, dictionary, stride, pads))
    thresholds, scale = threshold(lmbda, step_size, z.shape), divisor(mu, step_size, z.shape)
    t, mask, weights = step_size.item(), mask_like(x, mask), step_weights(n_iter, momentum)
    for part in parts(dictionary, z, n_iter):
        torch.ops.csc_native.fista(
            part_of(x, part), dictionary, part_of(thresholds, part), part_of(scale, part), t, part_of(z0, part),
            part_of(mask, part), stride, pads, takes_pairs(), nonneg, momentum == "sdnet", weights,
            part_of(z, part),
        )  # fmt: skip
    return z, *kept_tensors(x, z.shape, z0, n_iter, False)


def fista_backward(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    t = step_size.item()
    penalty = any(needs[2:4])
    grad_x = empty(x, x.shape) if needs[0] else None
    grad_z0 = empty(x, z.shape) if needs[5] else None
    sums = torch.zeros(x.shape[0], 2, z.shape[1], dtype=torch.float32) if penalty else None
    grad_dictionary = torch.zeros(dictionary.shape, dtype=torch.float32) if needs[1] else None
    thresholds, scale = threshold(lmbda, step_size, z.shape), divisor(mu, step_size, z.shape)
    mask, weights = mask_like(x, mask), step_weights(n_iter, momentum)
    # A thread takes whole samples here.
    for part in parts(dictionary, z, n_iter, torch.get_num_threads()):
        torch.ops.csc_native.fista_backward(
            part_of(grad, part), part_of(x, part), dictionary, part_of(thresholds, part), part_of(scale, part), t,
            part_of(z0, part), part_of(mask, part), stride, pads, takes_pairs(), nonneg, momentum == "sdnet",
            weights, part_of(z, part), part_of(grad_x, part), part_of(grad_z0, part), part_of(sums, part),
            grad_dictionary,
        )  # fmt: skip
    penalties = penalty_gradients(sums, step_size, lmbda, mu) if penalty else (None, None)
    found = [
        gradient_of(target, g) if need else None
        for target, g, need in zip((dictionary, lmbda, mu), (grad_dictionary, *penalties), needs[1:4])
    ]
    return [grad_x, *found, None, grad_z0, None]
