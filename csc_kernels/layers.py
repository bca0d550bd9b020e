"""CSCConv2d: a sparse code where a convolution stood."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .changes import Mark, can_be_marked, freeze, is_share, mark, unwrapped
from .functional import finite_step, fista, in_transform
from .geometry import (
    Padding,
    Stride,
    code_size,
    normalize_kernel_size,
    normalize_padding,
    normalize_size,
    normalize_stride,
)
from .lipschitz import lipschitz
from .reference import synthesis

# Up to this many columns of the polyphase matrix the certified bound costs less than a few power iterations.
BOUND_COLUMNS = 32


class CSCConv2d(nn.Module):
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
    evaluation both are fixed, and cost nothing, until the weight changes. Edits without a trace, through `.data`
    or numpy, are noticed on the CPU alone: all of them in weights of up to 10,000 numbers, and in larger ones
    where they touch one of about as many evenly spaced samples. Elsewhere edit the weight under torch.no_grad().
    A compiled forward follows every change of the weight, but in evaluation takes the step size as it is: call
    eval() again after changing the weight of a layer that is compiled. On images smaller than eight kernels the
    step of wide layers depends on the size: of the largest image so far, or in a compiled forward of each.

    >>> layer = CSCConv2d(3, 64, 3, padding=1, lmbda=0.1)
    >>> z = layer(torch.randn(2, 3, 32, 32))
    >>> tuple(z.shape), tuple(layer.reconstruct(z, (32, 32)).shape)
    ((2, 64, 32, 32), (2, 3, 32, 32))
    """

    lmbda: float | Tensor
    mu: float | Tensor
    step_size: Tensor
    stride: tuple[int, int]
    _lmbda_number: Tensor | None
    _mu_number: Tensor | None
    _step_of: Mark | None

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
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating point torch.dtype, got {dtype!r}")
        _only("dilation", dilation, (1, (1, 1), [1, 1]))
        _only("groups", groups, (1,))
        _only("bias", bias, (False, None))
        _only("padding_mode", padding_mode, ("zeros",))
        _one_of("normalize", normalize, ("sphere", "projection"))
        _one_of("step", step, ("auto", "bound", "power"))
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
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = normalize_kernel_size(kernel_size)
        self.stride = normalize_stride(stride)
        self.padding = padding
        self.n_iter = n_iter
        self.nonneg = nonneg
        self.momentum = momentum
        self.square_noise = square_noise
        self.huber = huber
        self.n_dict = n_dict
        self.normalize = normalize
        if step == "auto":
            columns = in_channels * n_dict * math.prod(self.stride)
            step = "bound" if columns <= BOUND_COLUMNS else "power"
        self.step = step
        self.lmbda = lmbda
        self.mu = mu

        shape = (out_channels, in_channels * n_dict, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("step_size", torch.full((), math.nan, device=device, dtype=dtype))
        # Of which weight, and for images up to which size, step_size is; None: of none, and for any.
        self._step_of = None
        self._step_size_of: tuple[int, int] | None = None
        # Of which weight the normalised dictionary is at hand, and that dictionary (none: the weight itself).
        self._cached: tuple[Mark | None, Tensor | None] = (None, None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random atoms: nn.Conv2d's Kaiming uniform, normalised."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight.copy_(self._normalized())
            if self.step == "bound":
                self._refresh_step(self.weight, None)

    # lmbda and mu may be set at any time, to numbers, tensors (they move with the module) or parameters. A number
    # is kept as a tensor too, no buffer, for the ops: a compiled graph takes it as an input.

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("stride", "padding"):
            self._set_geometry(name, value)
            return
        if name not in ("lmbda", "mu"):
            super().__setattr__(name, value)
            return
        checks.check_penalty(name, value)
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

    def _set_geometry(self, name: str, value: Any) -> None:
        if name == "stride":
            value = normalize_stride(value)
        stride = value if name == "stride" else self.stride
        padding = value if name == "padding" else getattr(self, "padding", 0)
        self._pads = normalize_padding(padding, self.kernel_size, stride)
        super().__setattr__(name, value)
        if "step_size" not in self._buffers:
            return
        # The step size follows: at once, for a compiled forward and a state_dict, and again for the next image.
        if self._has_numbers() and bool(torch.isfinite(self.step_size)):
            with torch.no_grad():
                self._refresh_step(self._normalized(), None)
        self._step_of, self._step_size_of = None, None

    # The dictionary and its step size.

    def _has_numbers(self) -> bool:
        """Whether the whole weight is here."""
        return not (self.weight.is_meta or is_share(self.weight))

    def _normalized(self) -> Tensor:
        norm = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        return self.weight / norm.clamp_min(1e-12)

    def dictionary(self) -> Tensor:
        """The atoms, (K, M n_dict, kH, kW), each of unit norm."""
        if in_transform():
            # Nothing may be written there; the projection's value, and its gradient, which is that of the weight.
            atoms = self._normalized()
            return atoms if self.normalize == "sphere" else self.weight + (atoms - self.weight).detach()
        if torch.is_grad_enabled() and self.weight.requires_grad:
            if self.normalize == "sphere":
                return self._normalized()
            # The projection happens to the weight itself, before the graph begins. A copy that evaluation has kept
            # is of a weight that may not be projected.
            made, copied = self._cached
            if copied is not None or not _holds(made, self.weight):
                current = self._current()
                with torch.no_grad():
                    self.weight.copy_(self._normalized())
                self._cached = (mark(self.weight), None)
                if current:
                    self._step_of = self._cached[0]
            return self.weight
        if not can_be_marked(self.weight):
            return self._normalized()
        made, cached = self._cached
        if cached is not None and _holds(made, self.weight):
            return cached
        # Not in inference mode: the cache may be used outside of it later.
        with torch.inference_mode(False), torch.no_grad():
            cached = freeze(self._normalized())
            self._cached = (mark(self.weight), cached)
        return cached

    def _refresh_step(self, dictionary: Tensor, size: tuple[int, int] | None) -> Tensor:
        """The step size of a dictionary, also kept in the buffer."""
        dictionary = dictionary.detach()  # torch.no_grad would leave marks in exported programs that do not load.
        if self.step == "bound":
            step = 1 / lipschitz(dictionary, stride=self.stride, method="bound")
        else:
            size = size or self._largest_size()
            step = 0.9 / lipschitz(
                dictionary,
                stride=self.stride,
                padding=self._pads,
                input_size=size,
                tol=5e-3,
                max_iter=50,
            )
        step = finite_step(step.to(self.step_size.dtype))
        if in_transform():
            return step  # Nothing may be written there.
        self.step_size.copy_(step)
        if not torch.compiler.is_compiling():
            self._step_of = mark(self.weight)
            self._step_size_of = size if self.step == "power" else None
        return step

    def _largest_size(self) -> tuple[int, int]:
        """Eight kernels, which have nearly all of ||A||^2.

        Atoms of two taps in each direction, as far apart as can be, have least: chains of seven or more of them lie
        on such a map, and have cos^2(pi / 16) of what an endless chain has, 0.925 in two directions. The step keeps
        clear of more.
        """
        (rows, columns), (down, across) = self.kernel_size, self.stride
        return 8 * rows * down, 8 * columns * across

    def _step(self, dictionary: Tensor, size: tuple[int, int]) -> Tensor:
        """The step size for this forward, a tensor of its own: the buffer changes under the graph."""
        rows, columns = self._largest_size()
        size = min(size[0], rows), min(size[1], columns)
        if torch.compiler.is_compiling():
            return self._refresh_step(dictionary, size) if self.training else self.step_size
        largest = self._step_size_of
        if largest is not None:
            # ||A||^2 grows with the image: what was right for the largest so far is right for all smaller ones.
            size = max(size[0], largest[0]), max(size[1], largest[1])
        if self._current() and largest in (None, size):
            return self.step_size.clone()
        return self._refresh_step(dictionary, size)

    def train(self, mode: bool = True) -> CSCConv2d:
        """Leaving training takes the step size of the last weight, which a compiled forward cannot do."""
        super().train(mode)
        if not mode and self._has_numbers() and not self._current():
            with torch.no_grad():
                self._refresh_step(self._normalized(), self._step_size_of)
        return self

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
            self.lmbda if self._lmbda_number is None else self._lmbda_number.reshape(()),
            self._step(dictionary, size),
            self.n_iter,
            stride=self.stride,
            padding=self._pads,
            mu=self.mu if self._mu_number is None else self._mu_number.reshape(()),
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
        top, bottom, left, right = self._pads
        smallest = (
            (z.shape[-2] - 1) * self.stride[0] + self.kernel_size[0] - top - bottom,
            (z.shape[-1] - 1) * self.stride[1] + self.kernel_size[1] - left - right,
        )
        size = smallest if size is None else normalize_size("size", size)
        if any(not 0 <= given - least < s for given, least, s in zip(size, smallest, self.stride)):
            raise ValueError(f"a code of shape {tuple(z.shape)} has no image of size {size}")
        dictionary = self.dictionary()
        checks.check_same_kind("z", z, dictionary, autocast=True, than="the weight")
        x = synthesis(z if z.dim() == 4 else z.unsqueeze(0), dictionary, self.stride, self._pads, size)
        if self.n_dict > 1:
            x = x.unflatten(1, (self.n_dict, self.in_channels)).mean(1)
        return x if z.dim() == 4 else x.squeeze(0)

    # Copies, loads and moves give the weight a new identity; what was current before is current after.

    def _current(self) -> bool:
        return _holds(self._step_of, self.weight)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_step_of"] = self._current()
        state["_cached"] = (None, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._step_of = mark(self.weight) if state["_step_of"] else None

    def _apply(self, fn: Any, recurse: bool = True) -> CSCConv2d:
        current = self._current()
        super()._apply(fn, recurse)
        self._cached = (None, None)
        self._step_of = mark(self.weight) if current else None
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._cached = (None, None)
        given = state_dict.get(f"{prefix}step_size")
        kept = given is not None and not given.is_meta and bool(torch.isfinite(given))
        self._step_of = mark(self.weight) if kept else None
        if kept:
            self._step_size_of = None

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


def _holds(made: Mark | None, weight: Tensor) -> bool:
    return made is not None and made.holds(unwrapped(weight))


def _brief(value: float | Tensor) -> object:
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else value


def _only(name: str, value: object, allowed: Iterable[object]) -> None:
    if not isinstance(value, (Integral, str, tuple, list, type(None))) or value not in allowed:
        raise ValueError(f"{name}={value!r} is not supported by CSCConv2d, only {next(iter(allowed))!r}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
