"""The training loop.

A run is a folder. Whatever stops it, `resume` goes on from its newest checkpoint with the batches, the
learning rate and the random state that an uninterrupted run would have had.
"""

import json
import logging
import platform
import signal
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml

from pipeline.hashing import derive_key
from pipeline.loader import Batch, FaceLoader, resolve_device
from pipeline.plan import Plan, open_plan
from shardgen.errors import DataError, UsageError
from shardgen.files import write_durably
from train import checkpoint
from train.budget import check_budget
from train.distributed import World, any_rank, gathered, join, leave, this_world
from train.divergence import Divergence
from train.metrics import Reporter, ValidationMetrics
from train.objective import make_objective
from train.preview import preview
from train.recipe import Recipe, differences, differing_settings
from train.schedule import Progress, lr_factor
from train.updates import Updater
from train.validation import Validation, is_due
from train.weights import load_weights

_log = logging.getLogger("facemix.train")


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    step: int
    num_steps: int
    is_main: bool
    """Whether this is the process that speaks for all."""
    interrupted: bool = False
    """Whether a process was told to end, by a signal."""

    @property
    def finished(self) -> bool:
        """Whether it reached its last step, rather than being stopped."""
        return self.step == self.num_steps


def train(recipe: Recipe, *, resume: bool = False, stop_at: int | None = None) -> RunResult:
    """Train as the recipe says, in its run folder, until the end, a signal, or step `stop_at`.

    Raises `UsageError` when the folder holds a run already and `resume` is not asked for, or another
    recipe's run when it is; when the heads of several sets are to be split over processes; and when a mix is over its
    budget. Raises `DataError` when training diverges.
    """
    world = this_world()
    if recipe.head.split and recipe.mix.labels == "separate" and world.world_size > 1:
        raise UsageError(
            f"head.split is true with mix.labels separate in {world.world_size} processes: a split head needs as many "
            "faces from each, and their faces per set differ; set head.split=false, or train in one process"
        )
    device = resolve_device(recipe.loader.device, world.local_rank)
    run = recipe.run_folder
    latest = _latest_checkpoint(run, recipe, resume)
    if latest is not None and latest["step"] == latest["num_steps"]:
        return RunResult(run, latest["step"], latest["num_steps"], is_main=world.rank == 0)
    plan = open_plan(recipe.mix, recipe.seed, recipe.loader.batch_size)
    check_budget(recipe.budget, plan)
    join(world, device)
    try:
        trainer = Trainer(recipe, plan, world, device)
        if latest is not None:
            trainer.load_state_dict(latest)
        elif recipe.encoder.pretrained is not None:
            trainer.load_pretrained(recipe.encoder.pretrained)
        _check_together(trainer.step, fingerprint(recipe, plan), world)
        if world.rank == 0:
            _describe(run, recipe, device)
            if latest is not None:
                _log.info("%s: going on from step %d", run, trainer.step)
        interrupted = trainer.run(stop_at)
    finally:
        leave(world)
    return RunResult(run, trainer.step, trainer.num_steps, world.rank == 0, interrupted)


def _latest_checkpoint(run: Path, recipe: Recipe, resume: bool) -> checkpoint.State | None:
    found = checkpoint.all_in(run / "checkpoints")
    if found and not resume:
        raise UsageError(f"{run} already holds a run; add --resume to go on, or choose another with run=FOLDER")
    if not found:
        return None
    state = checkpoint.load(found[-1])
    different = differences(recipe, state["recipe"])
    if different:
        raise UsageError(f"cannot resume {run}: {different[0]}; change it back, or start another with run=FOLDER")
    return state


def _describe(run: Path, recipe: Recipe, device: torch.device) -> None:
    """Write the resolved recipe and what it runs on."""
    run.mkdir(parents=True, exist_ok=True)
    write_durably(run / "config.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode())
    environment = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "packages": dict(sorted((one.name, one.version) for one in distributions())),
    }
    write_durably(run / "environment.json", json.dumps(environment, indent=1).encode())


def _check_together(step: int, recipe_and_data: int, world: World) -> None:
    """Refuse processes that train something else or stand at another step: each has read the files that it sees."""
    steps, fingerprints = (
        sorted(set(column)) for column in gathered(np.array([[step, recipe_and_data]]), world).T.tolist()
    )
    if len(fingerprints) > 1:
        raise UsageError(
            "processes have different recipes or data sets: give all nodes the same command and the same sets"
        )
    if len(steps) > 1:
        raise UsageError(
            f"some processes would go on from step {steps[0]}, others from {steps[-1]}: the run folder must be one "
            "that all nodes share; choose it with run=FOLDER"
        )


