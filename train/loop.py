"""The training loop.

A run is a folder. Whatever stops it, `resume` goes on from its newest checkpoint with the batches, the
learning rate and the random state that an uninterrupted run would have had.
"""

import json
import logging
import math
import platform
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import yaml
from torch import nn

from pipeline.hashing import derive_key
from pipeline.loader import Batch, FaceLoader, normalised, resolve_device
from pipeline.plan import Plan, open_plan
from shardgen.errors import DataError, UsageError
from shardgen.files import write_durably
from train import checkpoint
from train.backbones import make_encoder
from train.config import Recipe, differences
from train.distributed import World, any_rank, join, leave, replicate, this_world
from train.heads import MarginHead
from train.metrics import Reporter
from train.partial_fc import PartialFC
from train.schedule import lr_factor
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

    @property
    def finished(self) -> bool:
        """Whether it reached its last step, rather than being stopped."""
        return self.step == self.num_steps


class Recogniser(nn.Module):
    """Encoder and heads as one module, so that they can be replicated together."""

    def __init__(self, encoder: nn.Module, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(heads)

    def forward(self, images: torch.Tensor, labels: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch: of one head, or each sample's of the head of its set."""
        embeddings = self.encoder(images)
        if len(self.heads) == 1:
            loss: torch.Tensor = self.heads[0](embeddings, labels)
            return loss
        # A head without a sample here takes part all the same: other ranks wait for its gradient.
        heads = enumerate(cast("Iterable[MarginHead | PartialFC]", self.heads))
        own = [(head, sets == number) for number, head in heads]
        sums = [head.losses(embeddings[rows], labels[rows]).sum() for head, rows in own]
        return torch.stack(sums).sum() / len(labels)


def train(recipe: Recipe, *, resume: bool = False, stop_at: int | None = None) -> RunResult:
    """Train as the recipe says, in its run folder, until the end, a signal, or step `stop_at`.

    Raises `UsageError` when the folder holds a run already and `resume` is not asked for, or another
    recipe's run when it is; or when the heads of several sets are to be split over processes.
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
    plan = open_plan(recipe.mix, recipe.seed, recipe.loader.batch_size)
    join(world, device)
    try:
        trainer = Trainer(recipe, plan, world, device)
        if latest is not None:
            trainer.load_state_dict(latest)
        elif recipe.encoder.pretrained is not None:
            trainer.load_pretrained(recipe.encoder.pretrained)
        if world.rank == 0:
            _describe(run, recipe, device)
            if resume:
                _log.info("%s: going on from step %d", run, trainer.step)
        step = trainer.run(stop_at)
    finally:
        leave(world)
    return RunResult(run, step, trainer.num_steps, is_main=world.rank == 0)


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


def autocast_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """Return the type to compute activations in, or None for float32 throughout."""
    precision = recipe.training.precision
    if precision == "auto":
        on_gpu = device.type == "cuda"
        native = torch.cuda.is_bf16_supported(False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


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
        self._device = device
        self._dtype = autocast_dtype(recipe, device)
        self._encoder = make_encoder(recipe.encoder, recipe.loader.image_size).to(device)
        self._heads = nn.ModuleList(_make_head(recipe, number, world) for number in plan.num_classes).to(device)
        if recipe.training.compile:
            self._encoder.compile()
        if recipe.head.split:  # such heads are no replicas, and exchange what they need themselves
            self._model: nn.Module = Recogniser(replicate(self._encoder, world, device), self._heads)
        else:
            self._model = replicate(Recogniser(self._encoder, self._heads), world, device)
        self._optimizer = torch.optim.SGD(
            [parameter for parameter in self._model.parameters() if parameter.requires_grad],
            lr=recipe.optimizer.lr,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
            fused=True,
        )
        self._loader = FaceLoader(plan, recipe.augment, recipe.loader, device, world.rank, world.world_size)

    def load_pretrained(self, path: Path) -> None:
        """Begin with an encoder's weights from a file; raise as `load_weights` does."""
        load_weights(self._encoder, path)

    def run(self, stop_at: int | None) -> int:
        """Take steps until the last, `stop_at` or a signal; save; return the number of steps done."""
        last = self.num_steps if stop_at is None else min(stop_at, self.num_steps)
        training = self._recipe.training
        ranks = self._world.world_size
        reporter = Reporter(self._recipe.run_folder, self.step, ranks) if self._world.rank == 0 else None
        with closing(self._loader), _stop_signals() as stopped:
            while self.step < last and not any_rank(bool(stopped), self._world):
                batch = next(self._loader)
                loss = self._take_step(batch)
                if reporter is not None and (self.step % training.log_every == 0 or self.step == last):
                    reporter.report(self._metrics(batch, loss), self._loader.stats(), self.num_steps)
                if self.step % training.checkpoint_every == 0:
                    self._save()
        self._save()
        if reporter is not None:
            reporter.close()
        return self.step

    def _take_step(self, batch: Batch) -> torch.Tensor:
        # Dropout, too, is a function of where the run stands: nothing to save, and no two ranks alike.
        torch.manual_seed(derive_key(self._recipe.seed, "step", self.step, self._world.rank) >> 1)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr()
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            loss: torch.Tensor = self._model(normalised(batch.images), batch.labels, batch.sets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._encoder.parameters(), self._recipe.optimizer.clip_norm)
        self._optimizer.step()
        self.step += 1
        return loss.detach()

    def _lr(self) -> float:
        epoch = self.step / self._plan.batches_per_epoch
        epochs = self.num_steps / self._plan.batches_per_epoch
        return self._recipe.optimizer.lr * lr_factor(self._recipe.schedule, epoch, epochs)

    def _metrics(self, batch: Batch, loss: torch.Tensor) -> dict[str, Any]:
        """Return what is reported of the step just taken; on a GPU this waits for it."""
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(f"the loss is {value} at step {self.step}: training diverged; lower optimizer.lr")
        return {
            "step": self.step,
            "epoch": self.step / self._plan.batches_per_epoch,
            "loss": value,
            "lr": self._optimizer.param_groups[0]["lr"],
            "batch_crc32": f"{zlib.crc32(batch.sample_ids.cpu().numpy().tobytes()):08x}",
        }

    def _save(self) -> None:
        if self.step == self._saved_at:
            return
        finite = all(parameter.isfinite().all() for parameter in self._model.parameters())
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
            "recipe": self._recipe.model_dump(mode="json"),
            "encoder": self._encoder.state_dict(),
            "heads": self._heads.state_dict(),
            "optimizer": self._with_split_momenta(self._optimizer.state_dict(), PartialFC.gather),
            "loader": self._loader.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the saved run stood; raise `UsageError` when its data were others."""
        self._loader.load_state_dict(state["loader"])
        self._encoder.load_state_dict(state["encoder"])
        self._heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(self._with_split_momenta(state["optimizer"], PartialFC.own))
        self.step = self._saved_at = state["step"]

    def _with_split_momenta(
        self, optimizer: Mapping[str, Any], change: Callable[[PartialFC, torch.Tensor], torch.Tensor]
    ) -> dict[str, Any]:
        """Return an optimiser's state with the momenta of split heads gathered, or cut to this rank's."""
        state = dict(optimizer["state"])
        first = len(optimizer["param_groups"][0]["params"]) - len(self._heads)  # a weight each, after the encoder's
        for index, head in enumerate(self._heads, first):
            if isinstance(head, PartialFC) and index in state:
                state[index] = {name: change(head, rows) for name, rows in state[index].items()}
        return {**optimizer, "state": state}


def _make_head(recipe: Recipe, num_identities: int, world: World) -> nn.Module:
    size = recipe.encoder.embedding_size
    if recipe.head.split:
        return PartialFC(recipe.head, size, num_identities, world)
    return MarginHead(recipe.head, size, num_identities)


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
