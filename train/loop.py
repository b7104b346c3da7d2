"""The training loop.

A run is a folder. Whatever stops it, `resume` goes on from its newest checkpoint with the batches, the
learning rate and the random state that an uninterrupted run would have had.
"""

import json
import logging
import platform
import signal
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch import nn

from pipeline.catalog import open_catalog
from pipeline.loader import Batch, FaceLoader, resolve_device
from pipeline.plan import Plan
from pipeline.stats import Throughput
from shardgen.errors import UsageError
from shardgen.manifest import write_durably
from train import checkpoint
from train.backbones import IResNet, make_encoder
from train.config import Recipe, differences
from train.distributed import World, any_rank, join, leave, replicate, this_world
from train.heads import MarginHead
from train.metrics import MetricsWriter, StepMetrics
from train.schedule import lr_factor

_log = logging.getLogger("facemix.train")


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    step: int
    num_steps: int

    @property
    def finished(self) -> bool:
        """Whether it reached its last step, rather than being stopped."""
        return self.step == self.num_steps


class Recogniser(nn.Module):
    """Encoder and head as one module, so that both are replicated together."""

    def __init__(self, encoder: IResNet, head: MarginHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch."""
        loss: torch.Tensor = self.head(self.encoder(images), labels)
        return loss


def plan_of(recipe: Recipe) -> Plan:
    """Open a recipe's sets and lay out its batches; raise `UsageError` or `DataError` when they are at fault."""
    catalog = open_catalog({name: one.path for name, one in recipe.mix.sets.items()})
    return Plan(catalog, recipe.mix, recipe.seed, recipe.loader.batch_size)


def train(recipe: Recipe, *, resume: bool = False, stop_at: int | None = None) -> RunResult:
    """Train as the recipe says, in its run folder, until the end, a signal, or step `stop_at`.

    Raises `UsageError` when the folder holds a run already and `resume` is not asked for, or another
    recipe's run when it is.
    """
    world = this_world()
    device = resolve_device(recipe.loader.device, world.local_rank)
    run = recipe.run_folder
    latest = _latest_checkpoint(run, recipe, resume)
    plan = plan_of(recipe)
    join(world, device)
    try:
        trainer = Trainer(recipe, plan, world, device)
        if latest is not None:
            trainer.load_state_dict(latest)
            _log.info("resuming %s at step %d", run, trainer.step)
        if world.rank == 0:
            _describe(run, recipe, device)
        step = trainer.run(stop_at)
    finally:
        leave(world)
    return RunResult(run, step, trainer.num_steps)


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
    packages = ("facemix", "torch", "numpy", "opencv-python-headless", "pyarrow")
    environment = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in packages},
    }
    write_durably(run / "environment.json", json.dumps(environment, indent=1).encode())


def autocast_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """Return the type to compute activations in, or None for float32 throughout."""
    precision = recipe.training.precision
    if precision == "auto":
        native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


class Trainer:
    """The state of a run between two steps."""

    def __init__(self, recipe: Recipe, plan: Plan, world: World, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.step = 0
        self.num_steps = max(1, round(recipe.training.epochs * plan.batches_per_epoch))
        self._recipe = recipe
        self._plan = plan
        self._world = world
        self._device = device
        self._dtype = autocast_dtype(recipe, device)
        encoder = make_encoder(recipe.encoder, recipe.loader.image_size)
        head = MarginHead(recipe.head, recipe.encoder.embedding_size, len(plan.catalog.identities))
        self._model = Recogniser(encoder, head).to(device).train()
        if recipe.training.compile:
            self._model.encoder.compile()
        self._replica = replicate(self._model, world, device)
        self._optimizer = torch.optim.SGD(
            [parameter for parameter in self._model.parameters() if parameter.requires_grad],
            lr=recipe.optimizer.lr,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
            fused=True,
        )
        self._loader = FaceLoader(plan, recipe.augment, recipe.loader, device, world.rank, world.world_size)

    def run(self, stop_at: int | None) -> int:
        """Take steps until the last, `stop_at` or a signal; save; return the number of steps done."""
        last = self.num_steps if stop_at is None else min(stop_at, self.num_steps)
        begun_at = self.step
        training = self._recipe.training
        writer = MetricsWriter(self._recipe.run_folder, self.step) if self._world.rank == 0 else None
        spent = Throughput()
        begun = time.monotonic()
        with _stop_signals() as stopped:
            while self.step < last and not any_rank(bool(stopped), self._world):
                batch, loss, throughput = self._timed_step()
                spent += throughput
                if self.step % training.log_every == 0 or self.step == last:
                    metrics = self._metrics(batch, loss, spent)
                    spent = Throughput()
                    per_step = (time.monotonic() - begun) / (self.step - begun_at)
                    if writer is not None:
                        writer.write(metrics)
                        _log.info(metrics.line(self.num_steps, per_step * (self.num_steps - self.step)))
                if self.step % training.checkpoint_every == 0:
                    self._save()
        self._save()
        self._loader.close()
        if writer is not None:
            writer.close()
        return self.step

    def _timed_step(self) -> tuple[Batch, torch.Tensor, Throughput]:
        begun = time.monotonic()
        batch = next(self._loader)
        waited = time.monotonic() - begun
        loss = self._take_step(batch)
        return batch, loss, Throughput(self._plan.batch_size, time.monotonic() - begun, waited)

    def _take_step(self, batch: Batch) -> torch.Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr()
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            loss: torch.Tensor = self._replica(batch.images, batch.labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.encoder.parameters(), self._recipe.optimizer.clip_norm)
        self._optimizer.step()
        self.step += 1
        return loss.detach()

    def _lr(self) -> float:
        epoch = self.step / self._plan.batches_per_epoch
        epochs = self.num_steps / self._plan.batches_per_epoch
        return self._recipe.optimizer.lr * lr_factor(self._recipe.schedule, epoch, epochs)

    def _metrics(self, batch: Batch, loss: torch.Tensor, spent: Throughput) -> StepMetrics:
        return StepMetrics(
            step=self.step,
            epoch=self.step / self._plan.batches_per_epoch,
            loss=loss.item(),
            lr=self._optimizer.param_groups[0]["lr"],
            images_per_second=spent.images_per_second,
            waiting_share=spent.waiting_share,
            batch_crc32=f"{zlib.crc32(batch.sample_ids.cpu().numpy().tobytes()):08x}",
        )

    def _save(self) -> None:
        if self._world.rank == 0:
            folder = self._recipe.run_folder / "checkpoints"
            checkpoint.save(folder, self.step, self.state_dict(), self._recipe.training.keep_checkpoints)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on."""
        return {
            "step": self.step,
            "recipe": self._recipe.model_dump(mode="json"),
            "encoder": self._model.encoder.state_dict(),
            "head": self._model.head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "loader": self._loader.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self._device.type == "cuda" else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the saved run stood; raise `UsageError` when its data were others."""
        self._loader.load_state_dict(state["loader"])
        self._model.encoder.load_state_dict(state["encoder"])
        self._model.head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.step = state["step"]


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