class Trainer:
    """The state of a run between two steps."""

    def __init__(self, recipe: Recipe, plan: Plan, world: World, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.step = 0
        self._saved_at: int | None = None
        self.num_steps = max(1, round(recipe.training.epochs * plan.batches_per_epoch))
        self._recipe = recipe
        self._plan = plan
        self._world = world
        self._objective = make_objective(recipe, plan.num_classes, plan.set_names, world, device)
        self._updater = Updater(self._objective, recipe, world, device)
        self._validation = Validation(recipe.validation, recipe.loader, world, device)
        self._progress = Progress(recipe.schedule)
        self._divergence = Divergence(plan, recipe.run_folder, world, device)
        self._loader = FaceLoader(plan, recipe.augment, recipe.loader, device, world.rank, world.world_size)

    def load_pretrained(self, path: Path) -> None:
        """Begin with an encoder's weights from a file; raise as `load_weights` does."""
        load_weights(self._objective.encoder, path)

    def run(self, stop_at: int | None) -> bool:
        """Take steps until the last, `stop_at` or a signal; save; return whether it was a signal to any process."""
        last = self.num_steps if stop_at is None else min(stop_at, self.num_steps)
        with _stop_signals() as stopped:  # also while it saves
            with closing(self._loader), self._reporting() as reporter:
                while not (interrupted := any_rank(bool(stopped), self._world)) and self.step < last:
                    self._take_step(reporter, last)
            self._save()
        return interrupted

    @contextmanager
    def _reporting(self) -> Iterator[Reporter | None]:
        """Report from rank 0 alone."""
        if self._world.rank > 0:
            yield None
            return
        reporter = Reporter(self._recipe.run_folder, self.step, self.num_steps, self._world.world_size)
        with closing(reporter):
            yield reporter

    def _take_step(self, reporter: Reporter | None, last: int) -> None:
        """Take the next step, and do what is due after it."""
        training = self._recipe.training
        batch = next(self._loader)
        if reporter is not None and self.step == 0:
            reporter.show(preview(batch, self._plan))
        # Dropout, too, is a function of where the run stands: nothing to save, and no two ranks alike.
        torch.manual_seed(derive_key(self._recipe.seed, "step", self.step, self._world.rank) >> 1)
        lr = self._lr()
        loss = self._updater.step(batch, lr)
        self._divergence.note(self.step, loss)
        self.step += 1
        if reporter is not None:
            reporter.stepped()
        if self.step % training.log_every == 0 or self.step == last:
            self._report(reporter, batch, loss, lr)
        if self._validation and is_due(
            self._recipe.validation, self.step, self._plan.batches_per_epoch, self.num_steps
        ):
            self._validate(reporter)
        if self.step % training.checkpoint_every == 0:
            self._save()

    def _lr(self) -> float:
        epoch = self.step / self._plan.batches_per_epoch
        epochs = self.num_steps / self._plan.batches_per_epoch
        return self._recipe.peak_lr * lr_factor(self._recipe.schedule, epoch, epochs, self._progress.drops)

    def _report(self, reporter: Reporter | None, batch: Batch, loss: torch.Tensor, lr: float) -> None:
        """Report the step just taken, with what all ranks say of it; on a GPU this waits for it."""
        self._divergence.check()
        losses = gathered(np.array([loss.item()]), self._world)
        sample_ids = gathered(batch.sample_ids.cpu().numpy(), self._world)
        if reporter is not None:
            fields = {
                "step": self.step,
                "epoch": self.step / self._plan.batches_per_epoch,
                "loss": float(losses.mean()),
                "lr": lr,
                "batch_crc32": f"{zlib.crc32(sample_ids.tobytes()):08x}",
            }
            reporter.report(fields, self._loader.stats())

    def _validate(self, reporter: Reporter | None) -> None:
        """Measure the encoder; keep it when it is the best so far."""
        self._divergence.check()
        sets = self._validation.measure(self._updater.measured)
        accuracy = float(np.mean(list(sets.values())))
        best = self._progress.update(accuracy)
        if reporter is not None:
            epoch = self.step / self._plan.batches_per_epoch
            reporter.report_validation(ValidationMetrics(self.step, epoch, accuracy, sets, best))
        if best:
            state = self.state_dict()
            if self._world.rank == 0:
                checkpoint.save_best(self._recipe.run_folder / "checkpoints", self.step, state)

    def _save(self) -> None:
        if self.step == self._saved_at:
            return
        self._divergence.check()
        finite = all(parameter.isfinite().all() for parameter in self._objective.parameters)
        if any_rank(not finite, self._world):
            raise DataError(f"weights at step {self.step} are not finite: training diverged; lower optimizer.lr")
        state = self.state_dict()
        if self._world.rank == 0:
            folder = self._recipe.run_folder / "checkpoints"
            checkpoint.save(folder, self.step, state, self._recipe.training.keep_checkpoints)
        self._saved_at = self.step

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, in a world of any size; all ranks must ask."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "recipe": self._recipe.model_dump(mode="json"),
            "encoder": self._objective.encoder.state_dict(),
            "heads": self._objective.heads.state_dict(),
            "updates": self._updater.state_dict(),
            "progress": self._progress.state_dict(),
            "validation": self._validation.hashes,
            "loader": self._loader.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the saved run stood; raise `UsageError` when its data were others."""
        self._loader.load_state_dict(state["loader"])
        if state["validation"] != self._validation.hashes:
            raise UsageError(
                "cannot resume: a file of validation.bins is not the one that the run was measured on; put it back"
            )
        self._objective.encoder.load_state_dict(state["encoder"])
        self._objective.heads.load_state_dict(state["heads"])
        self._updater.load_state_dict(state["updates"])
        self._progress.load_state_dict(state["progress"])
        self.step = self._saved_at = state["step"]


def fingerprint(recipe: Recipe, plan: Plan) -> int:
    """Return a number that stands for all that has to be alike in every process."""
    alike = [differing_settings(recipe), plan.state_key]
    return zlib.crc32(json.dumps(alike, sort_keys=True).encode())


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying, so that the step under way ends and is saved."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
