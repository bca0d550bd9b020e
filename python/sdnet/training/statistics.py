"""What the sparse coding layers of a network did with a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from csc_kernels import CSCConv2d


def csc_layers(model: nn.Module) -> dict[str, CSCConv2d]:
    """The sparse coding layers by name, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CSCConv2d)}


@contextmanager
def recorded_codes(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Inputs and codes of every sparse coding layer at its last call, by the layer's name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def recorder(name: str):
        def record(layer: nn.Module, inputs: tuple[Tensor, ...], code: Tensor) -> None:
            found[name] = (inputs[0], code)

        return record

    handles = [layer.register_forward_hook(recorder(name)) for name, layer in csc_layers(model).items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def code_statistics(model: nn.Module, pictures: Tensor) -> dict[str, float]:
    """Per layer: share of zeros, ||x - A z|| / ||x||, lmbda and ||A||^2 as the step size has it."""
    with recorded_codes(model) as codes:
        model(pictures)
    numbers: dict[str, float] = {}
    for name, layer in csc_layers(model).items():
        if name not in codes:
            continue  # A layer without a part in the forward.
        x, code = (tensor.to(layer.weight.dtype) for tensor in codes[name])
        residual = x - layer.reconstruct(code, tuple(x.shape[-2:]))
        numbers[f"sparsity/{name}"] = (code == 0).float().mean().item()
        numbers[f"reconstruction_error/{name}"] = (residual.norm() / x.norm().clamp_min(1e-12)).item()
        numbers[f"lmbda/{name}"] = float(torch.as_tensor(layer.lmbda).float().mean())
        numbers[f"lipschitz/{name}"] = 1 / layer.step_size.item()
    return numbers
