"""What every function and every op asks of its arguments, before any memory is touched.

`check_problem` to `check_values` are what the ops ask, called inside them, so that no call gets past them: of
shapes also when a graph is made, of values when it runs. The others are about Python's values, before an op.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .changes import unwrapped
from .geometry import MOST, code_size

MOMENTA = ("fista", "none", "sdnet")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_STEPS = 2**31 - 1


def shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def check_is_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_tensor(name: str, value: Any, dims: tuple[int, ...]) -> None:
    """A dense floating point tensor with one of the numbers of dimensions `dims`."""
    check_is_tensor(name, value)
    check_floating(name, value)
    if value.dim() not in dims:
        wanted = " or ".join(str(d) for d in dims)
        raise ValueError(f"{name} must have {wanted} dimensions, got shape {shape(value)}")


def check_int(name: str, value: Any, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not 1 <= value <= largest:
        bound = "at least 1" if value < 1 else f"at most {largest}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_n_iter(n_iter: Any) -> None:
    check_int("n_iter", n_iter, MOST_STEPS)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def check_momentum(momentum: Any) -> None:
    check_choice("momentum", momentum, MOMENTA)


def check_nonneg(nonneg: Any) -> None:
    if not isinstance(nonneg, bool):
        raise TypeError(f"nonneg must be a bool, got {nonneg!r}")


def check_data_term(square_noise: Any, huber: Any) -> None:
    if not isinstance(square_noise, bool):
        raise TypeError(f"square_noise must be a bool, got {square_noise!r}")
    if huber is None:
        return
    check_number("huber", huber, positive=True)
    if not square_noise:
        raise ValueError(f"huber={huber} has no form with square_noise=False")


def check_number(name: str, value: Any, positive: bool = False, kinds: str = "a number (int or float)") -> None:
    """A finite number >= 0, or > 0 when `positive`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        module, kind = type(value).__module__, type(value).__qualname__
        raise TypeError(f"{name} must be {kinds}, got {kind if module == 'builtins' else f'{module}.{kind}'}")
    if torch.compiler.is_compiling():
        return  # The number may be symbolic; `check_values` sees it when the graph runs.
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{name} must be finite, got an int beyond float64")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be finite and {_lowest(positive)}, got {value}")


def _lowest(positive: bool) -> str:
    return "greater than 0" if positive else "at least 0"


def parameter(name: str, value: Any, positive: bool = False) -> Tensor:
    """lmbda, mu or step_size as a tensor of float32 at least, so that no product of two is rounded to bfloat16.

    Numbers become float64 scalars.
    """
    if not isinstance(value, Tensor):
        check_number(name, value, positive, "a number (int or float) or a tensor")
        return _scalar(value) if _are_tensors_special() else _kept_scalar(value)
    check_floating(name, value)
    return value if value.dtype is torch.float32 or value.dtype is torch.float64 else value.float()


def _are_tensors_special() -> bool:
    """Whether a compiler, a mode or a transform gives new tensors a meaning that ends with it."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _scalar(value: float) -> Tensor:
    return torch.full((), value, dtype=torch.float64, device="cpu")


@functools.lru_cache(maxsize=256)
def _kept_scalar(value: float) -> Tensor:
    """Most calls repeat the numbers of the last one, and memory that is not in a cache makes a tensor slow."""
    with torch.inference_mode(False):
        return _scalar(value)


def check_dense(name: str, value: Tensor) -> None:
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got {'a nested one' if value.is_nested else value.layout}")


def check_floating(name: str, value: Tensor) -> None:
    """Dense, of one of FLOATS."""
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating point tensor of 16, 32 or 64 bits, got {value.dtype}")
    if value.layout is not torch.strided or value.is_nested:  # Asked here: a call costs more than both.
        check_dense(name, value)


def check_penalty(name: str, value: Any) -> None:
    """lmbda or mu of a layer: a number or a floating point tensor, finite and at least 0."""
    if not isinstance(value, Tensor):
        check_number(name, value, kinds="a number (int or float) or a tensor")
        return
    check_floating(name, value)
    check_value(name, value)


def step_size_parameter(value: Any) -> Tensor:
    """step_size as a tensor with one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"step_size must have one element, got shape {shape(value)}")
        value = value.reshape(())
    return parameter("step_size", value, positive=True)


def broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether a tensor of shape `small` broadcasts to `large` without changing it."""
    if len(small) > len(large):
        return False
    return all(s == 1 or s == t for s, t in zip(small[::-1], large[::-1]))


def check_same_device(name: str, value: Tensor, x: Tensor, than: str = "x") -> None:
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, {than} is on {x.device}")


def check_same_kind(name: str, value: Tensor, x: Tensor, autocast: bool = False, than: str = "x") -> None:
    """Device and dtype of x; `autocast`: or a dtype that autocast will make x's."""
    check_same_device(name, value, x, than)
    if value.dtype == x.dtype:
        return
    # Autocast leaves float64 as it is.
    cast = autocast and torch.is_autocast_enabled(x.device.type) and torch.float64 not in (value.dtype, x.dtype)
    if not cast:
        raise TypeError(f"{name} is {value.dtype}, {than} is {x.dtype}: they must be the same")


