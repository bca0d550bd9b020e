"""Many input channels: solves made of convolutions with residual, step and threshold in their epilogues.

A step is bound by the arithmetic of its two convolutions, so that what is left to win is fewer operations
(Winograd's, where they fit) and every pass over a code or a residual. Of two steps from zero nothing remains but
the three convolutions:

    z_1 = relu(conv(x, t D) - t lmbda)       threshold and relu in the epilogue
    r   = x - A z_1                          x in the epilogue; stride 1: a convolution with the atoms turned around
    z_2 = relu(z_1 + conv(r, t D) - t lmbda) z_1, threshold and relu in the epilogue
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..changes import freeze
from ..geometry import step_weights
from ..ops.fista import kept_tensors
from ..ops.library import gradient_of, image, unused
from .convolutions import Convolutions
from .stem import mask_like, penalty_gradients, penalty_sums


class Threshold:
    """The proximal map as an epilogue where it can be one, and in place where it cannot."""

    def __init__(self, lmbda: Tensor, mu: Tensor, step_size: Tensor, nonneg: bool, atoms: int) -> None:
        self.nonneg = nonneg
        self.threshold = step_size * lmbda
        self.divisor = None if mu.dim() == 0 and mu.item() == 0 else 1 + step_size * mu
        shape = (1,) * (4 - lmbda.dim()) + tuple(lmbda.shape)
        self.per_atom = None
        if nonneg and shape[0] == shape[2] == shape[3] == 1:
            self.per_atom = self.threshold.reshape(-1).expand(atoms)

    def step(self, a: Convolutions, r: Tensor, base: Tensor | None) -> Tensor:
        v = a.analysis(r, base, self.per_atom, self.per_atom is not None)
        if self.per_atom is None:
            threshold = self.threshold.to(v.dtype)
            if self.nonneg:
                v = v.sub_(threshold).relu_()
            else:
                v = (v - threshold).relu_().sub_((v.neg_().sub_(threshold)).relu_())
        return v if self.divisor is None else v.div_(self.divisor.to(v.dtype))


def _channels_last(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous(memory_format=torch.channels_last)


def _masked(r: Tensor, mask: Tensor | None) -> Tensor:
    return r if mask is None else r.mul_(mask)


def gram(dictionary: Tensor, stride, pads, size) -> Callable[[Tensor], Tensor]:
    """v -> A'A v for codes of one image; what is made of the dictionary, which nobody may change, is made once."""
    image = dictionary.new_empty((1, dictionary.shape[1], *size))
    a = Convolutions(image, freeze(dictionary), stride, pads, -1.0)
    return lambda v: a.analysis(a.residual(None, v.contiguous(memory_format=torch.channels_last)))


def residual(x, z, dictionary, stride, pads, mask):
    a = Convolutions(x, dictionary, stride, pads, 1.0)
    r = a.residual(_channels_last(x), _channels_last(z))
    return image(x, _masked(r, mask_like(x, mask)))


def residual_backward(grad, x, z, dictionary, stride, pads, mask, needs):
    a = Convolutions(x, dictionary, stride, pads, -1.0)
    grad = _channels_last(grad)
    masked = grad.clone() if mask is None else grad * mask_like(x, mask)
    return (
        image(x, masked) if needs[0] else unused(x),
        image(x, a.analysis(masked)) if needs[1] else unused(x),
        gradient_of(dictionary, -a.correlation([masked], [_channels_last(z)])) if needs[2] else unused(x),
        unused(x),
    )


def fista_step(x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads, nonneg, gradient_at_z, mask):
    a = Convolutions(x, dictionary, stride, pads, step_size.item())
    threshold = Threshold(lmbda, mu, step_size, nonneg, z.shape[1])
    y = _channels_last(y)
    point = _channels_last(z) if gradient_at_z else y
    r = _masked(a.residual(_channels_last(x), point), mask_like(x, mask))
    z_next = threshold.step(a, r, y)
    y_next = unused(x) if beta is None else image(x, z_next + beta * (z_next - z))
    return image(x, z_next), y_next


