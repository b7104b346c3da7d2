"""Training without identities: MoCo with a margin on the positive (USynthFace: Boutros et al., FG 2023).

A batch holds pairs, images 2i and 2i+1 of one identity: a query, and the key that it should find among the keys of
earlier batches. Batch norm would tell them which batch they share, so it sees groups of the global batch, and keys are
dealt to groups in another order than queries. Groups and order do not depend on the number of processes; nor do,
therefore, losses and gradients. (As in other training, dropout and the running statistics do: these are rank 0's.)
"""

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional

from pipeline.hashing import derive_key
from pipeline.order import Ids
from shardgen.errors import UsageError
from train.config import ContrastiveConfig
from train.distributed import World, all_gathered


class Grouped(nn.Module):
    """An encoder that takes a batch in equal consecutive groups, so that batch norm sees one at a time.

    It is one module because DistributedDataParallel allows a single forward pass before the backward one.
    """

    def __init__(self, encoder: nn.Module, num_groups: int) -> None:
        super().__init__()
        self.encoder = encoder
        self._num_groups = num_groups

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map `[batch, 3, size, size]` to `[batch, embedding]`; the batch is a multiple of the groups."""
        return torch.cat([self.encoder(group) for group in images.chunk(self._num_groups)])


class KeyMemory(nn.Module):
    """A slowly following copy of an encoder, and the newest keys it made: what queries are told apart from.

    The ranks must call it together, with as many pairs each. It has no gradients, and DistributedDataParallel must
    leave it alone; its queue is the same on all ranks, and its `state_dict` loads into any number of them. The formulas
    are Algorithm 1 of MoCo (He et al., CVPR 2020), with USynthFace's margin.

    Raises `UsageError` when the groups cannot be split over the processes.
    """

    queue: torch.Tensor
    """`[queue, embedding] float32` of length 1, oldest first; random at first. A larger batch leaves its last keys."""

    def __init__(
        self, config: ContrastiveConfig, encoder: nn.Module, embedding_size: int, world: World, seed: int
    ) -> None:
        super().__init__()
        if config.groups % world.world_size:
            raise UsageError(
                f"contrastive.groups is {config.groups} in {world.world_size} processes, which need as many groups "
                "each; set a multiple of the processes, or start another number of them"
            )
        self._config = config
        self._world = world
        self._seed = seed
        self._num_enqueued = 0
        self._followed = tuple(encoder.parameters())
        self.key_encoder = Grouped(deepcopy(encoder), config.groups // world.world_size).requires_grad_(False)
        rows = torch.randn(config.queue, embedding_size, generator=self._generator("queue"))
        self.register_buffer("queue", functional.normalize(rows))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the key encoder's weights a little towards the encoder's; before the first keys, all the way."""
        share = 1 - self._config.momentum if self._num_enqueued else 1.0
        torch._foreach_lerp_(tuple(self.key_encoder.parameters()), self._followed, share)

    def forward(self, queries: torch.Tensor, key_images: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of this rank's pairs, in float32 whatever the autocast; then remember the keys.

        `queries [pairs, embedding]` need not have length 1; `key_images` are `[pairs, 3, size, size]`.
        """
        keys = self._encode(key_images)
        own = keys.chunk(self._world.world_size)[self._world.rank]
        with torch.autocast(queries.device.type, enabled=False):
            queries = functional.normalize(queries.float())
            positive = (queries * own).sum(1, keepdim=True) - self._config.margin
            logits = torch.cat([positive, queries @ self.queue.T], dim=1) / self._config.temperature
            loss = functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
        # A new tensor, not new rows in the old one: the backward pass still needs that.
        self.queue = torch.cat([self.queue[len(keys) :], keys[-len(self.queue) :]])
        self._num_enqueued += len(keys)
        return loss

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the keys of all ranks' images, in the order of the global batch."""
        self.follow()
        # Channels come last, as they lie in memory: gathering and indexing would not keep another layout.
        everyone = all_gathered(images.permute(0, 2, 3, 1), self._world)
        order = torch.randperm(len(everyone), generator=self._generator("keys", self._num_enqueued))
        order = order.to(images.device, non_blocking=True)
        dealt = everyone[order.chunk(self._world.world_size)[self._world.rank]]
        keys = self.key_encoder(dealt.permute(0, 3, 1, 2)).float()
        return all_gathered(functional.normalize(keys), self._world)[order.argsort()]

    def _generator(self, *purpose: str | int) -> torch.Generator:
        """Return a source of randomness that is the same on all ranks, as torch's own is not."""
        return torch.Generator().manual_seed(derive_key(self._seed, *purpose) >> 1)

    def get_extra_state(self) -> int:
        """Return how many keys there ever were: the order of the next ones depends on it."""
        return self._num_enqueued

    def set_extra_state(self, state: int) -> None:
        """Go on from that many keys."""
        self._num_enqueued = state


class Contrast(nn.Module):
    """The grouped encoder, replicated where there are several processes, and the memory of the encoder inside it."""

    def __init__(self, encoder: nn.Module, memory: KeyMemory) -> None:
        super().__init__()
        self.encoder = encoder
        self.memory = memory

    def forward(self, images: torch.Tensor, labels: torch.Tensor, sets: Ids) -> torch.Tensor:
        """Return the mean loss of a batch of pairs; who they are does not matter."""
        loss: torch.Tensor = self.memory(self.encoder(images[0::2]), images[1::2])
        return loss
