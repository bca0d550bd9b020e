"""Everything that decides how a model is trained, with the defaults of the published CIFAR-10 recipe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError

DataName = Literal["digits", "fashion_mnist", "cifar10", "cifar100", "image_folder", "shards"]


@dataclass
class ModelRecipe:
    """Args:
    name: one of sdnet.models.MODELS, such as sdnet18, resnet18 or mdeq_small.
    width: channels of the first stage; None keeps the model's own.
    options: further arguments of the model, such as lmbda, n_iter, stem or shortcut.
    """

    name: str = "sdnet18"
    width: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataRecipe:
    """Args:
    name: which data set.
    root: folder or archive that holds it; the embedded digits need none.
    download: fetch it into root when it is not there.
    batch: pictures of one step, over all processes.
    workers: processes that prepare batches; 0 prepares them in the training process.
    pad: pixels of zeros around training pictures, from which a crop of the old size is drawn.
    flip: mirror half of the training pictures.
    size: rows and columns of image_folder and shards' pictures after cropping.
    classes: number of classes of shards, which hold numbers and no names.
    mean, std: per channel, of pictures in [0, 1].
    limit: only so many pictures of each split, from all over it, for a trial.
    random: random pictures of this data set's shape and classes in its place, for a trial without it.
    """

    name: DataName = "digits"
    root: Path | None = None
    download: bool = False
    batch: int = 128
    workers: int = 0
    pad: int = 4
    flip: bool = True
    size: int = 224
    classes: int = 1000
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    limit: int | None = None
    random: bool = False


@dataclass
class OptimizerRecipe:
    """Args:
    name: sgd or adam.
    rate: learning rate at its highest.
    momentum, nesterov: of sgd.
    decay: weight decay of all parameters.
    """

    name: Literal["sgd", "adam"] = "sgd"
    rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    decay: float = 5e-4


@dataclass
class ScheduleRecipe:
    """Args:
    name: cosine falls over the whole run; step multiplies by factor after each epoch of `epochs`.
    warm_up: epochs of linear rise before.
    least: learning rate at the end of the cosine.
    epochs, factor: of step.
    """

    name: Literal["cosine", "step"] = "cosine"
    warm_up: float = 0.0
    least: float = 1e-6
    epochs: tuple[int, ...] = (30, 60, 90)
    factor: float = 0.1


@dataclass
class Recipe:
    """How to train a model.

    Args:
        model, data, optimizer, schedule: see there.
        epochs: passes over the training pictures.
        seed: of the weights, the order and the augmentation.
        label_smoothing: share of the target spread over all classes.
        clip: largest norm of the gradient; None does not clip.
        ema: decay per step of an average of the weights, which is then what is evaluated and kept; None: none.
        precision: 32-true, bf16-mixed or 16-mixed.
        channels_last: layout of weights and pictures.
        checkpoint_steps: steps between checkpoints; there is one at the end of every epoch besides.
        strategy: auto; for several processes ddp, or fsdp2, in which each keeps a share of the weights.
        devices: processes on this machine.
        nodes: machines.
        threads: of PyTorch in each process; None leaves its own choice.
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    epochs: int = 220
    seed: int = 1
    label_smoothing: float = 0.0
    clip: float | None = None
    ema: float | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = True
    checkpoint_steps: int = 1000
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    devices: int = 1
    nodes: int = 1
    threads: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and checkpoints hold them."""
        values = asdict(self)
        values["data"]["root"] = None if self.data.root is None else str(self.data.root)
        return values

    def check(self) -> None:
        """Raises UserError where a value is outside its range."""
        for path, least, most in RANGES:
            value: Any = self
            for name in path.split("."):
                value = getattr(value, name)
            if value is not None and not (least <= value <= most and math.isfinite(value)):
                highest = f"at most {most:g}" if math.isfinite(most) else "finite"
                raise UserError(f"{path} must be at least {least:g} and {highest}, got {value}")
        if self.strategy == "fsdp2" and self.model.name in ("mdeq_small", "scn"):
            raise UserError(
                f"{self.model.name} has parameters that cannot be shared out: train it with --strategy ddp"
            )
        if self.strategy == "fsdp2" and self.ema is not None:
            raise UserError("no average of sharded weights is kept: ema goes with --strategy ddp, not with fsdp2")
        if self.optimizer.name == "sgd" and self.optimizer.nesterov and self.optimizer.momentum == 0:
            raise UserError("optimizer.nesterov needs an optimizer.momentum above 0, got 0")


# Smallest and largest value of the fields that are numbers.
RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, math.inf), ("seed", 0, 2**32 - 1), ("label_smoothing", 0, 1), ("clip", 0, math.inf),
    ("ema", 0, 1), ("checkpoint_steps", 1, math.inf), ("devices", 1, math.inf), ("nodes", 1, math.inf),
    ("threads", 1, 2**15), ("data.pad", 0, math.inf), ("data.size", 1, math.inf),
    ("data.classes", 1, math.inf), ("data.limit", 1, math.inf),
    ("optimizer.rate", 0, math.inf), ("optimizer.momentum", 0, 1), ("optimizer.decay", 0, math.inf),
    ("schedule.warm_up", 0, math.inf), ("schedule.least", 0, math.inf), ("schedule.factor", 0, math.inf),
)  # fmt: skip
