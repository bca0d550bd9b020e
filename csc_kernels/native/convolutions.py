"""The convolutions of a wide layer, each with what surrounds it in its epilogue.

All run in channels_last, the layout that oneDNN's read without a copy and along whose channels Winograd's vectors
lie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..changes import derived, freeze
from ..geometry import code_size
from .paths import choose_path, has_tile_units


class Direct:
    """-A and scale A' through oneDNN's convolutions with epilogues, or torch's plain ones."""

    def __init__(self, dictionary: Tensor, stride, pads, scale: float, size) -> None:
        self.plain = dictionary
        self.kept = derived(dictionary)
        self.stride = list(stride)
        self.pads = tuple(pads)
        self.scale = scale
        self.size = size
        symmetric = pads[0] == pads[1] and pads[2] == pads[3]
        self.fused = _has_epilogues() and symmetric and dictionary.dtype != torch.float64
        self.turned_pads = turned_pads(dictionary, pads)
        self.turns = self.stride == [1, 1] and min(self.turned_pads) >= 0

    @functools.cached_property
    def dictionary(self) -> Tensor:
        return self._kept("plain", lambda: self.plain.contiguous(memory_format=torch.channels_last))

    @functools.cached_property
    def scaled(self) -> Tensor:
        return self._kept(self.scale, lambda: self.dictionary * self.scale)

    @functools.cached_property
    def turned(self) -> Tensor:
        """-D turned around, (M, K, kH, kW): with stride 1 the synthesis is a convolution with it."""

        def turn() -> Tensor:
            turned = self.dictionary.flip(2, 3).transpose(0, 1).neg()
            return turned.contiguous(memory_format=torch.channels_last)

        return self._kept("turned", turn)

    def _kept(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if ("direct", key) not in self.kept:
            made = make()
            if made is self.plain:  # What is kept must not keep alive what it is derived from.
                return made
            self.kept["direct", key] = made
        return self.kept["direct", key]

    def _packed(self, weight: Tensor, key: object, image: Tensor, padding: list[int], stride: list[int]) -> Tensor:
        """A weight in the order that oneDNN wants for images of this shape, and would else put it in at every call.

        Of each weight one order is kept, for the shape that came last.
        """
        if image.shape[0] == 0:
            return weight
        shape, packed = self.kept.get(("packed", key), (None, weight))
        if shape != image.shape:
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, [1, 1], 1, image.shape)
            self.kept["packed", key] = (image.shape, packed)
        return packed

    def analysis(self, r: Tensor, base: Tensor | None, threshold: Tensor | None, relu: bool) -> Tensor:
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
        weight = self._packed(self.scaled, self.scale, r, padding, self.stride)
        if base is None:
            v = torch.ops.mkldnn._convolution_pointwise(
                r, weight, bias, padding, self.stride, [1, 1], 1, "none", [], None
            )
        else:
            v = torch.ops.mkldnn._convolution_pointwise.binary(
                r, base, weight, bias, padding, self.stride, [1, 1], 1, "add", 1.0, None, [], None
            )
        return v.relu_() if relu else v

    def residual(self, x: Tensor | None, z: Tensor) -> Tensor:
        if not (self.fused and self.turns):
            image = reference.synthesis(z, self.dictionary, self.stride, self.pads, self.size)
            return image.neg_() if x is None else torch.sub(x, image, out=image)
        weight = self._packed(self.turned, "turned", z, self.turned_pads, [1, 1])
        if x is None:
            return torch.ops.mkldnn._convolution_pointwise(
                z, weight, None, self.turned_pads, [1, 1], [1, 1], 1, "none", [], None
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            z, x, weight, None, self.turned_pads, [1, 1], [1, 1], 1, "add", 1.0, None, [], None
        )

    def correlation(self, images: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        one, *others = (
            reference.correlation(r, z, self.dictionary, self.stride, self.pads) for r, z in zip(images, codes)
        )
        return sum(others, one)


class Winograd:
    """The same for 3x3 and stride 1 through csrc/cpu/winograd.cpp, with tiles of `side` x `side` outputs."""

    def __init__(self, dictionary: Tensor, pads, scale: float, size, side: int) -> None:
        self.dictionary = dictionary
        self.pads = tuple(pads)
        self.scale = scale
        self.size = size
        self.z_size = code_size(size, dictionary.shape[2:], (1, 1), pads)
        self.turned_pads = turned_pads(dictionary, pads)
        self.side = side
        self.lanes = torch.ops.csc_native.winograd_lanes() * 4 // max(4, dictionary.itemsize)

    @functools.cached_property
    def transforms(self) -> tuple[Tensor, Tensor]:
        """The transforms of scale D for the analysis and of -D for the synthesis."""
        kept = derived(self.dictionary)
        key = ("winograd", self.side, self.scale, torch.ops.csc_native.isa())
        if key not in kept:
            atoms, channels = (-(-n // self.lanes) * self.lanes for n in self.dictionary.shape[:2])
            # Two allocations: one of both would be returned to the system, and cleared by it, at every call.
            count = (self.side + 2) ** 2 * atoms * channels
            transforms = (self.dictionary.new_empty(count), self.dictionary.new_empty(count))
            torch.ops.csc_native.winograd_weights(self.dictionary.contiguous(), self.side, self.scale, *transforms)
            kept[key] = transforms
        return kept[key]

    def analysis(self, r: Tensor, base: Tensor | None, threshold: Tensor | None, relu: bool) -> Tensor:
        if threshold is not None:
            exact = torch.promote_types(r.dtype, torch.float32)
            threshold = F.pad(threshold.to(exact), (0, -threshold.numel() % self.lanes))
        out = _empty(r, self.dictionary.shape[0], self.z_size)
        return self._convolve(r, self.transforms[0], self.pads[::2], threshold, base, relu, out)

    def residual(self, x: Tensor | None, z: Tensor) -> Tensor:
        out = _empty(z, self.dictionary.shape[1], self.size)
        return self._convolve(z, self.transforms[1], self.turned_pads, None, x, False, out)

    def _convolve(self, image, transform, pads, threshold, addend, relu, out) -> Tensor:
        addend = None if addend is None else _adjacent(addend)
        torch.ops.csc_native.winograd(
            _adjacent(image), transform, self.side, *pads, threshold, addend, relu, None, out
        )
        return out

    def correlation(self, images: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        gradient = torch.zeros(self.dictionary.shape, dtype=self.dictionary.dtype)
        torch.ops.csc_native.winograd_gradient(
            [_adjacent(r) for r in images], [_adjacent(z) for z in codes], self.side, *self.pads[::2], 1.0, None,
            gradient,
        )  # fmt: skip
        return gradient


class Convolutions:
    """-A and scale A' of a dictionary for images like x, and its gradient, each the way that paths.py chooses.

    bfloat16 is computed in float32 where oneDNN has no convolutions for it, or wrong ones: their results are
    rounded, and nothing else.
    """

    def __init__(self, x: Tensor, dictionary: Tensor, stride, pads, scale: float) -> None:
        self.dtype = self.given_dtype = x.dtype
        batch, size = x.shape[0], x.shape[2:]
        z_size = code_size(size, dictionary.shape[2:], stride, pads)
        # With AMX oneDNN 3.12 reads memory that nobody wrote where rows of a strided convolution have one column.
        unwritten = has_tile_units() and z_size[1] == 1 and stride[1] > 1
        if x.dtype == torch.bfloat16 and (unwritten or not _convolves_bfloat16()):
            self.dtype, dictionary = torch.float32, _widened(dictionary)
        self.direct = Direct(dictionary, stride, pads, scale, size)

        def way(gradient: bool) -> Direct | Winograd:
            path = choose_path(dictionary, stride, batch, z_size, gradient)
            return self.direct if path == "direct" else Winograd(dictionary, pads, scale, size, int(path[1]))

        self.convolution = way(gradient=False)
        self.gradient = way(gradient=True)

    def analysis(
        self, r: Tensor, base: Tensor | None = None, threshold: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """[relu](base + scale A' r - threshold), the threshold one number per atom."""
        code = self.convolution.analysis(r.to(self.dtype), self._as_computed(base), threshold, relu)
        return code.to(self.given_dtype)

    def residual(self, x: Tensor | None, z: Tensor) -> Tensor:
        """x - A z, or -A z without x."""
        convolution = self.convolution if self.direct.turns else self.direct
        return convolution.residual(self._as_computed(x), z.to(self.dtype)).to(self.given_dtype)

    def correlation(self, images: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        """The gradient of the sum of <A' image, code> with respect to the dictionary."""
        return self.gradient.correlation(
            [image.to(self.dtype) for image in images], [code.to(self.dtype) for code in codes]
        )

    def _as_computed(self, image: Tensor | None) -> Tensor | None:
        return None if image is None else image.to(self.dtype)


def turned_pads(dictionary: Tensor, pads) -> list[int]:
    """A is a convolution with the atoms turned around and this padding, where it is not negative."""
    return [k - 1 - p for k, p in zip(dictionary.shape[2:], (pads[0], pads[2]))]


@functools.cache
def _has_epilogues() -> bool:
    """Whether this torch has oneDNN's convolutions with epilogues (the ones that its compiler emits)."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_convolution_pointwise_")
    )


@functools.cache
def _convolves_bfloat16() -> bool:
    """Whether oneDNN convolves bfloat16 on this processor; without, torch's plain loops are all there is."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _widened(dictionary: Tensor) -> Tensor:
    kept = derived(dictionary)
    if "float32" not in kept:
        kept["float32"] = freeze(dictionary.float())
    return kept["float32"]


def _empty(like: Tensor, channels: int, size) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _adjacent(image: Tensor) -> Tensor:
    """With adjacent channels, also where an image of one pixel or one channel could say otherwise."""
    if image.stride(1) == 1 or image.shape[1] == 1:
        return image
    return torch.empty_like(image, memory_format=torch.channels_last).copy_(image)