def fista_step_backward(
    grad_z_next, grad_y_next, z_next, x, z, y, dictionary, lmbda, mu, step_size, beta, stride, pads,
    gradient_at_z, mask, needs,
):  # fmt: skip
    a = Convolutions(x, dictionary, stride, pads, step_size.item())
    x_last, mask = _channels_last(x), mask_like(x, mask)
    point = _channels_last(z if gradient_at_z else y)
    r = _masked(a.residual(x_last, _channels_last(point)), mask)
    grad = grad_z_next if beta is None else grad_z_next + (1 + beta) * grad_y_next
    back = Backward(a, x, lmbda, mu, step_size, mask, False, [needs[i] for i in (0, 3, 4, 5, 6)])
    gradient, grad_point = back.step(_channels_last(grad), _channels_last(z_next), r, point, gradient_at_z)
    grad_z = torch.zeros_like(grad) if beta is None else -beta * grad_y_next
    if gradient_at_z:
        grad_y, grad_z = gradient, grad_z + grad_point
    else:
        grad_y = gradient
    grads = back.gradients(dictionary)
    images = [image(x, g) if n else unused(x) for g, n in zip((grads[0], grad_z, grad_y), needs[:3])]
    return (*images, *(unused(x) if g is None else g for g in grads[1:]), unused(x))


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    a = Convolutions(x, dictionary, stride, pads, step_size.item())
    threshold = Threshold(lmbda, mu, step_size, nonneg, dictionary.shape[0])
    x_last, mask = _channels_last(x), mask_like(x, mask)
    codes: list[Tensor] = []
    residuals: list[Tensor] = []
    z = y = _channels_last(z0)
    for k, beta in enumerate(step_weights(n_iter, momentum), 1):
        if z is None:
            r = x_last if mask is None else x_last * mask
        else:
            r = _masked(a.residual(x_last, z if momentum == "sdnet" else y), mask)
            if keep:
                residuals.append(r)
        z_next = threshold.step(a, r, y)
        if k < n_iter:
            if keep:
                codes.append(z_next)
            y = torch.lerp(z, z_next, 1 + beta) if beta else z_next
        z = z_next
    kept = kept_tensors(x, z.shape, z0, n_iter, keep)
    return image(x, z), *map(_stack, kept, (codes, residuals))


def _stack(out: Tensor, values: list[Tensor]) -> Tensor:
    """The values along the batch in `out`, as many as it has room for."""
    if out.shape[0] == 0:
        return out
    return values[0] if len(values) == 1 else torch.cat(values, out=out)


