"""The learning rate as a pure function of progress."""

import math
from collections.abc import Mapping
from typing import Any

from train.config import ScheduleConfig


def lr_factor(config: ScheduleConfig, epoch: float, epochs: float, drops: int = 0) -> float:
    """Return the factor on the peak rate at a point of the run, `epoch` and `epochs` in (part) epochs.

    During the warm-up it rises linearly, whatever the kind. Afterwards a polynomial falls from 1 to 0 over the rest,
    as InsightFace's `PolynomialLRWarmup` does; with plateau it is gamma to the power of `Progress.drops`.
    """
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    if config.kind == "plateau":
        return float(config.gamma**drops)
    if config.kind == "step":
        return float(config.gamma ** sum(epoch >= milestone for milestone in config.milestones))
    progress = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return float((1 - progress) ** config.power)


_IMPROVEMENT = 1e-4
"""Part of the level by which an accuracy must exceed it to end a plateau: the threshold of `ReduceLROnPlateau`."""


class Progress:
    """What the validations of a run have come to."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.best = -math.inf
        """Highest accuracy."""
        self.drops = 0
        """How often a plateau was longer than the schedule's patience."""
        self._level = -math.inf
        self._num_flat = 0
        self._patience = config.patience

    def update(self, accuracy: float) -> bool:
        """Take in a validation; return whether it is better than all before.

        Plateaus are those of `torch.optim.lr_scheduler.ReduceLROnPlateau(mode="max", patience=patience)`.
        """
        is_best = accuracy > self.best
        self.best = max(accuracy, self.best)
        if accuracy > self._level * (1 + _IMPROVEMENT):
            self._level, self._num_flat = accuracy, 0
        else:
            self._num_flat += 1
        if self._num_flat > self._patience:
            self._num_flat, self.drops = 0, self.drops + 1
        return is_best

    def state_dict(self) -> dict[str, float]:
        """Return all that later updates depend on."""
        return {"best": self.best, "drops": self.drops, "level": self._level, "num_flat": self._num_flat}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the one whose state this is."""
        self.best, self.drops = state["best"], state["drops"]
        self._level, self._num_flat = state["level"], state["num_flat"]
