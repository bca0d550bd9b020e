"""Published checkpoints into the models of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

# What DataParallel puts before every name.
PREFIX = "module."


def load_published(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a published SDNet or ResNet checkpoint; on an error the model is as it was.

    The step sizes of the checkpoint are kept until a dictionary changes.

    Args:
        model: one of `sdnet.models`, of the checkpoint's architecture, stem and number of classes.
        state_dict: tensors by name, as `torch.load` returns them; also as the entry "state_dict" of a
            training checkpoint, and with the names of a DataParallel model.

    Raises:
        TypeError: state_dict is no mapping.
        ValueError: names are missing or unexpected, or shapes differ; the message lists them.

    >>> from sdnet.models import sdnet18
    >>> checkpoint = {"epoch": 7, "state_dict": sdnet18().state_dict()}
    >>> load_published(sdnet18(), checkpoint)
    """
    found = _unwrap(state_dict)
    problems = list(_problems(model.state_dict(), found))
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"the checkpoint does not fit {type(model).__name__}:\n  {listed}")
    model.load_state_dict(found)


def _unwrap(state_dict: object) -> dict[str, Any]:
    """The tensors by the model's own names."""
    if isinstance(state_dict, Mapping) and "state_dict" in state_dict:
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}")
    if state_dict and all(str(name).startswith(PREFIX) for name in state_dict):
        return {name.removeprefix(PREFIX): value for name, value in state_dict.items()}
    return dict(state_dict)


def _problems(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in expected.items():
        if name not in found:
            yield f"missing: {name}"
        elif not isinstance(found[name], Tensor):
            yield f"not a tensor: {name} is {type(found[name]).__name__}"
        elif found[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the checkpoint {tuple(found[name].shape)}"
            yield f"shape of {name}: the model has {shapes}"
    for name in found:
        if name not in expected:
            yield f"unexpected: {name}"
