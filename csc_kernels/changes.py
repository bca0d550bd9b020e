"""Noticing that a weight changed."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

# Fused optimizers change a parameter without counting it as an in-place change, so that their steps are counted
# here, for parameters that somebody has marked.
_STEPS = "_csc_optimizer_steps"

# Steps of optimizers whose parameters are shares of tensors (FSDP2): the whole tensors that a forward sees are
# filled anew after each, without a trace.
_steps_of_shares = 0

# `.data` and numpy edit a tensor without a trace, so that on the CPU so many of its numbers are compared: all of
# a stem's weight, in less than 10 us.
SAMPLES = 10_000


def _count_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    global _steps_of_shares
    _steps_of_shares += any(is_share(p) for group in optimizer.param_groups for p in group["params"])
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if hasattr(parameter, _STEPS):
                setattr(parameter, _STEPS, getattr(parameter, _STEPS) + 1)


register_optimizer_step_post_hook(_count_step)


class Mark:
    """What a tensor was: which object, which memory, after how many changes, and a sample of its numbers."""

    def __init__(self, tensor: Tensor) -> None:
        if not hasattr(tensor, _STEPS):
            setattr(tensor, _STEPS, 0)
        # Not the id alone, which another tensor may inherit.
        self._tensor = weakref.ref(tensor)
        self._state = self._of(tensor)
        self._sample = sample(tensor).clone() if tensor.is_cpu else None

    @staticmethod
    def _of(tensor: Tensor) -> tuple[int, int, int, int]:
        # Changes of tensors made in inference mode are not counted.
        version = -1 if tensor.is_inference() else tensor._version
        return tensor.data_ptr(), version, getattr(tensor, _STEPS, 0), _steps_of_shares

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` is still the same, unchanged."""
        if not can_be_marked(tensor) or not self.seems_to_hold(tensor):
            return False
        return self._sample is None or torch.equal(sample(tensor), self._sample)

    def seems_to_hold(self, tensor: Tensor) -> bool:
        """The same where numbers cannot be looked at: in a trace, of a tensor that has some."""
        return self._tensor() is tensor and self._of(tensor) == self._state


def sample(tensor: Tensor) -> Tensor:
    """At most about SAMPLES numbers of a tensor, evenly spaced in memory."""
    tensor, step = tensor.detach(), tensor.numel() // SAMPLES + 1
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.as_strided((-(-tensor.numel() // step),), (step,))
    return tensor.reshape(-1)[::step]


def can_be_marked(tensor: Tensor) -> bool:
    """Not where changes cannot be followed: compiled, in torch.func, without numbers."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or not has_numbers(tensor)
    )


def has_numbers(tensor: Tensor) -> bool:
    """Whether there are numbers to look at, all of them: not those of a share, on meta, of a fake or in a trace."""
    return not (tensor.is_meta or is_share(tensor) or type(tensor).__name__ == "FakeTensor" or is_traced())


def is_traced() -> bool:
    """Whether every operation here is on fake tensors (FakeTensorMode), or is recorded (make_fx)."""
    if torch.compiler.is_compiling():
        return False
    mode, keys = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey
    return mode(keys.FAKE) is not None or mode(keys.PROXY) is not None


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes, of which each has a part (a DTensor)."""
    # By name: to import the class takes longer than to import this package.
    return type(tensor).__name__ == "DTensor"


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor that torch.func has wrapped."""
    if torch.compiler.is_compiling():
        return tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def mark(tensor: Tensor) -> Mark | None:
    """A mark, where there can be one."""
    return Mark(tensor) if can_be_marked(tensor) else None


# Dictionaries that nobody will change, each with what a backend has derived from it. A tensor of the user's never
# gets here: it can be changed in ways that leave no trace, such as through `.data`.
_FROZEN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def freeze(tensor: Tensor) -> Tensor:
    """Promise that a tensor will not change; what is derived from it lives as long as it does."""
    _FROZEN[tensor] = {}
    return tensor


def derived(tensor: Tensor) -> dict[Any, Any]:
    """Where to keep what was derived from a frozen tensor; for any other, a place that is forgotten."""
    return _FROZEN.get(tensor, {})
