"""One step of the optimiser: forward in parts, backward, unscale, clip, move, average."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.loader import Batch, normalised
from shardgen.errors import UsageError
from train.config import OptimizerConfig
from train.distributed import World
from train.objective import Objective
from train.partial_fc import PartialFC
from train.recipe import Recipe

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type to compute activations in, or None for float32 throughout."""
    if precision == "auto":
        on_gpu = device.type == "cuda"
        native = torch.cuda.is_bf16_supported(False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    return _DTYPES[precision]


class Updater:
    """Makes steps of batches. Nothing in a step waits for the device."""

    def __init__(self, objective: Objective, recipe: Recipe, world: World, device: torch.device) -> None:
        """Raise `UsageError` when a process has fewer images than it is to accumulate parts."""
        torch.backends.cudnn.benchmark = (
            True  # batches are all of one size: it pays to look for the fastest convolutions
        )
        self._objective = objective
        self._clip_norm = recipe.optimizer.clip_norm
        self._device = device
        self._dtype = autocast_dtype(recipe.training.precision, device)
        self._num_parts = recipe.training.accumulate
        if self._num_parts > (images := recipe.loader.batch_size // world.world_size):
            raise UsageError(f"training.accumulate {self._num_parts} is more than the {images} images of a process")
        self._optimizer = _make_optimizer(recipe.optimizer, objective.parameters)
        self._scaler = _make_scaler(device, self._dtype, recipe.head.split and world.world_size > 1)
        self._memory: torch.Tensor | None = None
        self._average = None if recipe.training.ema is None else _averaged(objective.encoder, recipe.training.ema)

    @property
    def measured(self) -> nn.Module:
        """The encoder that is worth measuring: the average, where one is kept."""
        return self._objective.encoder if self._average is None else self._average.module

    def step(self, batch: Batch, lr: float) -> torch.Tensor:
        """Move the weights by one batch; return this rank's mean loss, still on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._objective.encoder.parameters(), self._clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._objective.encoder)
        return loss

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Add up the gradients of the batch's parts; processes exchange them with the last."""
        total = torch.zeros((), device=self._device)
        columns = (batch.images, batch.labels, torch.from_numpy(batch.sets))
        parts = list(zip(*(column.tensor_split(self._num_parts) for column in columns), strict=True))
        for number, (images, labels, sets) in enumerate(parts, 1):
            with self._exchanging(number == len(parts)):
                with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
                    loss = self._objective.loss(self._normalised(images), labels, sets.numpy())
                loss = loss * (len(images) / len(batch.images))
                self._scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        floats = normalised(images, self._memory)
        if self._memory is None and self._device.type == "cpu":
            self._memory = floats  # of the first part, which none exceeds
        return floats

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        replicas = (one for one in self._objective.loss.modules() if isinstance(one, DistributedDataParallel))
        replicated = next(replicas, None)
        return nullcontext() if last or replicated is None else replicated.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on, in a world of any size; all ranks must ask."""
        average = {} if self._average is None else {"average": self._average.state_dict()}
        optimizer = self._with_split_momenta(self._optimizer.state_dict(), PartialFC.gather)
        return {"optimizer": optimizer, "scaler": self._scaler.state_dict(), **average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the updater whose state this is."""
        self._optimizer.load_state_dict(self._with_split_momenta(state["optimizer"], PartialFC.own))
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def _with_split_momenta(
        self, optimizer: Mapping[str, Any], change: Callable[[PartialFC, torch.Tensor], torch.Tensor]
    ) -> dict[str, Any]:
        """Return an optimiser's state with the momenta of split heads gathered, or cut to this rank's."""
        state = dict(optimizer["state"])
        heads = [head for head in self._objective.heads if isinstance(head, PartialFC)]  # all of them, or none
        first = len(self._objective.parameters) - len(heads)
        for index, head in enumerate(heads, first):
            if index in state:
                rows = {name: value for name, value in state[index].items() if value.ndim}
                state[index] = state[index] | {name: change(head, value) for name, value in rows.items()}
        return {**optimizer, "state": state}


def _make_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.kind == "adamw":
        return torch.optim.AdamW(parameters, betas=config.betas, **common)
    sgd = torch.optim.SGD(parameters, momentum=config.momentum, **common)
    for parameter in parameters if config.momentum else ():
        # torch leaves these as they come out of memory when the very first step is one that the scaler skips.
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _make_scaler(device: torch.device, dtype: torch.dtype | None, split: bool) -> torch.amp.GradScaler:
    """Return what keeps small gradients from vanishing in fp16; it does nothing for other types."""
    kind = _SharedScaler if split else torch.amp.GradScaler
    return kind(device.type, enabled=dtype == torch.float16)


class _SharedScaler(torch.amp.GradScaler):
    """Where the gradients of one process overflow, none takes the step: each has some that the others have not.

    (torch's ShardedGradScaler adds the processes' findings up, and a fused optimiser skips a step for exactly 1.)
    """

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        super().unscale_(optimizer)
        if self.is_enabled():
            for found in self._found_inf_per_device(optimizer).values():
                distributed.all_reduce(found, distributed.ReduceOp.MAX)


def _averaged(encoder: nn.Module, decay: float) -> AveragedModel:
    follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(encoder, multi_avg_fn=follow, use_buffers=True)
