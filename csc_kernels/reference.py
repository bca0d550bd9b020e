"""Every op in plain PyTorch, for any dtype and device: the oracle, and the fallback.

The forward functions are written for autograd; each `*_backward` is its gradient written out, and the
tests hold the two together. Shapes: x (N, M, H, W), dictionary (K, M, kH, kW), codes (N, K, H', W').
`pads` is (top, bottom, left, right). lmbda, mu and step_size are tensors that broadcast against a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .geometry import step_weights


def analysis(x: Tensor, dictionary: Tensor, stride: Sequence[int], pads: Sequence[int]) -> Tensor:
    """A'(x): the correlation of x with every atom."""
    top, bottom, left, right = pads
    if _skips_pixels(dictionary, stride):
        return F.conv2d(_seen(x, stride, pads), dictionary)
    if top == bottom and left == right:
        return F.conv2d(x, dictionary, stride=stride, padding=(top, left))
    return F.conv2d(F.pad(x, (left, right, top, bottom)), dictionary, stride=stride)


def synthesis(
    z: Tensor, dictionary: Tensor, stride: Sequence[int], pads: Sequence[int], size: Sequence[int]
) -> Tensor:
    """A(z): the image of `size` that the code describes, the exact adjoint of `analysis`."""
    top, bottom, left, right = pads
    if _skips_pixels(dictionary, stride):
        pixels = F.conv_transpose2d(z, dictionary).unsqueeze(4).unsqueeze(3)
        spread = F.pad(pixels, (0, stride[1] - 1, 0, 0, 0, stride[0] - 1)).flatten(4, 5).flatten(2, 3)
        return spread[:, :, top : top + size[0], left : left + size[1]]
    kernel = dictionary.shape[2:]
    # Rows and columns at the end that no atom reaches, when the stride does not divide the size.
    rest = (
        size[0] + top + bottom - (z.shape[2] - 1) * stride[0] - kernel[0],
        size[1] + left + right - (z.shape[3] - 1) * stride[1] - kernel[1],
    )
    if top == bottom and left == right:
        return F.conv_transpose2d(z, dictionary, stride=stride, padding=(top, left), output_padding=rest)
    padded = F.conv_transpose2d(z, dictionary, stride=stride, output_padding=rest)
    return padded[:, :, top : top + size[0], left : left + size[1]]


