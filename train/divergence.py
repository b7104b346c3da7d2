"""Training that diverges ends with the step and the batch at which it did, without a look at the loss in every step."""

import json
from pathlib import Path

import numpy as np
import torch

from pipeline.order import Ids
from pipeline.plan import Plan
from shardgen.errors import DataError
from shardgen.files import write_durably
from train.distributed import World, gathered

FILE = "diverged.json"
_NEVER = 2**62
_NAMED = 8


class Divergence:
    """Remembers, on the device, the first step whose loss was not finite."""

    def __init__(self, plan: Plan, run: Path, world: World, device: torch.device) -> None:
        self._plan, self._run, self._world = plan, run, world
        self._first = torch.full((), _NEVER, device=device)

    def note(self, step: int, loss: torch.Tensor) -> None:
        """Take the loss of the step that comes after `step` others."""
        self._first = torch.where(loss.isfinite(), self._first, self._first.clamp(max=step))

    def check(self) -> None:
        """Raise `DataError` on all ranks when one has met a loss that is not finite; this waits for the device.

        All ranks must ask. The batch is a function of the plan, so nothing but its number had to be kept; which samples
        it held is written to `diverged.json`.
        """
        step = int(gathered(np.array([self._first.item()]), self._world).min())
        if step == _NEVER:
            return
        sample_ids = self._plan.batch(step).sample_ids
        if self._world.rank == 0:
            write_durably(self._run / FILE, json.dumps({"step": step + 1, "samples": self._named(sample_ids)}).encode())
        few = ", ".join(map(str, sample_ids[:_NAMED].tolist()))
        raise DataError(
            f"the loss is not finite at step {step + 1}: training diverged; lower optimizer.lr, or look at that step's "
            f"samples {few}, ... in {self._run / FILE}"
        )

    def _named(self, sample_ids: Ids) -> list[dict[str, object]]:
        labels = self._plan.catalog.label[sample_ids].tolist()
        people = [self._plan.catalog.identities[label] for label in labels]
        return [
            {"sample": sample, "set": set_name, "identity": identity}
            for sample, (set_name, identity) in zip(sample_ids.tolist(), people, strict=True)
        ]
