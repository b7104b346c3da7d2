"""PartialFC: a margin softmax whose identities are split over the processes (An et al., CVPR 2022).

Each rank keeps the centres of its slice of identities and sees the embeddings of all ranks; what they exchange
is the batch and a few numbers a sample, never centres. Of its slice a rank may use only a random share in a step:
the batch's own identities, and others drawn anew from torch's generator, which is to be seeded by step and rank.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from train.config import HeadConfig
from train.distributed import World, all_gathered
from train.margins import make_margin


class PartialFC(nn.Module):
    """`MarginHead`, split; the ranks must call it together, with as many samples each.

    Its losses and gradients are those of an unsplit head that sees the global batch. (A replicated one takes the
    statistics of adaface and curricularface, and the order of elastic_*_plus, from its rank's slice alone.) They are
    averaged over the ranks already, so DistributedDataParallel must leave this module alone. Its `state_dict` holds all
    centres, and loads into any number of ranks; as it gathers them, all ranks must ask for it. A sampled step uses
    `sampled` of each rank's identities, or as many as the global batch has samples where that is more.
    """

    def __init__(self, config: HeadConfig, embedding_size: int, num_identities: int, world: World) -> None:
        super().__init__()
        self.margin = make_margin(config)
        self._scale = config.scale
        self._sampled = config.sampled
        self._world = world
        bounds = [rank * num_identities // world.world_size for rank in range(world.world_size + 1)]
        self._sizes = [last - first for first, last in pairwise(bounds)]
        self._first = bounds[world.rank]
        # All are drawn and few kept, so that they are the same in a world of any size.
        self.weight = nn.Parameter(self.own(torch.empty(num_identities, embedding_size).normal_(0, 0.01)).clone())
        self.register_state_dict_post_hook(_gather_centres)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_keep_own_centres)  # type: ignore[no-untyped-call]

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this rank's of the rows of all identities: of centres, or of their momentum."""
        return torch.split(rows, self._sizes)[self._world.rank]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all identities, on the CPU, given each rank's own; all ranks must call."""
        parts = []
        for rank, size in enumerate(self._sizes):
            part = rows.contiguous() if rank == self._world.rank else rows.new_empty(size, *rows.shape[1:])
            if self._world.world_size > 1:
                distributed.broadcast(part, rank)
            parts.append(part.cpu())
        return torch.cat(parts)

    def losses(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each of this rank's samples, `[batch]`, computed in float32 whatever the autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            everyone: torch.Tensor = _Gather.apply(embeddings, self._world)  # type: ignore[no-untyped-call]
            logits, columns, held = self._logits(everyone, all_gathered(labels, self._world))
            losses: torch.Tensor = _CrossEntropy.apply(logits, columns, held, self._world)  # type: ignore[no-untyped-call]
            mine = losses.chunk(self._world.world_size)[self._world.rank]
            return mine + self.margin.penalty(embeddings.norm(dim=1))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of this rank's samples."""
        return self.losses(embeddings, labels).mean()

    def _logits(
        self, embeddings: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits `[samples of all, centres used]`, the targets' columns, and which targets this rank holds.

        Where it does not, the column means nothing.
        """
        columns = (labels - self._first).clamp(0, len(self.weight) - 1)
        held = columns == labels - self._first
        weight, columns = self._sample(held, columns)
        cosines = functional.linear(functional.normalize(embeddings), functional.normalize(weight))
        target = cosines.gather(1, columns[:, None])[:, 0]
        # Margins may depend on the whole batch, so each rank computes all.
        target = torch.where(held, target, _summed(target.detach() * held, self._world))
        moved = self.margin(target, embeddings.norm(dim=1))
        cosines = self.margin.negatives(cosines, moved)
        moved = torch.where(held, moved, cosines.gather(1, columns[:, None])[:, 0])
        return cosines.scatter(1, columns[:, None], moved[:, None]) * self._scale, columns, held

    def _sample(self, held: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the centres used in this step, and the targets' columns among them."""
        size = len(self.weight)
        used = min(size, max(math.ceil(self._sampled * size), len(columns)))  # a fixed number: no waiting for the GPU
        if used == size:
            return self.weight, columns
        chances = torch.rand(size + 1, device=columns.device)
        chances[torch.where(held, columns, size)] = 2  # the last is nobody's, for targets of other ranks
        kept = chances[:size].topk(used).indices.sort().values
        return self.weight.index_select(0, kept), torch.searchsorted(kept, columns).clamp(max=used - 1)


class _Gather(torch.autograd.Function):
    """The rows of all ranks; backwards, the sum of their gradients, times the ranks that will average over it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world = world
        return all_gathered(rows, world)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        world: World = ctx.world
        if world.world_size == 1:
            return gradient, None
        own = torch.empty_like(gradient[: len(gradient) // world.world_size])
        distributed.reduce_scatter_tensor(own, gradient.contiguous())
        return own * world.world_size, None


class _CrossEntropy(torch.autograd.Function):
    """Each sample's cross-entropy over logits whose columns are split over ranks; all that it keeps is their softmax.

    Backwards, each rank knows the gradients of its own samples' losses; as with all parameters, their mean counts.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, columns: torch.Tensor, held: torch.Tensor, world: World
    ) -> torch.Tensor:
        highest = _reduced(logits.amax(1), world, distributed.ReduceOp.MAX)
        target = (logits.gather(1, columns[:, None])[:, 0] - highest) * held
        softmax = (logits - highest[:, None]).exp_()
        totals, target = _summed(torch.stack([softmax.sum(1), target]), world).unbind()
        softmax /= totals[:, None]
        ctx.save_for_backward(softmax, columns, held)
        ctx.world = world
        return totals.log() - target

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        softmax, columns, held = ctx.saved_tensors
        gradient = _summed(gradient.clone(), ctx.world) / ctx.world.world_size
        softmax.scatter_add_(1, columns[:, None], -held.to(softmax)[:, None])
        return softmax.mul_(gradient[:, None]), None, None, None


def _summed(values: torch.Tensor, world: World) -> torch.Tensor:
    return _reduced(values, world, distributed.ReduceOp.SUM)


def _reduced(values: torch.Tensor, world: World, operation: Any) -> torch.Tensor:
    """Reduce over ranks, in place."""
    if world.world_size > 1:
        distributed.all_reduce(values, operation)
    return values


def _gather_centres(head: PartialFC, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[f"{prefix}weight"] = head.gather(state[f"{prefix}weight"])


def _keep_own_centres(
    head: PartialFC, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *problems: Sequence[str]
) -> None:
    state[f"{prefix}weight"] = head.own(state[f"{prefix}weight"])
