"""Many input channels: oneDNN's convolutions with the residual, the step and the threshold in their epilogues.

A step is bound by the arithmetic of its two convolutions, so that what is left to win is fewer operations
(Winograd's, where they fit) and every pass over a code or a residual. Of two steps from zero nothing remains but
the three convolutions:

    z_1 = relu(conv(x, t D) - t lmbda)       threshold and relu in the epilogue
    r   = x - A z_1                          x in the epilogue; stride 1: a convolution with the atoms turned around
    z_2 = relu(z_1 + conv(r, t D) - t lmbda) z_1, threshold and relu in the epilogue

All run in channels_last, the layout that these convolutions read without a copy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..changes import derived
from ..geometry import code_size, step_weights
from ..ops.fista import kept_tensors
from ..ops.library import gradient_of, image, unused
from .stem import mask_like, penalty_gradients, penalty_sums


@functools.cache
def has_epilogues() -> bool:
    """Whether this torch has oneDNN's convolutions with epilogues (the ones that its compiler emits)."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_convolution_pointwise_")
    )


def winograd_pays(x: Tensor, dictionary: Tensor, stride, z_size) -> bool:
    """Whether F(2x2, 3x3) has fewer products than the direct convolution, and by enough for its transforms.

    Its tiles and vectors are padded to whole ones; measured, it does 1.7 times as many useful products a
    second where nothing is. NaN and infinity reach whole tiles: one more pixel than the convolution, each time,
    and infinity comes out as NaN.
    """
    if x.dtype != torch.float32 or tuple(dictionary.shape[2:]) != (3, 3) or list(stride) != [1, 1]:
        return False
    lanes = torch.ops.csc_native.winograd_lanes()
    done = needed = 1
    for channels in dictionary.shape[:2]:
        done, needed = done * -(-channels // lanes) * lanes, needed * channels
    for size in z_size:
        done, needed = done * -(-size // 2) * 2, needed * size
    return done < 1.5 * needed


class Convolutions:
    """-A and scale A' of one dictionary, channels_last, with epilogues.

    Three ways, the best that fits: Winograd's (3x3, stride 1, float32), oneDNN's with its epilogues, and torch's
    plain ones.
    """

    def __init__(self, x: Tensor, dictionary: Tensor, stride, pads, scale: float) -> None:
        self.size = x.shape[2:]
        self.stride = list(stride)
        self.pads = tuple(pads)
        self.z_size = code_size(self.size, dictionary.shape[2:], stride, pads)
        self.plain = dictionary
        self.scale = scale
        self.winograd = winograd_pays(x, dictionary, stride, self.z_size)
        self.fused = has_epilogues() and pads[0] == pads[1] and pads[2] == pads[3]
        # A is a convolution with the atoms turned around and padding kernel - 1 - padding.
        self.turned_pads = [k - 1 - p for k, p in zip(dictionary.shape[2:], (pads[0], pads[2]))]
        self.turns = self.stride == [1, 1] and min(self.turned_pads) >= 0
        if self.winograd:
            self.transforms = self._transforms(dictionary)

    def _transforms(self, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Winograd's transforms of the atoms for the analysis and the synthesis."""
        lanes = torch.ops.csc_native.winograd_lanes()
        kept = derived(dictionary)
        key = ("winograd", self.scale, torch.ops.csc_native.isa())
        if key not in kept:
            atoms, channels = (-(-n // lanes) * lanes for n in dictionary.shape[:2])
            # Two allocations: one of both would be returned to the system, and cleared by it, at every call.
            transforms = (torch.empty(16 * atoms * channels), torch.empty(16 * atoms * channels))
            torch.ops.csc_native.winograd_weights(dictionary.contiguous(), self.scale, *transforms)
            kept[key] = transforms
        return kept[key]

    @functools.cached_property
    def dictionary(self) -> Tensor:
        return self.plain.contiguous(memory_format=torch.channels_last)

    @functools.cached_property
    def scaled(self) -> Tensor:
        return self.dictionary * self.scale

    @functools.cached_property
    def turned(self) -> Tensor:
        """-D turned around, (M, K, kH, kW)."""
        turned = self.dictionary.flip(2, 3).transpose(0, 1).neg()
        return turned.contiguous(memory_format=torch.channels_last)

    def analysis(
        self, r: Tensor, base: Tensor | None = None, threshold: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """[relu](base + scale A' r - threshold), the threshold one number per atom."""
        if self.winograd:
            out = _empty(r, self.plain.shape[0], self.z_size)
            return self._winograd(r, self.transforms[0], self.pads[::2], threshold, base, relu, out)
        if not self.fused:
            v = reference.analysis(r, self.scaled, self.stride, self.pads)
            if threshold is not None:
                v -= threshold.to(v.dtype).view(-1, 1, 1)
            if base is not None:
                v += base
            return v.relu_() if relu else v
        # oneDNN's relu turns NaN into 0, so that its epilogue goes without: torch's keeps it.
        bias = None if threshold is None else threshold.neg().to(r.dtype)
        padding = [self.pads[0], self.pads[2]]
        if base is None:
            v = torch.ops.mkldnn._convolution_pointwise(
                r, self.scaled, bias, padding, self.stride, [1, 1], 1, "none", [], None
            )
        else:
            v = torch.ops.mkldnn._convolution_pointwise.binary(
                r, base, self.scaled, bias, padding, self.stride, [1, 1], 1, "add", 1.0, None, [], None
            )
        return v.relu_() if relu else v

    def residual(self, x: Tensor | None, z: Tensor) -> Tensor:
        """x - A z, or -A z without x."""
        if self.winograd and self.turns:
            out = _empty(z, self.plain.shape[1], self.size)
            return self._winograd(z, self.transforms[1], self.turned_pads, None, x, False, out)
        if not (self.fused and self.turns):
            image = reference.synthesis(z, self.dictionary, self.stride, self.pads, self.size)
            return image.neg_() if x is None else torch.sub(x, image, out=image)
        if x is None:
            return torch.ops.mkldnn._convolution_pointwise(
                z, self.turned, None, self.turned_pads, [1, 1], [1, 1], 1, "none", [], None
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            z, x, self.turned, None, self.turned_pads, [1, 1], [1, 1], 1, "add", 1.0, None, [], None
        )

    def _winograd(self, image, transform, pads, threshold, addend, relu, out) -> Tensor:
        # Channels must be adjacent, also where an image of one pixel or one channel could say otherwise.
        image, addend = _adjacent(image), None if addend is None else _adjacent(addend)
        if threshold is not None:
            lanes = torch.ops.csc_native.winograd_lanes()
            threshold = F.pad(threshold.float(), (0, -threshold.numel() % lanes))
        torch.ops.csc_native.winograd(image, transform, *pads, threshold, addend, relu, out)
        return out

    def correlation(self, r: Tensor, z: Tensor) -> Tensor:
        return reference.correlation(r, z, self.dictionary, self.stride, self.pads)


def _empty(like: Tensor, channels: int, size) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _adjacent(image: Tensor) -> Tensor:
    if image.stride(1) == 1 or image.shape[1] == 1:
        return image
    return torch.empty_like(image, memory_format=torch.channels_last).copy_(image)


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
        gradient_of(dictionary, -a.correlation(masked, z)) if needs[2] else unused(x),
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
    return (*images, *grads[1:], unused(x))


def fista(x, dictionary, lmbda, mu, step_size, z0, mask, n_iter, stride, pads, nonneg, momentum, keep):
    a = Convolutions(x, dictionary, stride, pads, step_size.item())
    threshold = Threshold(lmbda, mu, step_size, nonneg, dictionary.shape[0])
    x_last, mask = _channels_last(x), mask_like(x, mask)
    codes: list[Tensor] = []
    residuals: list[Tensor] = []
    z = y = _channels_last(z0)
    for beta in step_weights(n_iter, momentum):
        if z is None:
            r = x_last if mask is None else x_last * mask
        else:
            r = _masked(a.residual(x_last, z if momentum == "sdnet" else y), mask)
            residuals.append(r)
        z_next = threshold.step(a, r, y)
        y = torch.lerp(z, z_next, 1 + beta) if beta else z_next
        z = z_next
        codes.append(z)
    kept = kept_tensors(x, z.shape, z0, n_iter, keep)
    return image(x, z), *map(_stack, kept, (codes[:-1], residuals))


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
        if self.needs[1]:
            self.grad_dictionary = _plus(self.grad_dictionary, self.a.correlation(r, gradient))
        if point is None and not self.needs[0]:
            return gradient, None
        picture = _masked(self.a.residual(None, gradient), self.mask)  # -mask A G
        grad_point = None
        if point is not None:
            if self.needs[1]:
                self.grad_dictionary = _plus(self.grad_dictionary, self.a.correlation(picture, point))
            if separate:
                grad_point = self.a.analysis(picture)
            else:
                gradient = self.a.analysis(picture, gradient)
        if self.needs[0]:
            if self.grad_x is None:
                self.grad_x = picture.mul_(-self.t)
            else:
                self.grad_x.add_(picture, alpha=-self.t)
        return gradient, grad_point

    def gradients(self, dictionary: Tensor) -> tuple[Tensor | None, ...]:
        """In x, dictionary, lmbda, mu and the step size; empty where not needed."""
        grads: list[Any] = [self.grad_x, None, None, None, None]
        if self.needs[1]:
            grads[1] = self.t * self.grad_dictionary
        if any(self.needs[2:4]):
            grads[2:4] = penalty_gradients(self.penalty, self.step_size, self.lmbda, self.mu)
        targets = (self.like, dictionary, self.lmbda, self.mu, self.step_size)
        return tuple(
            unused(self.like) if not need else g if i == 0 else gradient_of(target, g)
            for i, (target, g, need) in enumerate(zip(targets, grads, self.needs))
        )


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
        image(x, grads[0]) if needs[0] else unused(x),
        *grads[1:],
        image(x, current) if needs[5] else unused(x),
        unused(x),
    )
