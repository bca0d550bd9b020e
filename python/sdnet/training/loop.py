"""Training: a loop of its own over Lightning Fabric, which owns devices, precision and processes.

All that the loop does at step s follows from the recipe, s, and the state in the last checkpoint. That is why a
killed run goes on to the same weights: there is no other state, neither in loaders nor in schedules.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data import EvaluationBatches, TrainingBatches, load_data
from ..errors import CheckpointError, DataError, TrainingError, UserError
from ..files import remove_leftovers
from . import checkpoint, sharding
from .build import build_network, build_optimizer
from .progress import TrainingProgress
from .recipe import Recipe
from .records import Records
from .schedule import learning_rate
from .statistics import code_statistics, csc_layers


def train(recipe: Recipe, out: Path, console: Console) -> dict[str, float]:
    """Train, or go on from out/last.ckpt; the numbers of the last epoch.

    Writes into `out`: last.ckpt, best.ckpt (highest test accuracy), model/ (the last epoch's weights), log.csv and
    tensorboard/.

    Raises:
        UserError: settings, data, checkpoint or disk are not as they must be, or the loss is not finite.
    """
    recipe.check()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    started, expected = int(os.environ.get("WORLD_SIZE", "1")), recipe.devices * recipe.nodes
    if started not in (1, expected):
        raise UserError(
            f"{started} processes were started, the recipe has devices={recipe.devices} on nodes={recipe.nodes}: "
            "pass --devices and --nodes"
        )
    fabric = Fabric(
        devices=recipe.devices,
        num_nodes=recipe.nodes,
        precision=recipe.precision,
        strategy=sharding.strategy(recipe),
    )
    fabric.launch()
    try:
        return Run(fabric, recipe, out, console).fit()
    finally:
        if fabric.world_size > 1:  # Left to the interpreter's end, a process may abort because the other has gone.
            torch.distributed.destroy_process_group()


@torch.no_grad()
def forget_step_sizes(network: nn.Module) -> None:
    """Let every sparse coding layer find its step size again.

    A checkpoint holds step sizes of the weights before its last step of the optimizer. A layer that loads one takes
    it for current; the uninterrupted run would not. A change in place, by nothing, is what tells the layer.
    """
    for layer in csc_layers(network).values():
        layer.weight.mul_(1)


# How weights that left the range of numbers are noticed before the loss: by a sparse coding layer, or by the
# eigenvalues of SCN's dictionaries.
DIVERGED = (ValueError, torch.linalg.LinAlgError)


def listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''} ({len(classes)})"


class Run:
    """One training run in one process."""

    def __init__(self, fabric: Fabric, recipe: Recipe, out: Path, console: Console) -> None:
        self.fabric, self.recipe, self.out, self.console = fabric, recipe, out, console
        torch.manual_seed(recipe.seed)
        data = load_data(recipe.data, recipe.seed)
        if len(data.test) < fabric.world_size:
            raise DataError(f"{len(data.test)} test pictures are fewer than the {fabric.world_size} processes")
        options = (recipe.data.batch, recipe.data.workers, fabric.global_rank, fabric.world_size)
        self.batches = TrainingBatches(data.train, *options)
        self.test = EvaluationBatches(data.test, *options)

        self.classes = data.classes
        network = build_network(recipe, data.classes)
        sharded = recipe.strategy == "fsdp2"
        if recipe.channels_last and not sharded:  # Shares are of contiguous weights alone.
            network = network.to(memory_format=torch.channels_last)
        self.network = fabric.setup_module(network)
        # Fused optimizers take no shares, and undo the scale of float16 by themselves, too late for clipping.
        fused = not sharded and not (recipe.precision == "16-mixed" and recipe.clip is not None)
        self.optimizer = fabric.setup_optimizers(build_optimizer(self.network, recipe.optimizer, fused))
        self.average = None
        if recipe.ema is not None:
            self.average = AveragedModel(
                self.network.module, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True
            )
        self.step, self.best = 0, -1.0
        self.losses: list[float] = []  # Of the steps of this epoch.
        if (out / "last.ckpt").exists():
            self._restore(out / "last.ckpt")
        self.records = None
        if fabric.is_global_zero:
            remove_leftovers(out, ("last.ckpt", "best.ckpt", "failed.ckpt", "log.csv"), ("model",))
            self.records = Records(out, self.step)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts: the average of the weights where there is one."""
        return self.network.module if self.average is None else self.average.module

    # The state of a run.

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.as_dict(),
            "classes": list(self.classes),
            "step": self.step,
            "steps_per_epoch": len(self.batches),
            "best": self.best,
            "losses": self.losses,
            "network": sharding.whole(self.network.state_dict()),
            "optimizer": sharding.whole(self.optimizer.state_dict()),
            "average": None if self.average is None else self.average.state_dict(),
            "generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state() if self.fabric.device.type == "cuda" else None,
            "scale": self.fabric.strategy.precision.state_dict(),
        }

    def _restore(self, path: Path) -> None:
        state = checkpoint.load(path, self.recipe.as_dict())
        if state.get("classes", list(self.classes)) != list(self.classes):
            raise CheckpointError(
                f"{path} is of the classes {listed(state['classes'])}, the data have {listed(self.classes)}"
            )
        if state.get("steps_per_epoch", len(self.batches)) != len(self.batches):
            raise CheckpointError(
                f"{path} has {state['steps_per_epoch']} steps an epoch, with these data it is {len(self.batches)}"
            )
        try:
            sharding.load(self.network, state["network"])
            sharding.load_optimizer(self.optimizer, state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, RuntimeError) and "state_dict" not in str(error):
                raise  # No memory, or a process that has gone.
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path} does not fit: {reason}. Remove it to start again") from None
        if self.average is not None:
            forget_step_sizes(self.average)
        forget_step_sizes(self.network)
        self.step, self.best = state["step"], state["best"]
        self.losses = state.get("losses", [])  # None where an earlier version saved.
        torch.set_rng_state(state["generator"])
        if self.fabric.device.type == "cuda" and state.get("device_generator") is not None:
            torch.cuda.set_rng_state(state["device_generator"])
        if state.get("scale"):
            self.fabric.strategy.precision.load_state_dict(state["scale"])
        self.fabric.print(f"going on after step {self.step}, from {path}")

    def _save(self, name: str) -> None:
        state = self._state()
        if self.fabric.is_global_zero:
            checkpoint.save(self.out / name, state)
        self.fabric.barrier()

    def _export(self) -> None:
        """The evaluated weights as a model that `Classifier.from_pretrained` and `sdnet show` take."""
        model, state = self.evaluated, None
        if self.recipe.strategy == "fsdp2":
            state = sharding.whole(model.state_dict())
        if self.fabric.is_global_zero:
            if state is not None:
                with torch.random.fork_rng(devices=()):  # Whose state is that of all processes.
                    model = build_network(self.recipe, self.classes)
                model.load_state_dict(state)
            model.save(self.out / "model")

    # The loop.

    def fit(self) -> dict[str, float]:
        steps = len(self.batches)
        numbers: dict[str, float] = {}
        with TrainingProgress(self.console, self.recipe.epochs, steps, self.fabric.is_global_zero) as progress:
            while self.step < self.recipe.epochs * steps:
                epoch, first = divmod(self.step, steps)
                progress.begin(epoch, first)
                numbers = self._epoch(epoch, first, progress)
                try:
                    numbers |= self._evaluate()
                except DIVERGED as error:
                    if self.fabric.world_size > 1:  # The others may be waiting elsewhere.
                        raise
                    self._stop(str(error).rstrip("."))
                if not math.isfinite(numbers["test_loss"]):
                    self._stop(f"the test loss is {numbers['test_loss']}")
                improved = numbers["accuracy"] > self.best
                self.best = max(self.best, numbers["accuracy"])
                if improved:
                    self._save("best.ckpt")
                self._export()
                if self.records is not None:
                    self.records.add(self.step, {"epoch": epoch + 1, **numbers})
                self._save("last.ckpt")  # At the end: whoever goes on from here finds the rest written.
                progress.end(epoch, numbers)
        return numbers

    def _epoch(self, epoch: int, first: int, progress: TrainingProgress) -> dict[str, float]:
        self.network.train()
        seen, start = 0, time.perf_counter()
        for pictures, labels in self.batches.epoch(epoch, first):
            rate = self._rate()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self._update(self._prepared(pictures), labels.to(self.fabric.device))
            self.losses.append(loss)
            self.step += 1
            seen += self.recipe.data.batch
            # Not after the last step of an epoch, which is over when it has been evaluated.
            if self.step % self.recipe.checkpoint_steps == 0 and self.step % len(self.batches) > 0:
                self._save("last.ckpt")
            progress.advance(loss, seen / (time.perf_counter() - start))
        loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        return {
            "train_loss": loss,
            "learning_rate": rate,
            "images_per_second": seen / (time.perf_counter() - start),
        }

    def _rate(self) -> float:
        recipe = self.recipe
        return learning_rate(
            self.step, highest=recipe.optimizer.rate, steps_per_epoch=len(self.batches), epochs=recipe.epochs,
            schedule=recipe.schedule,
        )  # fmt: skip

    def _prepared(self, pictures: Tensor) -> Tensor:
        """uint8 pictures, as floats in [0, 1] on the device."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return pictures.to(self.fabric.device, memory_format=layout).float() / 255

    def _update(self, pictures: Tensor, labels: Tensor) -> float:
        """One step; the loss of the batch, over all processes, which stop together where it is not finite."""
        reason, loss, value = "", None, math.nan
        try:
            logits = self.network(pictures).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
            value = loss.item()
        except DIVERGED as error:
            if self.step == 0 and self.fabric.world_size == 1:  # Nothing has been learned that could be wrong.
                raise UserError(f"{self.recipe.model.name} does not take these pictures: {error}") from None
            reason = str(error).rstrip(".")
        if self.fabric.world_size > 1:
            value = self.fabric.all_reduce(torch.tensor(value, device=self.fabric.device), reduce_op="mean").item()
        if loss is None or not math.isfinite(value):
            self._stop(reason or f"the loss is {value}")
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.recipe.clip is not None:
            # A norm that is not finite makes the weights NaN, and the next loss stops the run.
            self.fabric.clip_gradients(
                self.network, self.optimizer, max_norm=self.recipe.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network.module)
        return value

    def _stop(self, reason: str) -> NoReturn:
        self._save("failed.ckpt")
        raise TrainingError(
            f"{reason} at step {self.step}; the weights are in {self.out / 'failed.ckpt'}. In another --out a "
            "lower --optimizer.rate, a longer --schedule.warm_up or --clip 1 may help"
        )

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the test pictures, and what the layers do with the first of them."""
        # The network itself, without what ties processes together, whose shares may differ in their number of
        # batches. Only the buffers have to be those of the first process, which are saved.
        if self.fabric.world_size > 1:
            for buffer in self.evaluated.buffers():
                torch.distributed.broadcast(buffer, 0)
        with sharding.gathered(self.evaluated), self.fabric.autocast():
            network = self.evaluated.eval()
            sums = torch.zeros(3, dtype=torch.float64)
            for pictures, labels in self.test:
                labels = labels.to(self.fabric.device)
                logits = network(self._prepared(pictures)).float()
                hits = (logits.argmax(1) == labels).sum()
                sums += torch.stack(
                    [F.cross_entropy(logits, labels, reduction="sum"), hits, hits * 0 + len(labels)]
                ).cpu()
            pictures, _ = next(iter(self.test))
            statistics = code_statistics(network, self._prepared(pictures))
        loss, hits, count = self.fabric.all_reduce(sums, reduce_op="sum").tolist()
        return {"test_loss": loss / count, "accuracy": hits / count, **statistics}
