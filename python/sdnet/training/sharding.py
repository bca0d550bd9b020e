"""Sharded data parallelism (PyTorch's FSDP2): every process keeps a share of each weight and of its momentum."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from ..models import Classifier
from .recipe import Recipe


def strategy(recipe: Recipe) -> str | ModelParallelStrategy:
    """How Fabric shares the work of a recipe among its processes."""
    if recipe.strategy != "fsdp2":
        return recipe.strategy
    return ModelParallelStrategy(_shard, data_parallel_size=recipe.devices * recipe.nodes, tensor_parallel_size=1)


def _shard(model: Classifier, mesh: DeviceMesh) -> Classifier:
    """The weights of one stage are gathered at a time; those outside of stages with the whole."""
    for stage in model.network.children():
        if any(True for _ in stage.parameters()):
            fully_shard(stage, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights whole, in every process, which may then call the model as often as it likes."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole(state: Any) -> Any:
    """A state dict with every share of a tensor replaced by the tensor; all processes must ask."""
    tensors = tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, state)
    return _with_metadata_of(state, tensors)


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """model.load_state_dict for whole tensors."""
    own = model.state_dict()
    shared = OrderedDict((name, _shared_like(own.get(name), value)) for name, value in state.items())
    model.load_state_dict(_with_metadata_of(state, shared))


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """optimizer.load_state_dict for whole tensors."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = {
        number: {name: _shared_like(parameters[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    # How it goes over memory is the optimizer's own: fused SGD takes no shares.
    groups = [{**group, "fused": own["fused"]} for group, own in zip(state["param_groups"], optimizer.param_groups)]
    optimizer.load_state_dict({"state": kept, "param_groups": groups})


def _with_metadata_of(state: Any, other: Any) -> Any:
    """What modules leave beside their tensors, such as the images that a step size is for."""
    if hasattr(state, "_metadata"):
        other._metadata = state._metadata
    return other


def _shared_like(own: Any, value: Any) -> Any:
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        return distribute_tensor(value, own.device_mesh, own.placements)
    return value
