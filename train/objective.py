"""What training minimises: an encoder, and what it is trained against."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from pipeline.order import Ids
from shardgen.errors import UsageError
from train.backbones import make_encoder
from train.contrastive import Contrast, Grouped, KeyMemory
from train.distributed import World, replicate
from train.heads import MarginHead
from train.partial_fc import PartialFC
from train.recipe import Recipe


@dataclass(frozen=True)
class Objective:
    """A loss and what it moves."""

    encoder: nn.Module
    """What is trained and kept."""
    heads: nn.ModuleList
    """What it is trained against, and what a run needs of that to go on."""
    loss: nn.Module
    """(images `[batch, 3, size, size] float32`, labels `[batch]`, sets `[batch]` on the host) -> mean loss of this
    rank's samples; its gradients are averaged over the ranks."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the optimiser moves: the encoder's, then a weight of each head that has one."""
        return [parameter for parameter in self.loss.parameters() if parameter.requires_grad]


class Recogniser(nn.Module):
    """Encoder and heads as one module, so that they can be replicated together."""

    def __init__(self, encoder: nn.Module, heads: Iterable[nn.Module], weights: Sequence[float]) -> None:
        """Take one head for all, or one for each set; `weights` are the factors on the losses of each set's samples."""
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(heads)
        self._weights = torch.tensor(weights)

    def forward(self, images: torch.Tensor, labels: torch.Tensor, sets: Ids) -> torch.Tensor:
        """Return the mean loss of a batch; `sets` is on the host, where it is decided which sample meets which head."""
        embeddings = self.encoder(images)
        heads = cast("Sequence[MarginHead | PartialFC]", self.heads)
        if len(heads) == 1:
            losses = heads[0].losses(embeddings, labels)
            weights = self._weights[torch.from_numpy(sets)].to(losses.device, non_blocking=True)
            return (losses * weights).mean()
        # A head without a sample here takes part all the same: other ranks wait for its gradient.
        rows = [torch.from_numpy((sets == number).nonzero()[0]).to(labels.device) for number in range(len(heads))]
        own = zip(heads, rows, self._weights.tolist(), strict=True)
        sums = [head.losses(embeddings[some], labels[some]).sum() * weight for head, some, weight in own]
        return torch.stack(sums).sum() / len(labels)


def make_objective(
    recipe: Recipe, num_classes: Sequence[int], set_names: Sequence[str], world: World, device: torch.device
) -> Objective:
    """Return what a recipe trains; raise `UsageError` for what this device or number of processes cannot do."""
    encoder = make_encoder(recipe.encoder, recipe.loader.image_size)
    if recipe.training.sync_batchnorm and world.world_size > 1:
        if device.type == "cpu":
            raise UsageError("training.sync_batchnorm works on GPUs only; set it to false")
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)  # type: ignore[no-untyped-call]
    encoder.to(device)
    if recipe.contrastive is not None:
        return _contrastive(recipe, encoder, world, device)
    heads = nn.ModuleList(_make_head(recipe, number, world) for number in num_classes).to(device)
    if recipe.training.compile:
        encoder.compile()
    weights = _weights(recipe.head.weights, set_names)
    if recipe.head.split:  # such heads are no replicas, and exchange what they need themselves
        return Objective(encoder, heads, Recogniser(replicate(encoder, world, device), heads, weights))
    return Objective(encoder, heads, replicate(Recogniser(encoder, heads, weights), world, device))


def _weights(given: Mapping[str, float], set_names: Sequence[str]) -> list[float]:
    return [given.get(name, 1.0) for name in set_names]


def _make_head(recipe: Recipe, num_identities: int, world: World) -> nn.Module:
    size = recipe.encoder.embedding_size
    if recipe.head.split:
        return PartialFC(recipe.head, size, num_identities, world)
    return MarginHead(recipe.head, size, num_identities)


def _contrastive(recipe: Recipe, encoder: nn.Module, world: World, device: torch.device) -> Objective:
    assert recipe.contrastive is not None
    memory = KeyMemory(recipe.contrastive, encoder, recipe.encoder.embedding_size, world, recipe.seed).to(device)
    if recipe.training.compile:
        encoder.compile()
        memory.key_encoder.compile()
    grouped = Grouped(encoder, recipe.contrastive.groups // world.world_size)
    return Objective(encoder, nn.ModuleList([memory]), Contrast(replicate(grouped, world, device), memory))
