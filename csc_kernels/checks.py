"""What every public function asks of its arguments, before any memory is touched.

The checks read types, shapes and Python numbers only, so that they cost microseconds and leave no trace in
a compiled graph. The values inside tensors are looked at by `check_values`, inside the ops.
"""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor

from .geometry import Pads, code_size, normalize_padding, normalize_stride

MOMENTA = ("fista", "none", "sdnet")
Number = Union[float, int]


def shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def check_tensor(name: str, value: object, dims: tuple[int, ...]) -> None:
    """A dense floating point tensor with one of the numbers of dimensions `dims`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating point tensor, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    if value.dim() not in dims:
        wanted = " or ".join(str(d) for d in dims)
        raise ValueError(f"{name} must have {wanted} dimensions, got shape {shape(value)}")


def check_same_kind(name: str, value: Tensor, x: Tensor) -> None:
    """Device and dtype of x; under autocast the dtype is autocast's business."""
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x is on {x.device}")
    if value.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{name} is {value.dtype}, x is {x.dtype}: they must be the same")


def check_n_iter(n_iter: object) -> None:
    if not isinstance(n_iter, int) or isinstance(n_iter, bool):
        raise TypeError(f"n_iter must be an int, got {n_iter!r}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}")


def check_momentum(momentum: object) -> None:
    if momentum not in MOMENTA:
        raise ValueError(f"momentum must be one of {MOMENTA}, got {momentum!r}")


def check_number(name: str, value: object, positive: bool) -> None:
    """A finite number >= 0, or > 0 when `positive`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    if torch.compiler.is_compiling():
        return  # The number may be symbolic; `check_values` sees it when the graph runs.
    lowest = "greater than 0" if positive else "at least 0"
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be finite and {lowest}, got {value}")


def parameter(name: str, value: object, x: Tensor, code: tuple[int, ...], positive: bool) -> Tensor:
    """lmbda, mu or step_size as a tensor of float32 at least, so that no product of two is rounded to bfloat16.

    Numbers become float64 scalars.
    """
    if not isinstance(value, Tensor):
        check_number(name, value, positive)
        return torch.full((), value, dtype=torch.float64)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating point tensor, got {value.dtype}")
    if value.device != x.device and not (value.dim() == 0 and value.device.type == "cpu"):
        raise ValueError(f"{name} is on {value.device}, x is on {x.device}")
    if not broadcasts(shape(value), code):
        raise ValueError(f"{name} of shape {shape(value)} does not broadcast against the code {code}")
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def step_size_parameter(value: object, x: Tensor) -> Tensor:
    """step_size as a tensor with one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"step_size must have one element, got shape {shape(value)}")
        value = value.reshape(())
    return parameter("step_size", value, x, (), positive=True)


def broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether a tensor of shape `small` broadcasts to `large` without changing it."""
    if len(small) > len(large):
        return False
    return all(s == 1 or s == t for s, t in zip(small[::-1], large[::-1]))


def check_mask(mask: object, x: Tensor) -> None:
    """A bool tensor or one of x's dtype that broadcasts against x."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype is torch.bool:
        if mask.device != x.device:
            raise ValueError(f"mask is on {mask.device}, x is on {x.device}")
    else:
        if not mask.dtype.is_floating_point:
            raise TypeError(f"mask must be bool or floating point, got {mask.dtype}")
        check_same_kind("mask", mask, x)
    if not broadcasts(shape(mask), shape(x)):
        raise ValueError(f"mask of shape {shape(mask)} does not broadcast against x {shape(x)}")


def check_dictionary(dictionary: object) -> None:
    check_tensor("dictionary", dictionary, (4,))
    if 0 in dictionary.shape:
        raise ValueError(f"dictionary must not be empty, got shape {shape(dictionary)}")


def check_problem(
    x: object, dictionary: object, stride: object, padding: object
) -> tuple[tuple[int, int], Pads, tuple[int, ...]]:
    """x and the dictionary fit; returns the stride, the pads and the shape of the code."""
    check_tensor("x", x, (3, 4))
    check_dictionary(dictionary)
    check_same_kind("dictionary", dictionary, x)
    if x.shape[-3] != dictionary.shape[1]:
        raise ValueError(
            f"dictionary has {dictionary.shape[1]} input channels, x has {x.shape[-3]}: "
            f"dictionary {shape(dictionary)}, x {shape(x)}"
        )
    kernel = (dictionary.shape[2], dictionary.shape[3])
    stride = normalize_stride(stride)
    pads = normalize_padding(padding, kernel, stride)
    size = code_size(x.shape[-2:], kernel, stride, pads)
    if min(size) < 1:
        raise ValueError(f"kernel {kernel} is larger than the padded input: x {shape(x)}, padding {tuple(pads)}")
    return stride, pads, (*shape(x)[:-3], dictionary.shape[0], *size)


def check_code(name: str, z: object, x: Tensor, code: tuple[int, ...]) -> None:
    """z is a code of x."""
    check_tensor(name, z, (len(code),))
    check_same_kind(name, z, x)
    if shape(z) != code:
        raise ValueError(f"{name} has shape {shape(z)}, the code of x {shape(x)} has {code}")


def check_values(lmbda: Tensor, mu: Tensor, step_size: Tensor) -> None:
    """Values inside CPU tensors; a GPU's are not read, which would stall its stream."""
    for name, value, positive in (
        ("lmbda", lmbda, False),
        ("mu", mu, False),
        ("step_size", step_size, True),
    ):
        if value.device.type != "cpu" or value.numel() == 0:
            continue
        # NaN compares false with everything, so the test is on what is allowed.
        smallest, largest = (t.item() for t in torch.aminmax(value.detach()))
        allowed = 0 < smallest if positive else 0 <= smallest
        if not (allowed and largest < math.inf):
            lowest = "greater than 0" if positive else "at least 0"
            raise ValueError(f"{name} must be finite and {lowest}, got values from {smallest} to {largest}")


def with_batch(tensor: Tensor | None, dims: int) -> Tensor | None:
    """A tensor of an unbatched problem as one of a batch of 1."""
    if tensor is None or tensor.dim() == 0 or dims == 4:
        return tensor
    return tensor.unsqueeze(0)
