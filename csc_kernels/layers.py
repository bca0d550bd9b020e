"""CSCConv2d: a sparse code where a convolution stood."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import checks
from .changes import is_traced
from .dictionary import LearnedDictionary
from .functional import fista
from .geometry import Padding, Stride, code_size, normalize_kernel_size, normalize_size
from .reference import synthesis


class CSCConv2d(LearnedDictionary):
    """Convolutional sparse coding layer: the output is the sparse code of the input.

        z = argmin_z 1/2 ||x - A z||^2 + lmbda ||z||_1 + mu/2 ||z||^2,  z >= 0,

    after `n_iter` steps of FISTA from zero; A z = conv_transpose2d(z, dictionary), the dictionary being the
    weight with atoms of unit norm (Dai et al., NeurIPS 2022, arXiv 2210.12945). The first arguments are
    nn.Conv2d's, in its order.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as in nn.Conv2d; out_channels is the number
            of atoms K.
        dilation, groups, bias, padding_mode: there for the order of arguments; a code has no bias, and only
            1, 1, False and "zeros" are accepted.
        lmbda: weight of the l1 norm, at least 0. May be set at any time: a number, or a tensor that
            broadcasts against the code.
        mu: weight of the squared l2 norm, at least 0, like lmbda.
        n_iter: steps.
        nonneg: codes are not negative.
        momentum: "fista", "none" or "sdnet", see `fista`.
        square_noise, huber: the data term, see `fista`.
        n_dict: the input is repeated so many times along its channels, each with atoms of its own.
        normalize: how atoms get their unit norm. "sphere" divides by the norm, with its gradient;
            "projection" overwrites the weight before the forward, without gradient, as published.
        step: step size. "bound" is 1 / a certified bound of ||A||^2, which cannot diverge; "power" is
            0.9 / a power iteration, as published, cheaper for wide dictionaries; "auto" takes "bound" where
            in_channels * stride^2 <= 32, and "power" elsewhere.

    Shapes:
        x (N, M, H, W) or (M, H, W) -> (N, K, H', W') or (K, H', W'), any H and W at every call.

    The weight and the buffer `step_size` are the state. In training the step size follows the dictionary; in
    evaluation both are fixed, and cost nothing, until the weight changes. Edits without a trace, through `.data` or
    numpy or of a weight made in inference mode, are noticed on the CPU alone: all of them in weights of up to
    10,000 numbers, and in larger ones where they touch one of about as many evenly spaced samples. Elsewhere edit
    the weight under torch.no_grad(). A compiled forward follows every change of the weight, but in evaluation takes
    the step size as it is, which eval() and state_dict() bring up to date: call one of them after changing the
    weight of a layer that is compiled. On images smaller than eight kernels the step of wide layers depends on the
    size: of the largest image so far, or in a compiled forward of each. `step_size_of` is that size, (rows,
    columns), or None for any; a state_dict has it in its metadata. A program for larger images, or for images of
    any size, finds the step at every call: let the layer see an image of eight kernels before exporting it. A step
    size that is loaded without its size (safetensors and copies into plain dicts keep none) stays until the weight
    changes: set `step_size_of` after loading it. Where processes of DistributedDataParallel see images of different
    sizes, pass it broadcast_buffers=False.

    The backward needs the code: what follows may not change it in place, as ReLU(inplace=True) would.

    >>> layer = CSCConv2d(3, 64, 3, padding=1, lmbda=0.1)
    >>> z = layer(torch.randn(2, 3, 32, 32))
    >>> tuple(z.shape), tuple(layer.reconstruct(z, (32, 32)).shape)
    ((2, 64, 32, 32), (2, 3, 32, 32))
    """

    lmbda: float | Tensor
    mu: float | Tensor
    _lmbda_number: Tensor | None
    _mu_number: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Stride,
        stride: Stride = 1,
        padding: Padding = 0,
        dilation: Stride = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        lmbda: float | Tensor = 0.1,
        mu: float | Tensor = 0.0,
        n_iter: int = 2,
        nonneg: bool = True,
        momentum: str = "fista",
        square_noise: bool = True,
        huber: float | None = None,
        n_dict: int = 1,
        normalize: str = "sphere",
        step: str = "auto",
    ) -> None:
        if dtype is not None and dtype not in checks.FLOATS:
            raise TypeError(f"dtype must be a floating point torch.dtype of 16, 32 or 64 bits, got {dtype!r}")
        _only("dilation", dilation, (1, (1, 1), [1, 1]))
        _only("groups", groups, (1,))
        _only("bias", bias, (False, None))
        _only("padding_mode", padding_mode, ("zeros",))
        checks.check_n_iter(n_iter)
        checks.check_momentum(momentum)
        checks.check_nonneg(nonneg)
        checks.check_data_term(square_noise, huber)
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("n_dict", n_dict),
        ):
            checks.check_int(name, value, checks.MOST_STEPS)
        shape = (out_channels, in_channels * n_dict, *normalize_kernel_size(kernel_size))
        super().__init__(shape, stride, padding, normalize, step, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.n_iter = n_iter
        self.nonneg = nonneg
        self.momentum = momentum
        self.square_noise = square_noise
        self.huber = huber
        self.n_dict = n_dict
        self.lmbda = lmbda
        self.mu = mu

    # lmbda and mu may be set at any time, to numbers, tensors (they move with the module) or parameters. A number
    # is kept as a tensor too, no buffer, for the ops: a compiled graph takes it as an input.

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("lmbda", "mu"):
            super().__setattr__(name, value)
            return
        checks.check_penalty(name, value)
        if parametrize.is_parametrized(self, name):
            value = value if isinstance(value, Tensor) else torch.full_like(getattr(self, name), value)
            super().__setattr__(name, value.detach())
            return
        if hasattr(self, name):
            delattr(self, name)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value, persistent=False)
        else:
            super().__setattr__(name, value)
        with torch.inference_mode(False):  # It may be used outside of it later.
            # One dimension: the compiler takes a float64 scalar for a Python number, and traces twice.
            number: Any = None if isinstance(value, Tensor) else checks.parameter(name, value).reshape(1)
        super().__setattr__(f"_{name}_number", number)

    def _penalty(self, name: str) -> float | Tensor:
        number = getattr(self, f"_{name}_number")
        # Among fake tensors there can be no real one.
        return getattr(self, name) if number is None or is_traced() else number.reshape(())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The code of x. Pixels where the mask, bool or floating, is zero are unknown; it broadcasts against x."""
        checks.check_tensor("x", x, (3, 4))
        if x.shape[-3] != self.in_channels:
            raise ValueError(
                f"the layer has {self.in_channels} input channels, x has {x.shape[-3]}: "
                f"weight {checks.shape(self.weight)}, x {checks.shape(x)}"
            )
        if mask is not None:
            checks.check_is_tensor("mask", mask)
        if self.n_dict > 1:
            x = torch.cat([x] * self.n_dict, dim=-3)
            if mask is not None and mask.dim() >= 3 and mask.shape[-3] == self.in_channels:
                mask = torch.cat([mask] * self.n_dict, dim=-3)
        dictionary = self.dictionary()
        if x.dtype is not dictionary.dtype or x.device != dictionary.device:
            checks.check_same_kind("x", x, dictionary, autocast=True, than="the weight")
        # Raised here and not by the power iteration, which would see the sizes first.
        size = x.shape[-2], x.shape[-1]
        if min(code_size(size, self.kernel_size, self.stride, self._pads)) < 1:
            raise ValueError(
                f"kernel {self.kernel_size} is larger than the padded input: x {checks.shape(x)}, "
                f"padding {tuple(self._pads)}"
            )
        return fista(
            x,
            dictionary,
            self._penalty("lmbda"),
            self._step(dictionary, size),
            self.n_iter,
            stride=self.stride,
            padding=self._pads,
            mu=self._penalty("mu"),
            nonneg=self.nonneg,
            momentum=self.momentum,
            mask=mask,
            square_noise=self.square_noise,
            huber=self.huber,
        )

    def reconstruct(self, z: Tensor, size: Stride | None = None) -> Tensor:
        """The image that a code describes, A z.

        Args:
            z: code, (N, K, H', W') or (K, H', W').
            size: rows and columns of the image (or one int), which a stride leaves open; the smallest when it
                is None.

        Raises:
            TypeError: z is no floating point tensor of the layer's dtype, or size no int or pair of ints.
            ValueError: z is no code of this layer, is on another device, or has no image of that size.
        """
        checks.check_tensor("z", z, (3, 4))
        if z.shape[-3] != self.out_channels:
            raise ValueError(f"the layer has {self.out_channels} atoms, z has shape {tuple(z.shape)}")
        if any(isinstance(length, int) and length == 0 for length in z.shape[-2:]):
            raise ValueError(f"z must have rows and columns, got shape {tuple(z.shape)}")
        top, bottom, left, right = self._pads
        smallest = (
            (z.shape[-2] - 1) * self.stride[0] + self.kernel_size[0] - top - bottom,
            (z.shape[-1] - 1) * self.stride[1] + self.kernel_size[1] - left - right,
        )
        size = smallest if size is None else normalize_size("size", size)
        if any(not 0 <= given - least < s for given, least, s in zip(size, smallest, self.stride)):
            largest = tuple(least + s - 1 for least, s in zip(smallest, self.stride))
            raise ValueError(
                f"a code of shape {tuple(z.shape)} has images of {smallest} to {largest} pixels, got size {size}"
            )
        dictionary = self.dictionary()
        checks.check_same_kind("z", z, dictionary, autocast=True, than="the weight")
        x = synthesis(z if z.dim() == 4 else z.unsqueeze(0), dictionary, self.stride, self._pads, size)
        if self.n_dict > 1:
            x = x.unflatten(1, (self.n_dict, self.in_channels)).mean(1)
        return x if z.dim() == 4 else x.squeeze(0)

    def extra_repr(self) -> str:
        options = {
            "stride": self.stride,
            "padding": self.padding,
            "lmbda": _brief(self.lmbda),
            "mu": _brief(self.mu),
            "n_iter": self.n_iter,
            "nonneg": self.nonneg,
            "momentum": self.momentum,
            "normalize": self.normalize,
            "step": self.step,
        }
        if self.n_dict > 1:
            options["n_dict"] = self.n_dict
        if not self.square_noise:
            options["square_noise"] = False
        if self.huber is not None:
            options["huber"] = self.huber
        listed = ", ".join(f"{name}={value}" for name, value in options.items())
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {listed}"


def _brief(value: float | Tensor) -> object:
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else value


def _only(name: str, value: object, allowed: Iterable[object]) -> None:
    if not isinstance(value, (Integral, str, tuple, list, type(None))) or value not in allowed:
        raise ValueError(f"{name}={value!r} is not supported by CSCConv2d, only {next(iter(allowed))!r}")
