"""What tests of the loader share: plans and loaders in one call, and batches that are compared."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.augment_config import AugmentConfig
from pipeline.catalog import Catalog
from pipeline.config import LoaderConfig, MixConfig
from pipeline.loader import Batch, FaceLoader
from pipeline.plan import Plan

CPU = torch.device("cpu")
Image = npt.NDArray[np.uint8]
BATCH_SIZE = 48
MIX: dict[str, Any] = {
    "sets": {
        "real": {"path": "data/real", "share": "1/3", "balance": "group"},
        "drawn": {"path": "data/drawn", "share": "2/3"},
    }
}


def plan_of(catalog: Catalog, mix: dict[str, Any] = MIX, seed: int = 0, batch_size: int = BATCH_SIZE) -> Plan:
    return Plan(catalog, MixConfig.model_validate(mix), seed, batch_size)


def loader_of(
    plan: Plan, rank: int = 0, world_size: int = 1, augment: Any = "flip", device: torch.device = CPU, **config: Any
) -> FaceLoader:
    options = LoaderConfig(**{"batch_size": plan.batch_size, **config})
    return FaceLoader(plan, AugmentConfig.model_validate(augment), options, device, rank, world_size)


def take(loader: FaceLoader, number: int) -> list[Batch]:
    batches = list(islice(loader, number))
    loader.close()
    return batches


def columns(batch: Batch) -> dict[str, list[int]]:
    """Everything but the images."""
    named = {"labels": batch.labels, "ids": batch.sample_ids, **batch.tags}
    return {name: column.tolist() for name, column in named.items()} | {"sets": batch.sets.tolist()}


def assert_same(ours: Batch, other: Batch) -> None:
    assert columns(ours) == columns(other)
    assert torch.equal(ours.images, other.images)


def joined(slices: Sequence[Batch]) -> Batch:
    return Batch(
        images=torch.cat([part.images for part in slices]),
        labels=torch.cat([part.labels for part in slices]),
        sample_ids=torch.cat([part.sample_ids for part in slices]),
        sets=np.concatenate([part.sets for part in slices]),
        tags={axis: torch.cat([part.tags[axis] for part in slices]) for axis in slices[0].tags},
    )


def assert_images_are(batch: Batch, expected: Sequence[Image]) -> None:
    """Up to the one level by which decoders differ."""
    found = batch.images.permute(0, 2, 3, 1).numpy().astype(np.int16)
    assert np.abs(found - np.stack(expected)).max() <= 1
