"""What the ops share: the library `csc`, layouts, and the rules for autocast and vmap."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("csc", "DEF")

_KERNELS: dict[Any, Callable[..., Any]] = {}  # By op.

# What is left of a call on the CPU below autograd, where no mode looks on.
_CPU_ALONE = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

# Of a call on the CPU where nobody looks on; the last is nowhere but for factories.
_PLAIN = (
    _CPU_ALONE.add(torch._C.DispatchKey.AutogradCPU)
    .add(torch._C.DispatchKey.ADInplaceOrView)
    .add(torch._C.DispatchKey.BackendSelect)
)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors of the CPU that no transform, mode or subclass looks at."""
    keys = torch._C._dispatch_tls_local_include_set()
    for tensor in tensors:
        if tensor is not None:
            keys = keys | torch._C._dispatch_keys(tensor)
    return (keys - torch._C._dispatch_tls_local_exclude_set()) | _PLAIN == _PLAIN


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define torch.ops.csc.<name> with its kernel for every device, its fake, and its vmap rule."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"csc::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.csc, name).default
    torch.library.register_vmap(f"csc::{name}", _vmap_rule(op), lib=LIBRARY)
    _KERNELS[op] = kernel
    return op


def register_autograd(op: Any, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Attach the gradient, and the autocast rule that must stand above it.

    As torch.library.register_autograd, for ops whose arguments have no defaults and no names that must be given:
    what it does for the others takes as long as an op's own checks, at every call. `backward` returns a tuple with
    one entry for each argument of the op; ctx.needs_input_grad has one more, at its end.
    """
    name = op._schema.name.split("::")[1]

    def below(keys: torch._C.DispatchKeySet, inputs: tuple) -> Any:
        left = keys & torch._C._after_ADInplaceOrView_keyset
        # The dispatcher would come to the same, a little later.
        return _KERNELS[op](*inputs) if left == _CPU_ALONE else op.redispatch(left, *inputs)

    def forward(ctx: Any, *args: Any) -> Any:
        inputs, keys = args[:-1], args[-1]
        with torch._C._AutoDispatchBelowAutograd():
            output = below(keys, inputs)
            setup_context(ctx, inputs, output)
        return output

    methods = {
        "forward": staticmethod(forward),
        "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
    }
    function: Any = type(f"{name}_with_gradient", (torch.autograd.Function,), methods)

    def kernel(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return function.apply(*args, keys)
        with torch._C._AutoDispatchBelowAutograd():
            return below(keys, args)

    LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)
    register_autocast(op, _CAST)


# Images, codes and atoms take autocast's dtype as a convolution does. lmbda, mu and step_size keep theirs:
# thresholds are computed in float32 whatever the dtype of the code.
_CAST = {"x", "y", "z", "z0", "dictionary", "mask"}


def register_autocast(op: Any, names: Collection[str]) -> None:
    """Let autocast change the dtype of the arguments of these names alone, and nothing inside the op."""
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        LIBRARY.impl(op._schema.name.split("::")[1], _autocast_rule(op, device, key, names), key)


def _autocast_rule(op: Any, device: str, key: str, changed: Collection[str]) -> Callable[..., Any]:
    names = [argument.name for argument in op._schema.arguments]
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def rule(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)

        def cast(name: str, value: Any) -> Any:
            eligible = (
                name in changed
                and isinstance(value, Tensor)
                and value.is_floating_point()
                and value.dtype is not torch.float64
            )
            return value.to(dtype) if eligible else value

        args = tuple(cast(name, value) for name, value in zip(names, args))
        kwargs = {name: cast(name, value) for name, value in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(*args, **kwargs)

    return rule


def _vmap_rule(op: Any) -> Callable[..., Any]:
    """One call per element of the mapped dimension: any argument may be mapped."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        def element(value: Any, dim: Any, index: int) -> Any:
            return value.select(dim, index) if isinstance(dim, int) else value

        calls = [
            op(*(element(value, dim, index) for value, dim in zip(args, in_dims)))
            for index in range(info.batch_size)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        return tuple(map(torch.stack, zip(*calls))), (0,) * len(calls[0])

    return rule


def layout(x: Tensor) -> torch.memory_format:
    """channels_last when x is laid out so and could not be called contiguous as well."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised tensor with x's dtype, device and layout."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))


def unused(x: Tensor) -> Tensor:
    """Stands for an output that nobody asked for."""
    return x.new_empty(0)


def image(x: Tensor, value: Tensor) -> Tensor:
    """`value` as `empty` promises it: x's dtype and layout, to the stride."""
    out = empty(x, value.shape)
    if value.dtype == out.dtype and value.stride() == out.stride():
        return value
    return out.copy_(value)


def gradient_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a parameter: its dtype, contiguous."""
    if gradient.dtype is tensor.dtype and gradient.is_contiguous():
        return gradient
    return gradient.to(tensor.dtype).contiguous()


def only(needed: Sequence[bool], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """What autograd wants: None where no gradient was needed."""
    return tuple(g if need else None for need, g in zip(needed, gradients))


def differentiable_backward(
    forward: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    grads: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradient as a graph that can be differentiated again: through the plain PyTorch definition.

    This is the path of create_graph=True, and so of torch.func: twice the work and memory of the op's own
    backward, and exact to any order.
    """
    wanted = [value for value, need in zip(inputs, needed) if need]
    with torch.enable_grad():
        outputs = forward(*inputs)
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, materialize_grads=True))
    return tuple(next(found) if need else None for need in needed)