def correlation(x: Tensor, z: Tensor, dictionary: Tensor, stride: Sequence[int], pads: Sequence[int]) -> Tensor:
    """Gradient of <A'(x), z> = <x, A(z)> with respect to the dictionary."""
    top, bottom, left, right = pads
    if x.shape[0] == 0:
        return torch.zeros_like(dictionary)
    if _skips_pixels(dictionary, stride):
        return conv2d_weight(_seen(x, stride, pads), dictionary.shape, z)
    padding = (top, left)
    if not (top == bottom and left == right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    return conv2d_weight(x, dictionary.shape, z, stride=stride, padding=padding)


def _skips_pixels(dictionary: Tensor, stride: Sequence[int]) -> bool:
    """1x1 atoms with a stride, whose pixels are picked first.

    Where it skips them itself, oneDNN 3.12 for AVX2 writes beyond the gradient of the weights.
    """
    return tuple(dictionary.shape[2:]) == (1, 1) and tuple(stride) != (1, 1)


def _seen(x: Tensor, stride: Sequence[int], pads: Sequence[int]) -> Tensor:
    top, bottom, left, right = pads
    return F.pad(x, (left, right, top, bottom))[:, :, :: stride[0], :: stride[1]]


def shrink(v: Tensor, threshold: Tensor, nonneg: bool) -> Tensor:
    """Soft threshold, one-sided for nonnegative codes. NaN stays NaN."""
    if nonneg:
        return F.relu(v - threshold)
    return F.relu(v - threshold) - F.relu(-v - threshold)


def prox(v: Tensor, lmbda: Tensor, mu: Tensor, step_size: Tensor, nonneg: bool) -> Tensor:
    """Proximal map of t (lmbda ||.||_1 + mu/2 ||.||^2) for the step size t; the code keeps its dtype."""
    return (shrink(v, step_size * lmbda, nonneg) / (1 + step_size * mu)).to(v.dtype)


def residual(
    x: Tensor,
    z: Tensor,
    dictionary: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    mask: Tensor | None = None,
) -> Tensor:
    """mask * (x - A z)."""
    difference = x - synthesis(z, dictionary, stride, pads, x.shape[2:])
    return difference if mask is None else difference * mask


def step(
    x: Tensor,
    base: Tensor | None,
    point: Tensor | None,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    nonneg: bool,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """prox(base + t A' r) and r, the residual at `point`. None stands for zero: no synthesis then."""
    if point is None:
        r = x if mask is None else x * mask
    else:
        r = residual(x, point, dictionary, stride, pads, mask)
    v = step_size * analysis(r, dictionary, stride, pads)
    if base is not None:
        v = base + v
    return prox(v, lmbda, mu, step_size, nonneg), r


def fista_step(
    x: Tensor,
    z: Tensor,
    y: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    beta: float | None,
    stride: Sequence[int],
    pads: Sequence[int],
    nonneg: bool,
    gradient_at_z: bool,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step from the extrapolated point y: z+ = prox(y + t A' r), y+ = z+ + beta (z+ - z).

    r is the residual at y, or at z when `gradient_at_z` (the published SDNet). Without beta, y+ is empty.
    """
    point = z if gradient_at_z else y
    z_next, _ = step(x, y, point, dictionary, lmbda, mu, step_size, stride, pads, nonneg, mask)
    y_next = z.new_empty(0) if beta is None else z_next + beta * (z_next - z)
    return z_next, y_next


def fista(
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    z0: Tensor | None,
    mask: Tensor | None,
    n_iter: int,
    stride: Sequence[int],
    pads: Sequence[int],
    nonneg: bool,
    momentum: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """The iterates z_1 .. z_n, of which the last is the solution, and the residual of every step."""
    codes: list[Tensor] = []
    residuals: list[Tensor] = []
    z = y = z0
    for beta in step_weights(n_iter, momentum):
        point = z if momentum == "sdnet" else y
        z_next, r = step(x, y, point, dictionary, lmbda, mu, step_size, stride, pads, nonneg, mask)
        y = z_next if z is None or not beta else z_next + beta * (z_next - z)
        z = z_next
        codes.append(z_next)
        residuals.append(r)
    return codes, residuals


# The gradients, written out. For z+ = shrink(v, t lmbda) / (1 + t mu) with v = base + t A' r, and
# r = mask (x - A point), and G = dL/dz+ on the support of z+ divided by (1 + t mu):
#   dL/dbase = G,  dL/dlmbda = -t sign(z+) G,  dL/dmu = -t z+ G,
#   dL/dt = <A' r - lmbda sign(z+) - mu z+, G>,
#   dL/dx = mask A(t G),  dL/dpoint = -A'(mask A(t G)),  dL/dmask = (x - A point) A(t G),
#   dL/dD = correlation(r, t G) - correlation(mask A(t G), point).


def unbroadcast(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum a gradient down to the shape that was broadcast to it."""
    return gradient if gradient.shape == torch.Size(shape) else gradient.sum_to_size(shape)


def residual_backward(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    dictionary: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of <grad, mask (x - A z)> in (x, z, dictionary, mask)."""
    grad_mask = None
    if mask is not None:
        if mask.is_floating_point():
            difference = x - synthesis(z, dictionary, stride, pads, x.shape[2:])
            grad_mask = unbroadcast(grad * difference, mask.shape)
        grad = grad * mask
    grad_z = -analysis(grad, dictionary, stride, pads)
    grad_dictionary = -correlation(grad, z, dictionary, stride, pads)
    return grad, grad_z, grad_dictionary, grad_mask


class Gradients:
    """Sums the gradients of the steps of one solve, in the shapes of the inputs."""

    def __init__(self, x, dictionary, lmbda, mu, step_size, mask) -> None:
        self.x = torch.zeros_like(x)
        self.dictionary = torch.zeros_like(dictionary)
        self.lmbda = torch.zeros_like(lmbda)
        self.mu = torch.zeros_like(mu)
        self.step_size = torch.zeros_like(step_size)
        floating_mask = mask is not None and mask.is_floating_point()
        self.mask = torch.zeros_like(mask) if floating_mask else None


def step_backward(
    grad: Tensor,
    z_next: Tensor,
    point: Tensor | None,
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    mask: Tensor | None,
    sums: Gradients,
) -> tuple[Tensor, Tensor | None]:
    """Backward of z_next = prox(base + t A'(mask (x - A point))); point None stands for zero.

    Adds to `sums` and returns the gradients in (base, point).
    """
    gradient = grad * (z_next != 0) / (1 + step_size * mu)
    sign = z_next.sign()
    difference = x
    if point is not None:
        difference = x - synthesis(point, dictionary, stride, pads, x.shape[2:])
    r = difference if mask is None else difference * mask
    scaled = step_size * gradient
    image = synthesis(scaled, dictionary, stride, pads, x.shape[2:])
    masked = image if mask is None else image * mask

    sums.x += masked
    sums.lmbda += unbroadcast(-sign * scaled, lmbda.shape)
    sums.mu += unbroadcast(-z_next * scaled, mu.shape)
    slope = analysis(r, dictionary, stride, pads) - lmbda * sign - mu * z_next
    sums.step_size += unbroadcast(slope * gradient, step_size.shape)
    sums.dictionary += correlation(r, scaled, dictionary, stride, pads)
    if sums.mask is not None:
        sums.mask += unbroadcast(difference * image, sums.mask.shape)
    if point is None:
        return gradient, None
    sums.dictionary -= correlation(masked, point, dictionary, stride, pads)
    return gradient, -analysis(masked, dictionary, stride, pads)


def fista_step_backward(
    grad_z_next: Tensor,
    grad_y_next: Tensor,
    z_next: Tensor,
    x: Tensor,
    z: Tensor,
    y: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    beta: float | None,
    stride: Sequence[int],
    pads: Sequence[int],
    gradient_at_z: bool,
    mask: Tensor | None,
) -> tuple[Gradients, Tensor, Tensor]:
    """Gradients of one step; returns the sums and the gradients in (z, y)."""
    sums = Gradients(x, dictionary, lmbda, mu, step_size, mask)
    grad_z = torch.zeros_like(z)
    grad = grad_z_next
    if beta is not None:
        grad = grad + (1 + beta) * grad_y_next
        grad_z = grad_z - beta * grad_y_next
    point = z if gradient_at_z else y
    grad_y, grad_point = step_backward(
        grad, z_next, point, x, dictionary, lmbda, mu, step_size, stride, pads, mask, sums
    )
    assert grad_point is not None  # The point is given.
    if gradient_at_z:
        return sums, grad_z + grad_point, grad_y
    return sums, grad_z, grad_y + grad_point


def fista_backward(
    grad: Tensor,
    x: Tensor,
    dictionary: Tensor,
    lmbda: Tensor,
    mu: Tensor,
    step_size: Tensor,
    z0: Tensor | None,
    mask: Tensor | None,
    n_iter: int,
    stride: Sequence[int],
    pads: Sequence[int],
    nonneg: bool,
    momentum: str,
) -> tuple[Gradients, Tensor | None]:
    """Gradients of <grad, z_n>; the iterates are computed again. Returns the sums and dL/dz0."""
    codes, _ = fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum)
    betas = step_weights(n_iter, momentum)
    iterates: list[Any] = [z0, *codes]  # z_0 (None for zero) .. z_n

    def extrapolated(k: int) -> Tensor | None:
        """y that step k + 1 starts from: z_k + beta_k (z_k - z_(k-1))."""
        if k == 0 or betas[k - 1] == 0:
            return iterates[k]
        return iterates[k] + betas[k - 1] * (iterates[k] - iterates[k - 1])

    sums = Gradients(x, dictionary, lmbda, mu, step_size, mask)
    # What later steps passed back to z_k; the list grows downwards as k falls.
    grads = {k: torch.zeros_like(grad) for k in range(n_iter)} | {n_iter: grad}
    for k in range(n_iter, 0, -1):
        base = extrapolated(k - 1)
        point = iterates[k - 1] if momentum == "sdnet" else base
        grad_base, grad_point = step_backward(
            grads[k], codes[k - 1], point, x, dictionary, lmbda, mu, step_size, stride, pads, mask,
            sums,
        )  # fmt: skip
        if grad_point is not None:
            if momentum == "sdnet":
                grads[k - 1] += grad_point
            else:
                grad_base = grad_base + grad_point
        beta = betas[k - 2] if k >= 2 else 0.0
        grads[k - 1] += (1 + beta) * grad_base
        if beta:
            grads[k - 2] -= beta * grad_base
    return sums, (grads[0] if z0 is not None else None)
