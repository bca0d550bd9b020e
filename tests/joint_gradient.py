"""Run in processes by test_processes.py: the gradient of a batch that all processes share, saved by the first."""

import os

import torch
from lightning.fabric import Fabric
from sdnet.data import TrainingBatches, load_data
from sdnet.models import Classifier
from sdnet.training import sharding
from sdnet.training.recipe import DataRecipe, Recipe
from settled import settled
from torch.nn import functional as F


def main(out: str, strategy: str) -> None:
    torch.set_num_threads(1)
    recipe = Recipe(strategy=strategy, devices=int(os.environ["WORLD_SIZE"]))
    fabric = Fabric(accelerator="cpu", devices=recipe.devices, strategy=sharding.strategy(recipe))
    fabric.launch()
    torch.manual_seed(0)
    # In evaluation mode, in which batch norms do not look at the batch, of which each process sees a part.
    model = settled(Classifier("sdnet18_all", options={"width": 4}), torch.rand(16, 3, 16, 16))
    model = fabric.setup_module(model)
    data = load_data(DataRecipe(name="digits", pad=1), seed=0)
    batches = TrainingBatches(data.train, 8, 0, fabric.global_rank, fabric.world_size)
    pictures, labels = next(batches.epoch(0))
    fabric.backward(F.cross_entropy(model(pictures.float() / 255), labels))
    gradients = sharding.whole({name: parameter.grad for name, parameter in model.module.named_parameters()})
    if fabric.global_rank == 0:
        torch.save(gradients, out)
    if fabric.world_size > 1:
        fabric.barrier()
        torch.distributed.destroy_process_group()
