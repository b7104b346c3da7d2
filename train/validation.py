"""Measuring the encoder while it trains: every rank embeds its part of each verification set."""

from fractions import Fraction
from functools import partial

import torch
from torch import nn
from torch.func import functional_call

from eval.embed import Embed, Ranks, embed_images
from eval.protocols import VerificationSet, naming_undecodable, read_bin
from eval.verification import accuracy, pair_distances
from pipeline.config import LoaderConfig
from train.config import ValidationConfig
from train.distributed import World, gathered, of_main


def is_due(config: ValidationConfig, step: int, batches_per_epoch: int, num_steps: int) -> bool:
    """Return whether a validation follows step 1, 2, ..., `num_steps`.

    It does where a multiple of `every` epochs is reached or passed, and after the last.
    """
    interval = Fraction(str(config.every)) * batches_per_epoch  # in binary, 0.1 epochs of 10 batches are not 1
    return step // interval > (step - 1) // interval or step == num_steps


class Validation:
    """The verification sets of a run, which every rank keeps in memory, encoded as they are."""

    def __init__(self, config: ValidationConfig, loader: LoaderConfig, world: World, device: torch.device) -> None:
        """Read the sets; raise as `read_bin` does."""
        self._sets = [read_bin(name, path) for name, path in config.bins.items()]
        self._loader = loader.model_copy(update={"batch_size": loader.batch_size // world.world_size})
        self._world = world
        self._ranks = Ranks(world.rank, world.world_size, partial(gathered, world=world))
        self._device = device

    def __bool__(self) -> bool:
        """Return whether there is anything to measure on."""
        return bool(self._sets)

    @property
    def hashes(self) -> dict[str, str]:
        """Name -> SHA-256 of a set's file."""
        return {one.name: one.sha256 for one in self._sets}

    @property
    def num_pairs(self) -> dict[str, int]:
        """Name -> pairs of a set."""
        return {one.name: len(one.same) for one in self._sets}

    def measure(self, encoder: nn.Module) -> dict[str, float]:
        """Return the accuracy on each set by the published protocol (`eval.verification.accuracy`).

        All ranks must ask, and all get the same: that of rank 0's encoder, which is what checkpoints hold. The encoder
        stays as it is. Raises `DataError` when an image does not decode, or the embeddings are not finite.
        """
        # Replicas share their weights, but between two steps each has its own record of its batch norm.
        buffers = dict(encoder.named_buffers())
        of_rank_0 = dict(zip(buffers, of_main(buffers.values(), self._world), strict=True))
        was_training = encoder.training
        encoder.eval()
        try:
            return {one.name: self._accuracy(partial(functional_call, encoder, of_rank_0), one) for one in self._sets}
        finally:
            encoder.train(was_training)

    def _accuracy(self, embed: Embed, one: VerificationSet) -> float:
        with naming_undecodable(one):
            embeddings = embed_images(embed, one.images, self._loader, self._device, self._ranks)
        return accuracy(pair_distances(embeddings[0::2], embeddings[1::2]), one.same).mean
