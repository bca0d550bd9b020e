"""A dictionary learned by backpropagation: atoms of unit norm, and the step size that follows them."""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .changes import Mark, can_be_marked, freeze, has_numbers, is_traced, mark, unwrapped
from .checks import check_choice
from .functional import finite_step, in_transform
from .geometry import Padding, Stride, normalize_padding, normalize_stride
from .lipschitz import lipschitz

if TYPE_CHECKING:
    from typing_extensions import Self

Size = tuple[int, int]

# Up to this many columns of the polyphase matrix the certified bound costs less than a few power iterations.
BOUND_COLUMNS = 32

# Of whoever reads or writes a step size together with what it is of: threads may evaluate one layer.
_STEP = threading.RLock()


def _unlock() -> None:
    """In a process that was forked: whoever held the lock is not there."""
    global _STEP
    _STEP = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)

# Weights that a projection has overwritten, as it left them. Several layers may share one.
_projected: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class LearnedDictionary(nn.Module):
    """What `CSCConv2d` learns: a weight, whose atoms it gives unit norm, and the buffer `step_size`.

    In training both follow the weight at every forward. In evaluation they cost nothing until it changes.
    `step_size_of` is the largest image, (rows, columns), that the step size is right for; None: any.

    Args:
        shape: of the weight, (K, M, kH, kW).
        stride, padding, normalize, step, device, dtype: as in `CSCConv2d`; stride and padding may be set later.
    """

    weight: nn.Parameter
    step_size: Tensor
    stride: tuple[int, int]
    step_size_of: Size | None = None
    _step_of: Mark | None

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        stride: Stride,
        padding: Padding,
        normalize: str,
        step: str,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.kernel_size = shape[2:]
        self.stride = normalize_stride(stride)
        self.padding = padding
        self.normalize = normalize
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("step_size", torch.full((), math.nan, device=device, dtype=dtype))
        self._step_of = None  # Of which weight step_size is.
        self.step_size_of = None
        # Of which weight the normalised dictionary is at hand for evaluation, and that dictionary.
        self._cached: tuple[Mark | None, Tensor | None] = (None, None)
        self.step = step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random atoms: nn.Conv2d's Kaiming uniform, normalised."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight.copy_(self._normalized())
            if self.step == "bound":
                self._refresh_step(self.weight, None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("stride", "padding"):
            self._set_geometry(name, value)
            return
        if name == "normalize":
            check_choice(name, value, ("sphere", "projection"))
        if name == "step":
            self._set_step(value)
            return
        super().__setattr__(name, value)

    def _set_geometry(self, name: str, value: Any) -> None:
        if name == "stride":
            value = normalize_stride(value)
        stride = value if name == "stride" else self.stride
        padding = value if name == "padding" else getattr(self, "padding", 0)
        self._pads = normalize_padding(padding, self.kernel_size, stride)
        super().__setattr__(name, value)
        if "step_size" in self._buffers:
            self._begin_anew()

    def _set_step(self, value: Any) -> None:
        check_choice("step", value, ("auto", "bound", "power"))
        if value == "auto":
            value = "bound" if self.weight.shape[1] * math.prod(self.stride) <= BOUND_COLUMNS else "power"
        changed = self.__dict__.get("step") != value
        super().__setattr__("step", value)
        if changed:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """The step size follows a setting: at once, for compiled forwards and states, and at the next image."""
        if has_numbers(self.weight) and bool(torch.isfinite(self.step_size)):
            with torch.no_grad():
                self._refresh_step(self._normalized(), None)
        self._step_of, self.step_size_of = None, None

    # The atoms.

    def _normalized(self) -> Tensor:
        weight = self.weight  # Once: it may be a parametrization.
        norm = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        return weight / norm.clamp_min(1e-12)

    def _with_gradient_of_weight(self) -> Tensor:
        """The atoms, as if the weight had been them before."""
        weight = self.weight
        return weight - weight.detach() + self._normalized().detach()

    def dictionary(self) -> Tensor:
        """The atoms, (K, M n_dict, kH, kW), each of unit norm."""
        weight = self.weight
        writable = weight.is_leaf and not in_transform() and not is_traced()
        if not writable or torch.is_grad_enabled() and weight.requires_grad:
            if self.normalize == "sphere":
                return self._normalized()
            if writable:
                return self._projected()
            return self._with_gradient_of_weight()
        if not can_be_marked(weight):
            return self._normalized()
        made, cached = self._cached
        if cached is not None and _holds(made, weight):
            return cached
        # Not in inference mode: the cache may be used outside of it later.
        with torch.inference_mode(False), torch.no_grad():
            cached = freeze(self._normalized())
            self._cached = (mark(weight), cached)
        return cached

    def _projected(self) -> Tensor:
        """The weight itself, overwritten before the graph begins. Once: an earlier graph may hold it already."""
        weight = self.weight
        if torch.compiler.is_compiling():
            # A graph has no memory of that: what it uses must not be the weight that a later use overwrites.
            dictionary = self._with_gradient_of_weight()
            if not torch.compiler.is_exporting():  # A program keeps the weight that it was made with.
                with torch.no_grad():
                    weight.copy_(dictionary)
            return dictionary
        if not _holds(_projected.get(weight), weight):
            current = self._current()
            with torch.no_grad():
                weight.copy_(self._normalized())
            if can_be_marked(weight):
                _projected[weight] = mark(weight)
            if current:
                self._step_of = mark(weight)
        return weight

    # Their step size. ||A||^2 grows with the image: what is right for one is right for all smaller ones.

    def _step(self, dictionary: Tensor, size: Size) -> Tensor:
        """The step size for this forward, a tensor of its own: the buffer changes under the graph."""
        size = self._that_matters(size)
        if torch.compiler.is_compiling() or is_traced():
            return self._compiled_step(dictionary, size)
        with _STEP:
            known = self.step_size_of
            if known is not None:
                size = max(size[0], known[0]), max(size[1], known[1])
            if self._current() and known in (None, size):
                return self.step_size.clone()
        return self._refresh_step(dictionary, size)

    def _compiled_step(self, dictionary: Tensor, size: Size) -> Tensor:
        if self.training:
            return self._refresh_step(dictionary, size)
        if is_traced() and not (self._step_of and self._step_of.seems_to_hold(self.weight)):
            return self._new_step(dictionary, size)
        known = self.step_size_of
        if known is None or known == self._largest_size():
            return self.step_size.clone()
        covered = size[0] <= known[0], size[1] <= known[1]
        if torch.compiler.is_exporting():
            # A program for any size has no branch for those that are known. Imported here: it takes half a second.
            from torch.fx.experimental.symbolic_shapes import statically_known_true

            covered = statically_known_true(covered[0]), statically_known_true(covered[1])
        return self.step_size.clone() if covered[0] and covered[1] else self._new_step(dictionary, size)

    def _refresh_step(self, dictionary: Tensor, size: Size | None) -> Tensor:
        """The step size of a dictionary, also left in the buffer."""
        size = size or self._largest_size()
        step = self._new_step(dictionary, size)
        if in_transform() or is_traced():
            return step  # Nothing may be written there.
        if torch.compiler.is_compiling():
            # A graph cannot leave a mark; what has one must stay what that says.
            if self._step_of is None:
                self.step_size.copy_(step)
            return step
        with _STEP:
            if self.step_size.is_inference() and not torch.is_inference_mode_enabled():
                self.step_size = self.step_size.clone()
            self.step_size.copy_(step)
            self._step_of = mark(self.weight)
            self.step_size_of = size if self.step == "power" else None
        return step

    def _new_step(self, dictionary: Tensor, size: Size) -> Tensor:
        dictionary = dictionary.detach()  # torch.no_grad would leave marks in exported programs that do not load.
        if self.step == "bound":
            step = 1 / lipschitz(dictionary, stride=self.stride, method="bound")
        else:
            limit = lipschitz(
                dictionary, stride=self.stride, padding=self._pads, input_size=size, tol=5e-3, max_iter=50
            )
            step = 0.9 / limit
        return finite_step(step.to(self.step_size.dtype))

    def _largest_size(self) -> Size:
        """Eight kernels, which have nearly all of ||A||^2.

        Atoms of two taps in each direction, as far apart as can be, have least: chains of seven or more of them lie
        on such a map, and have cos^2(pi / 16) of what an endless chain has, 0.925 in two directions. The step keeps
        clear of more.
        """
        (rows, columns), (down, across) = self.kernel_size, self.stride
        return 8 * rows * down, 8 * columns * across

    def _that_matters(self, size: Size) -> Size:
        rows, columns = self._largest_size()
        return min(size[0], rows), min(size[1], columns)

    def train(self, mode: bool = True) -> Self:
        """Leaving training takes the step size of the last weight, which a compiled forward cannot do."""
        super().train(mode)
        if not mode and has_numbers(self.weight):
            self._bring_up_to_date()
        return self

    def _bring_up_to_date(self) -> None:
        if self._current():
            return
        unmarked = self._step_of is None and not torch.compiler.is_compiling()
        by_graph = unmarked and bool(torch.isfinite(self.step_size))
        with torch.no_grad():
            self._refresh_step(self._normalized(), self.step_size_of)
        if by_graph:  # A mark would be news to the compiled training, which would be compiled again for it.
            self._step_of = None

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

    def _forget_marks(self) -> None:
        """Of a weight that may be exchanged, which nothing else may refer to (torch.utils.swap_tensors)."""
        self._cached, self._step_of = (None, None), None
        _projected.pop(self.weight, None)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        current = self._current()
        self._forget_marks()
        super()._apply(fn, recurse)
        self._step_of = mark(self.weight) if current else None
        return self

    # A state has the names of published checkpoints. For which images its step size is, its metadata say, beside
    # the version; a step size that comes without stays until the weight changes, as in published checkpoints.

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if has_numbers(self.weight) and not self._current() and bool(torch.isfinite(self.step_size)):
            self._bring_up_to_date()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None and self.step_size_of is not None:
            metadata["step_size_of"] = self.step_size_of

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        weight, step = (state_dict.get(f"{prefix}{name}") for name in ("weight", "step_size"))
        current = weight is None and step is None and self._current()
        self._forget_marks()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        # A step size is that of the weight beside it.
        came = weight is not None and weight.shape == self.weight.shape
        if current:
            self._step_of = mark(self.weight)
        elif came and step is not None and not step.is_meta and bool(torch.isfinite(step)):
            self._step_of = mark(self.weight)
            self.step_size_of = local_metadata.get("step_size_of")


def _holds(made: Mark | None, weight: Tensor) -> bool:
    return made is not None and made.holds(unwrapped(weight))