def check_dictionary(dictionary: Any) -> None:
    check_tensor("dictionary", dictionary, (4,))
    if 0 in dictionary.shape:
        raise ValueError(f"dictionary must not be empty, got shape {shape(dictionary)}")


def check_geometry(stride: Sequence[int], pads: Sequence[int]) -> None:
    if len(stride) != 2 or min(stride) < 1 or max(stride) > MOST:
        raise ValueError(f"stride must be a pair of ints of at least 1 and at most {MOST}, got {tuple(stride)}")
    if len(pads) != 4 or min(pads) < 0 or max(pads) > MOST:
        raise ValueError(f"pads must be four ints of at least 0 and at most {MOST}, got {tuple(pads)}")


def check_problem(
    x: Tensor, dictionary: Tensor, stride: Sequence[int], pads: Sequence[int], autocast: bool = False
) -> tuple[int, ...]:
    """x (N, M, H, W) and the dictionary fit; returns the shape of the code."""
    check_tensor("x", x, (4,))
    check_dictionary(dictionary)
    check_same_kind("dictionary", dictionary, x, autocast)
    atoms, channels, *kernel = dictionary.shape
    batch, images, *size = x.shape
    if images != channels:
        raise ValueError(
            f"dictionary has {channels} input channels, x has {images}: "
            f"dictionary {shape(dictionary)}, x {shape(x)}"
        )
    check_geometry(stride, pads)
    rows, columns = code_size(size, kernel, stride, pads)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"kernel {tuple(kernel)} is larger than the padded input: x {shape(x)}, padding {tuple(pads)}"
        )
    return batch, atoms, rows, columns


def check_code(name: str, z: Tensor, x: Tensor, code: tuple[int, ...], autocast: bool = False) -> None:
    """z is a code of x, or what has the shape of one."""
    check_tensor(name, z, (4,))
    check_same_kind(name, z, x, autocast)
    if shape(z) != code:
        raise ValueError(f"{name} has shape {shape(z)}, the code of x {shape(x)} has {code}")


def check_same(name: str, value: Tensor, like: Tensor) -> None:
    """Shape, dtype and device of another tensor."""
    check_same_kind(name, value, like)
    if value.shape != like.shape:
        raise ValueError(f"{name} must have shape {shape(like)}, got {shape(value)}")


def check_mask(mask: Tensor | None, x: Tensor, autocast: bool = False) -> None:
    """None, or a bool tensor or one of x's dtype that broadcasts against x."""
    if mask is None:
        return
    check_dense("mask", mask)
    if mask.dtype is torch.bool:
        check_same_device("mask", mask, x)
    else:
        if not mask.dtype.is_floating_point:
            raise TypeError(f"mask must be bool or floating point, got {mask.dtype}")
        check_same_kind("mask", mask, x, autocast)
    if not broadcasts(shape(mask), shape(x)):
        raise ValueError(f"mask of shape {shape(mask)} does not broadcast against x {shape(x)}")


def check_parameters(lmbda: Tensor, mu: Tensor, step_size: Tensor, x: Tensor, code: tuple[int, ...]) -> None:
    """lmbda and mu broadcast against the code, the step size is one number; scalars may stay on the CPU."""
    for name, value, against in (("lmbda", lmbda, code), ("mu", mu, code), ("step_size", step_size, ())):
        check_floating(name, value)
        if value.dim() == 0 and value.is_cpu:
            continue
        check_same_device(name, value, x)
        if not broadcasts(shape(value), against):
            raise ValueError(f"{name} of shape {shape(value)} does not broadcast against {against}")


def check_values(lmbda: Tensor, mu: Tensor, step_size: Tensor) -> None:
    """Values inside CPU tensors; a GPU's are not read, which would stall its stream."""
    check_value("lmbda", lmbda)
    check_value("mu", mu)
    check_value("step_size", step_size, positive=True)


def check_value(name: str, value: Tensor, positive: bool = False) -> None:
    value = unwrapped(value)
    if not value.is_cpu or value.numel() == 0:
        return
    if value.dim() == 0:
        smallest = largest = value.item()
    else:
        smallest, largest = (t.item() for t in torch.aminmax(value.detach()))
    # NaN compares false with everything, so the test is on what is allowed.
    allowed = 0 < smallest if positive else 0 <= smallest
    if not (allowed and largest < math.inf):
        values = f"{smallest}" if value.dim() == 0 else f"values from {smallest} to {largest}"
        raise ValueError(f"{name} must be finite and {_lowest(positive)}, got {values}")
