"""Learning rates as functions of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import math

from .recipe import ScheduleRecipe


def learning_rate(
    step: int, *, highest: float, steps_per_epoch: int, epochs: int, schedule: ScheduleRecipe
) -> float:
    """The rate of one step, counted from 0.

    cosine: least + (highest - least) (1 + cos(pi p)) / 2, p the share of the steps after the warm-up that are
    done (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts). step: highest times factor for every
    epoch of schedule.epochs that is over.
    """
    rise = schedule.warm_up * steps_per_epoch
    if step < rise:
        return highest * min(1.0, (step + 1) / rise)
    if schedule.name == "step":
        return highest * schedule.factor ** sum(step >= epoch * steps_per_epoch for epoch in schedule.epochs)
    progress = (step - rise) / max(1, epochs * steps_per_epoch - rise)
    return schedule.least + (highest - schedule.least) * (1 + math.cos(math.pi * progress)) / 2