class Backward:
    """Sums the gradients of the steps of one solve; the formulas are csc_kernels.reference's."""

    def __init__(self, a: Convolutions, x, lmbda, mu, step_size, mask, nonneg, needs) -> None:
        self.a, self.like, self.mask = a, x, mask
        self.lmbda, self.mu, self.step_size = lmbda, mu, step_size
        self.t = step_size.item()
        self.nonneg = nonneg
        self.needs = needs  # x, dictionary, lmbda, mu, step_size
        self.divisor = None if mu.dim() == 0 and mu.item() == 0 else 1 + step_size * mu
        self.grad_x: Tensor | None = None
        self.grad_dictionary: Tensor | None = None
        self.penalty: Tensor | None = None

    def step(self, grad: Tensor, z_next: Tensor, r: Tensor, point: Tensor | None, separate: bool):
        """G, the gradient in the base, and the gradient in the point, or their sum and None.

        Without a point, None in its place.
        """
        if self.nonneg:
            gradient = torch.ops.aten.threshold_backward(grad, z_next, 0)
        else:
            gradient = torch.where(z_next != 0, grad, 0)
        if self.divisor is not None:
            gradient = gradient.div_(self.divisor.to(gradient.dtype))
        if any(self.needs[2:4]):
            self.penalty = _plus(self.penalty, penalty_sums(gradient, z_next))
        images, codes = [r], [gradient]
        grad_base, grad_point, picture = gradient, None, None
        if point is not None or self.needs[0]:
            picture = _masked(self.a.residual(None, gradient), self.mask)  # -mask A G
        if point is not None and picture is not None:
            images.append(picture)
            codes.append(point)
            if separate:
                grad_point = self.a.analysis(picture)
            else:
                grad_base = self.a.analysis(picture, gradient)
        if self.needs[1]:
            self.grad_dictionary = _plus(self.grad_dictionary, self.a.correlation(images, codes))
        if self.needs[0] and picture is not None:
            if self.grad_x is None:
                self.grad_x = picture.mul_(-self.t)
            else:
                # Of a larger number add_ makes an error, not infinity.
                self.grad_x.add_(picture, alpha=-min(self.t, torch.finfo(torch.float32).max))
        return grad_base, grad_point

    def gradients(self, dictionary: Tensor) -> list[Tensor | None]:
        """In x, dictionary, lmbda, mu and the step size; None where not needed."""
        grads: list[Any] = [self.grad_x, None, None, None, None]
        if self.needs[1]:
            grads[1] = self.t * self.grad_dictionary
        if any(self.needs[2:4]):
            grads[2:4] = penalty_gradients(self.penalty, self.step_size, self.lmbda, self.mu)
        targets = (self.like, dictionary, self.lmbda, self.mu, self.step_size)
        return [
            None if not need else g if i == 0 else gradient_of(target, g)
            for i, (target, g, need) in enumerate(zip(targets, grads, self.needs))
        ]


def _plus(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total.add_(value)


def fista_backward(
    grad, x, dictionary, lmbda, mu, step_size, z0, mask, z, codes, residuals, n_iter, stride, pads,
    nonneg, momentum, needs,
):  # fmt: skip
    batch = x.shape[0]
    if codes.shape[0] != (n_iter - 1) * batch or (z0 is not None and residuals.shape[0] != n_iter * batch):
        _, codes, residuals = fista(
            x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, True
        )
    a = Convolutions(x, dictionary, stride, pads, step_size.item())
    x_last, mask = _channels_last(x), mask_like(x, mask)
    betas = step_weights(n_iter, momentum)
    codes = codes.unflatten(0, (n_iter - 1, batch)).unbind()
    residuals = residuals.unflatten(0, (n_iter if z0 is not None else n_iter - 1, batch)).unbind()
    iterates = [_channels_last(z0), *map(_channels_last, codes), z]
    steps = [_channels_last(r) for r in residuals]
    if z0 is None:
        steps.insert(0, x_last if mask is None else x_last * mask)

    def extrapolated(k: int) -> Tensor | None:
        if k == 0 or betas[k - 1] == 0:
            return iterates[k]
        return torch.lerp(iterates[k - 1], iterates[k], 1 + betas[k - 1])

    back = Backward(a, x, lmbda, mu, step_size, mask, nonneg, needs[:5])
    current, before = _channels_last(grad), None
    for k in range(n_iter, 0, -1):
        point = iterates[k - 1] if momentum == "sdnet" else extrapolated(k - 1)
        beta = betas[k - 2] if k >= 2 else 0.0
        # y is z where no momentum moved it: the base and the point are then one.
        separate = momentum == "sdnet" and beta != 0
        grad_base, grad_point = back.step(current, _channels_last(iterates[k]), steps[k - 1], point, separate)
        if point is None:
            break
        share = (1 + beta) * grad_base if beta else grad_base
        for term in (grad_point, before):
            if term is not None:
                share = share + term
        before = -beta * grad_base if beta else None
        current = share
    grads = back.gradients(dictionary)
    return (
        image(x, grads[0]) if needs[0] else None,
        *grads[1:],
        image(x, current) if needs[5] else None,
        None,
    )
